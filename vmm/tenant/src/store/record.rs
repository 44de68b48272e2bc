//! What is written down about a running tenant, and about one that ended.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How far a tenant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Its backend is being set up.
    Starting,
    /// Its machine runs.
    Running,
    /// It ended and is started again by its policy, after a pause.
    Restarting,
}

/// `state.json`: there while a shim has the tenant. It is believed only while the tenant's lock is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub phase: Phase,
    pub shim_pid: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Pid>,
    /// Seconds since 1970.
    pub started: u64,
    /// How often the guest rebooted in place.
    #[serde(default)]
    pub reboots: u64,
    /// How often its policy started it again since a person did.
    #[serde(default)]
    pub restarts: u64,
}

/// A process id that cannot be mistaken for a later process of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pid {
    pub pid: i32,
    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    pub start_ticks: u64,
}

/// Why a tenant ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It powered off.
    Poweroff,
    /// It reset itself, and its backend does not restart it.
    Reboot,
    /// Its kernel panicked.
    Panic,
    /// A vCPU shut down.
    TripleFault,
    /// It was ended from outside.
    Killed,
    /// Its backend failed.
    Failed,
}

impl Reason {
    /// In words, for a table.
    pub fn words(self) -> &'static str {
        match self {
            Reason::Poweroff => "powered off",
            Reason::Reboot => "rebooted",
            Reason::Panic => "kernel panic",
            Reason::TripleFault => "triple fault",
            Reason::Killed => "killed",
            Reason::Failed => "failed",
        }
    }
}

/// `exit.json`: how the last run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub reason: Reason,
    /// 0 for an orderly end, 137 if it was killed, 125 if fief failed, 1 otherwise.
    pub code: i32,
    /// What else is known, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Seconds since 1970.
    pub time: u64,
    /// How often its policy had started it again by then.
    #[serde(default)]
    pub restarts: u64,
}

/// `stopped.json`: there from when somebody asks a tenant to end until somebody starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoppedBy {
    /// Somebody who wants it stopped.
    User,
    /// The end of the host: it is to run again afterwards.
    Shutdown,
}

impl Exit {
    /// An end, now.
    pub fn now(reason: Reason, detail: Option<String>) -> Self {
        let code = match reason {
            Reason::Poweroff | Reason::Reboot => 0,
            Reason::Panic | Reason::TripleFault => 1,
            Reason::Killed => 137,
            Reason::Failed => 125,
        };
        Self {
            reason,
            code,
            detail,
            time: now(),
            restarts: 0,
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}
