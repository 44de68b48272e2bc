//! `fief ps`.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use serde::Serialize;

use super::{Context, Result};
use crate::network::Record;
use crate::spec::{Bytes, Spec};
use crate::store::{Exit, Status, Store, Tenant, now};
use crate::table::{ago, table};
use crate::terminal::output;

/// Flags of `fief ps`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also tenants that do not run
    #[arg(long, short = 'a')]
    all: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// One tenant, as listed.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub name: String,
    pub status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What its disk takes.
    pub disk_used_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shim_pid: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor_pid: Option<i32>,
    /// How often its policy started it again since a person did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u64>,
    /// How its last run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

impl Entry {
    pub fn of(tenant: &Tenant) -> Self {
        let (status, state) = tenant.status();
        let spec: Option<Spec> = tenant.spec().ok();
        let network = Record::read(tenant.directory()).ok().flatten();
        let status = if spec.is_none() {
            Status::Damaged
        } else {
            status
        };
        let exit = tenant.exit().ok().flatten();
        Self {
            name: tenant.name.to_string(),
            status,
            image: spec.as_ref().map(|spec| spec.image.clone()),
            cpus: spec.as_ref().map(|spec| spec.cpus),
            memory_bytes: spec.as_ref().map(|spec| spec.memory.0),
            disk_used_bytes: spec
                .as_ref()
                .and_then(|spec| fief_images::disk::used(&tenant.disk(spec.isolation)).ok())
                .unwrap_or(0),
            address: network.map(|network| network.address),
            started: state.as_ref().map(|state| state.started),
            shim_pid: state.as_ref().map(|state| state.shim_pid),
            monitor_pid: state
                .as_ref()
                .and_then(|state| state.monitor)
                .map(|monitor| monitor.pid),
            restarts: state
                .as_ref()
                .map(|state| state.restarts)
                .or(exit.as_ref().map(|exit| exit.restarts)),
            exit,
        }
    }

    fn runs(&self) -> bool {
        matches!(
            self.status,
            Status::Running | Status::Starting | Status::Restarting
        )
    }

    fn row(&self, now: u64) -> Vec<String> {
        let since = |time: u64| ago(now.saturating_sub(time));
        let status = match (self.status, self.started, &self.exit) {
            (Status::Running, Some(started), _) => {
                let times = self.restarts.filter(|times| *times > 0);
                let times = times.map(|times| format!(" (restarted {times} times)"));
                format!(
                    "running for {}{}",
                    since(started),
                    times.unwrap_or_default()
                )
            }
            (Status::Stopped, _, Some(exit)) => {
                format!("{}, {} ago", exit.reason.words(), since(exit.time))
            }
            (Status::Running, ..) => "running".to_owned(),
            (Status::Starting, ..) => "starting".to_owned(),
            (Status::Restarting, _, Some(exit)) => {
                format!(
                    "restarting ({}, {} ago)",
                    exit.reason.words(),
                    since(exit.time)
                )
            }
            (Status::Restarting, ..) => "restarting".to_owned(),
            (Status::Created, ..) => "created".to_owned(),
            (Status::Stopped, ..) => "stopped".to_owned(),
            (Status::Damaged, ..) => "damaged".to_owned(),
        };
        vec![
            self.name.clone(),
            self.image.clone().unwrap_or_default(),
            status,
            self.cpus.map(|cpus| cpus.to_string()).unwrap_or_default(),
            self.memory_bytes
                .map(|bytes| Bytes(bytes).to_string())
                .unwrap_or_default(),
            Bytes(self.disk_used_bytes).to_string(),
            self.address
                .map(|address| address.to_string())
                .unwrap_or_default(),
        ]
    }
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    let entries = list(&store, args.all)?;
    let text = if args.json {
        serde_json::to_string_pretty(&entries)? + "\n"
    } else {
        let now = now();
        table(
            &[
                "NAME", "IMAGE", "STATUS", "CPUS", "MEMORY", "DISK", "ADDRESS",
            ],
            entries.iter().map(|entry| entry.row(now)),
        )
    };
    output(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn list(store: &Store, all: bool) -> Result<Vec<Entry>> {
    let entries = store
        .tenants()?
        .iter()
        .map(Entry::of)
        .filter(|entry| all || entry.runs())
        .collect();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Reason;

    fn entry() -> Entry {
        Entry {
            name: "a".to_owned(),
            status: Status::Stopped,
            image: Some("debian".to_owned()),
            cpus: Some(2),
            memory_bytes: Some(512 << 20),
            disk_used_bytes: 0,
            address: None,
            started: None,
            shim_pid: None,
            monitor_pid: None,
            restarts: Some(0),
            exit: Some(Exit {
                reason: Reason::Panic,
                code: 1,
                detail: None,
                time: 940,
                restarts: 0,
            }),
        }
    }

    #[test]
    fn an_end_is_told_with_its_reason_and_its_age() {
        assert_eq!(entry().row(1000)[2], "kernel panic, 1 minute ago");
        // A clock that was set back.
        assert_eq!(entry().row(0)[2], "kernel panic, 0 seconds ago");
    }

    #[test]
    fn restarts_by_policy_are_told() {
        let again = Entry {
            status: Status::Running,
            started: Some(940),
            restarts: Some(3),
            ..entry()
        };
        assert_eq!(
            again.row(1000)[2],
            "running for 1 minute (restarted 3 times)"
        );
        let pausing = Entry {
            status: Status::Restarting,
            ..again
        };
        assert!(pausing.runs());
        assert_eq!(
            pausing.row(1000)[2],
            "restarting (kernel panic, 1 minute ago)"
        );
    }

    #[test]
    fn json_has_status_and_reason_in_words_for_programs() {
        let json = serde_json::to_value(entry()).unwrap();
        assert_eq!(json["status"], "stopped");
        assert_eq!(json["exit"]["reason"], "panic");
        assert_eq!(json["memory_bytes"], 512 << 20);
        assert!(json.get("shim_pid").is_none());
    }
}
