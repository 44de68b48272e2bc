//! Why a measurement, or all of them, could not be made.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("`{command}` {how}{}", told(.said))]
    Command {
        command: String,
        how: String,
        said: String,
    },
    #[error(
        "{} is no report of fief bench ({source}); give a file that `fief bench --json FILE` wrote",
        .path.display()
    )]
    NoReport {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "{} is a report of version {found}, and this fief knows version {known}; use the fief that wrote it, or measure again",
        .path.display()
    )]
    OtherVersion {
        path: PathBuf,
        found: u32,
        known: u32,
    },
    #[error(
        "the peer {name} cannot be used: {}: {source}; give the path of a monitor's program that this user may execute",
        .path.display()
    )]
    PeerProgram {
        name: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the monitor of the peer {name} ended before its machine answered ({status}){}; it has to take Firecracker's flags \
         --no-api and --config-file FILE, and the keys of that file",
        told(.said)
    )]
    PeerEnded {
        name: String,
        status: ExitStatus,
        said: String,
    },
    #[error(
        "the machine of the peer {name} did not {what} within {seconds} s{}; try a kernel that has the drivers of the monitor's devices \
         built in (--kernel micro or tuned)",
        told(.said)
    )]
    PeerSilent {
        name: String,
        what: &'static str,
        seconds: u64,
        said: String,
    },
    #[error("a run took far longer than it does, and was broken off")]
    Late,
    #[error(
        "the kernel's tracer cannot be used: {what}: {source}; measure as root, on a kernel with CONFIG_FTRACE"
    )]
    NoTracer {
        what: &'static str,
        source: io::Error,
    },
    /// For people, whole.
    #[error("{0}")]
    Other(String),
}

fn told(said: &str) -> String {
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(String::new, |line| format!(": {}", line.trim()))
}

pub type Result<T> = std::result::Result<T, Error>;

/// For `map_err`: another crate's error, which says all.
pub fn other(error: impl std::fmt::Display) -> Error {
    Error::Other(error.to_string())
}

/// For `map_err`: what was tried.
pub fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        what: what.into(),
        source,
    }
}

/// The same for something done to a file.
pub fn on<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    failed(format!("{what} {}", path.display()))
}
