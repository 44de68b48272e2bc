use std::io;
use std::sync::Arc;

use crate::{FrameError, RemoteError};

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a client and the agent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The agent answered that it could not do what was asked.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(
        "the agent did not answer in time ({0}); the tenant may still be starting, or its console log tells why not"
    )]
    Deadline(String),
    #[error(
        "the agent speaks protocol version {agent}, this fief {client}; restart the tenant with this fief's agent"
    )]
    Version { agent: u32, client: u32 },
    #[error("the tenant could not set up its root file system: {0}")]
    Boot(String),
    #[error("the agent sent a malformed frame ({0}); the session was ended")]
    Frame(#[from] FrameError),
    #[error("the agent broke the protocol ({0}); the session was ended")]
    Protocol(&'static str),
    #[error("the connection to the agent was lost: {0}; the tenant may have stopped")]
    Lost(String),
    #[error(
        "command line and environment take {size} bytes, the limit is {limit}; pass the data through stdin or a file"
    )]
    TooLong { size: usize, limit: usize },
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: Arc<io::Error>,
    },
}

impl Error {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io {
            what,
            source: Arc::new(source),
        }
    }

    /// The exit code docker would give for this failure to run a command: 127, 126, else 125.
    pub fn shell_code(&self) -> i32 {
        match self {
            Error::Remote(remote) => remote.kind.shell_code(),
            _ => 125,
        }
    }
}
