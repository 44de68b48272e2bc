//! What goes wrong with a device process.

use std::io;

use super::message::Command;

/// Why a device process counts as gone. It stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    #[error("it closed the connection, or died")]
    Closed,
    #[error("it did not answer {0} within {limit} seconds", limit = super::exchange::LIMIT.as_secs())]
    Silent(Command),
    #[error("its answer to {0} makes no sense: {1}")]
    Nonsense(Command, &'static str),
}

/// An operation on a function of another process that failed.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("the device process is gone: {0}; look into its log, start it again, then the machine")]
    Gone(#[from] Gone),
    #[error("the device process refused {command}: {source}; its log may say why")]
    Refused { command: Command, source: io::Error },
    #[error("cannot set up the socket of the device process: {0}; give a connected stream socket")]
    Socket(#[source] io::Error),
    #[error(
        "the device process speaks version {major}.{minor} of vfio-user, this monitor 0.1; start one that speaks 0.1 or 0.0"
    )]
    Version { major: u16, minor: u16 },
    #[error("the device process says in JSON what it can, but not readably: {0}; report it there")]
    Capabilities(#[from] serde_json::Error),
    #[error(
        "the device process takes only {0} bytes in a message, fewer than one access has; report it there"
    )]
    Transfer(u64),
    #[error("the device process has no PCI function: {0}; start one that has")]
    NotPci(&'static str),
}

impl From<UserError> for io::Error {
    fn from(error: UserError) -> Self {
        let kind = match &error {
            UserError::Gone(Gone::Closed) => io::ErrorKind::BrokenPipe,
            UserError::Gone(Gone::Silent(_)) => io::ErrorKind::TimedOut,
            UserError::Refused { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
