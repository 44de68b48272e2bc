//! Grants: that one tenant may reach a port of another. Kept in the state directory, with a log of who gave and took them.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Result, failed};
use super::protocol::Protocol;
use crate::spec::TenantName;
use crate::store::{now, read_json, write_json};

/// `tenant` permits `to` to reach its port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Grant {
    /// Whose port it is.
    pub tenant: TenantName,
    /// Who may reach it.
    pub to: TenantName,
    pub port: u16,
    #[serde(default)]
    pub protocol: Protocol,
}

impl Grant {
    pub fn concerns(&self, name: &TenantName) -> bool {
        self.tenant == *name || self.to == *name
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tenant,
            to,
            port,
            protocol,
        } = self;
        write!(f, "{tenant} to {to}, port {port}/{protocol}")
    }
}

/// What happened to a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    Granted,
    Revoked,
    /// One of its tenants was removed.
    Removed,
}

/// A line of the log.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Seconds since 1970.
    pub time: u64,
    pub change: Change,
    #[serde(flatten)]
    pub grant: Grant,
    /// The user who ran fief.
    pub uid: u32,
    /// The user who logged in, where the machine keeps account of that: the one behind `sudo`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
}

fn file(root: &Path) -> PathBuf {
    root.join("grants.json")
}

/// Where it is written down who gave and took which grant: a JSON object a line.
pub fn log_file(root: &Path) -> PathBuf {
    root.join("grants.log")
}

/// All grants, in order.
///
/// # Errors
/// The file is damaged.
pub fn read(root: &Path) -> Result<Vec<Grant>> {
    Ok(read_json(&file(root))?.unwrap_or_default())
}

/// Replaces all grants.
pub fn write(root: &Path, grants: &mut [Grant]) -> Result<()> {
    grants.sort();
    Ok(write_json(&file(root), &grants)?)
}

/// Adds a line to the log.
pub fn log(root: &Path, change: Change, grant: &Grant) -> Result<()> {
    let entry = Entry {
        time: now(),
        change,
        grant: grant.clone(),
        uid: nix::unistd::getuid().as_raw(),
        login_uid: login_uid(),
    };
    let path = log_file(root);
    let written = || {
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        let mut log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)?;
        log.write_all(&line)
    };
    written().map_err(failed(format!("write {}", path.display())))
}

/// The user of this session (proc_pid_loginuid(5)); none if that was never set.
fn login_uid() -> Option<u32> {
    let text = std::fs::read_to_string("/proc/self/loginuid").ok()?;
    text.trim().parse().ok().filter(|&uid| uid != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(tenant: &str, to: &str, port: u16) -> Grant {
        Grant {
            tenant: tenant.parse().unwrap(),
            to: to.parse().unwrap(),
            port,
            protocol: Protocol::Udp,
        }
    }

    #[test]
    fn grants_come_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(directory.path()).unwrap().is_empty());
        let mut given = [grant("b", "a", 2), grant("a", "b", 9), grant("a", "b", 1)];
        write(directory.path(), &mut given).unwrap();
        let found = read(directory.path()).unwrap();
        assert_eq!(
            found,
            [grant("a", "b", 1), grant("a", "b", 9), grant("b", "a", 2)]
        );
        assert!(found[0].concerns(&found[0].to) && found[0].concerns(&found[0].tenant));
        assert!(!found[0].concerns(&"c".parse().unwrap()));
    }

    #[test]
    fn the_log_tells_when_who_and_what() {
        let directory = tempfile::tempdir().unwrap();
        let one = grant("alice", "bob", 5432);
        log(directory.path(), Change::Granted, &one).unwrap();
        log(directory.path(), Change::Removed, &one).unwrap();
        let text = std::fs::read_to_string(log_file(directory.path())).unwrap();
        let entries: Vec<Entry> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].change, Change::Removed);
        assert_eq!(entries[0].grant, one);
        assert_eq!(entries[0].uid, nix::unistd::getuid().as_raw());
        assert!(entries[0].time > 0 && text.contains("\"granted\""));
    }
}
