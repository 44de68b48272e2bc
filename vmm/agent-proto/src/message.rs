//! The JSON bodies of control frames. Data, credit and end-of-data frames are binary and live in `frame`.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Version of the protocol; both sides say theirs in `Hello`, and a difference ends the session.
pub const VERSION: u32 = 1;

/// First frame of a session, from the client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientHello {
    /// [`VERSION`] of the client.
    pub version: u32,
}

/// Answer to [`ClientHello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// [`VERSION`] of the agent.
    pub version: u32,
    /// Release of the agent program.
    pub agent: String,
    /// How the agent lives in its system.
    pub init: InitMode,
    /// Why the tenant's root could not be set up; the agent then serves from the initramfs, for diagnosis only.
    #[serde(default)]
    pub problem: Option<String>,
}

/// How the agent lives in its system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitMode {
    /// The agent is PID 1.
    Agent,
    /// The image's own init is PID 1, the agent runs beside it.
    Image,
    /// An ordinary program, as in tests.
    Program,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    pub rows: u16,
    pub columns: u16,
}

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; a program without `/` is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Additions to the default environment (`PATH`, `HOME`, `USER`, `SHELL`, with a terminal also `TERM`).
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; default the user's home, else `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `name`, `name:group`, `uid` or `uid:gid`; default the agent's (`fief.user=`, else root).
    #[serde(default)]
    pub user: Option<String>,
    /// With a size: run on a pseudo terminal of that size. stdout and stderr are then one channel, stdout.
    #[serde(default)]
    pub tty: Option<WindowSize>,
    /// The program is the agent itself and `argv` all of its arguments; it runs as root unless `user` says otherwise.
    #[serde(default)]
    pub own: bool,
    /// Whether the client will send stdin; otherwise it is `/dev/null` (with a terminal: nobody types).
    #[serde(default)]
    pub stdin: bool,
}

impl ExecRequest {
    /// A request for `argv` and nothing else.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        ExecRequest {
            argv: argv.into_iter().map(Into::into).collect(),
            ..ExecRequest::default()
        }
    }
}

/// The command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its process id inside the tenant.
    pub pid: u32,
}

/// A signal for the command's process group, by Linux number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    pub number: i32,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// What a shell would show as `$?`: the code, or 128 + the signal.
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code & 0xff,
            ExitStatus::Signal(number) => 128 + (number & 0x7f),
        }
    }

    /// Whether the command returned 0.
    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }
}

/// Why the agent refused or gave up a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    pub kind: ErrorKind,
    /// One line for people.
    pub message: String,
}

/// Kinds of [`RemoteError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such program (docker's exit code 127).
    CommandNotFound,
    /// The program is there but cannot be executed (docker's exit code 126).
    NotExecutable,
    /// No such user or group.
    NoSuchUser,
    /// No such file or directory.
    NotFound,
    /// The request makes no sense.
    BadRequest,
    /// Too many streams at once.
    Limit,
    /// The peer broke the protocol on this stream.
    Protocol,
    /// The kernel refused.
    Io,
    /// The client cancelled the request.
    Cancelled,
    /// A kind this side does not know.
    #[serde(other)]
    Other,
}

impl ErrorKind {
    /// The exit code docker gives when a command cannot be started for this reason.
    pub fn shell_code(self) -> i32 {
        match self {
            ErrorKind::CommandNotFound => 127,
            ErrorKind::NotExecutable => 126,
            _ => 125,
        }
    }
}

/// Load of the system the agent runs in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Seconds since boot.
    pub uptime_seconds: f64,
    /// Averages over 1, 5 and 15 minutes.
    pub load: [f64; 3],
    pub memory_total_bytes: u64,
    pub memory_available_bytes: u64,
    /// CPU time spent since boot, all CPUs together, in seconds.
    pub cpu_busy_seconds: f64,
    pub cpus: u32,
    /// The file system at `/`.
    pub disk: DiskUse,
    /// Number of processes.
    pub processes: u32,
}

/// Space on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

/// Set the clock, as nanoseconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetClock {
    pub unix_nanoseconds: u64,
}

/// Orderly end of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    pub action: ShutdownAction,
    /// Do not ask anybody: sync and go.
    #[serde(default)]
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownAction {
    Poweroff,
    Reboot,
}

/// Create or replace a regular file; data follows on [`Channel::In`](crate::Channel::In).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteFile {
    /// Absolute path; it appears complete or not at all.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// As in [`ExecRequest::user`]; default root.
    #[serde(default)]
    pub owner: Option<String>,
    /// Make missing parent directories (mode 0755).
    #[serde(default)]
    pub parents: bool,
}

/// Read a regular file; [`FileInfo`] and data follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFile {
    /// Absolute path.
    pub path: String,
}

/// Answer to [`ReadFile`] before the data. The file may grow or shrink while it is read; the end of the data tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    pub size_bytes: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Connect to a socket in the agent's system. Answered by `Connected`; then [`Channel::In`](crate::Channel::In) and
/// [`Channel::Out`](crate::Channel::Out) are the two directions, whose ends are those of the connection. `Done` ends it
/// when both are over, `Error` when it was refused or broke.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connect {
    Tcp(SocketAddr),
    /// A stream socket, by its absolute path of at most 107 bytes (unix(7)).
    Unix(String),
}

impl fmt::Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Connect::Tcp(address) => address.fmt(f),
            Connect::Unix(path) => f.write_str(path),
        }
    }
}
