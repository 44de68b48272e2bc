//! An agent run as a program, for one test.

#![allow(dead_code)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use fief_agent_proto::{Connection, ExecRequest, ExitStatus, connect_unix};

/// Far more than any step takes; it only turns a hang into a failure.
pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub struct Agent {
    child: Child,
    pub dir: tempfile::TempDir,
}

impl Agent {
    pub fn start() -> Agent {
        Agent::start_with(&[])
    }

    /// With `root` as the root of the tenant that it plays.
    pub fn start_below(root: &Path) -> Agent {
        Agent::start_with(&["--root".as_ref(), root.as_os_str()])
    }

    fn start_with(arguments: &[&OsStr]) -> Agent {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_fief-agent"))
            .arg("--listen-unix")
            .arg(dir.path().join("agent"))
            .args(arguments)
            .spawn()
            .unwrap();
        Agent { child, dir }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    pub fn connect(&self) -> Connection {
        Connection::open(
            connect_unix(&self.socket(), deadline()).unwrap(),
            deadline(),
        )
        .unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Number of open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// Process ids of its children, zombies included.
    pub fn children(&self) -> Vec<String> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid());
        std::fs::read_to_string(path)
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell command with stdin closed.
pub fn shell(script: &str) -> ExecRequest {
    ExecRequest::new(["/bin/sh", "-c", script])
}

/// Runs a shell command and returns its stdout; it has to succeed.
pub fn output(connection: &Connection, script: &str) -> String {
    let (status, out, err) = connection.exec(&shell(script)).unwrap().output().unwrap();
    assert_eq!(
        status,
        ExitStatus::Code(0),
        "{script}: {}",
        String::from_utf8_lossy(&err)
    );
    String::from_utf8(out).unwrap()
}
