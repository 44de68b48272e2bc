//! What a shim and the `fief` that started it say to each other: JSON lines over a pair of sockets.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use fief_agent_proto::ExecRequest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::Files;
use crate::spec::{Spec, TenantName};
use crate::store::Exit;

/// A line is small; whoever sends a larger one is none of ours.
const LONGEST: u64 = 1 << 20;

/// What the shim is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub name: TenantName,
    /// The tenant's directory.
    pub directory: String,
    pub files: Files,
    /// The tenant lives no longer than the `fief` at the other end.
    pub attached: bool,
    /// Run this once the agent answers, and end the tenant when it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<ExecRequest>,
    /// In place of the tenant's own spec, if it runs for its files alone: see [`Spec::quiet`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet: Option<Box<Spec>>,
}

impl Order {
    /// What this start is of a tenant with that spec.
    pub fn of(&self, spec: Spec) -> Spec {
        self.quiet.as_deref().cloned().unwrap_or(spec)
    }
}

/// What the shim reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The machine runs.
    Running {
        /// Limits that this machine cannot enforce, one clause each.
        unlimited: Vec<String>,
    },
    /// It could not be started; the whole chain of causes.
    Failed(String),
    /// It ran and ended.
    Ended(Exit),
}

/// What the other end may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// End the tenant now, without asking it.
    Kill,
}

/// One end.
#[derive(Debug)]
pub struct Channel {
    reader: BufReader<UnixStream>,
}

impl Channel {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            reader: BufReader::new(stream),
        }
    }

    pub fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// # Errors
    /// The other end is gone.
    pub fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.stream().write_all(&line)
    }

    /// Waits for the next message; none at the end.
    ///
    /// # Errors
    /// The message is none.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = String::new();
        let got = io::Read::take(&mut self.reader, LONGEST).read_line(&mut line);
        match got {
            // Killed with messages unread, its end of the socket is reset.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(serde_json::from_str(&line)?)),
        }
    }
}
