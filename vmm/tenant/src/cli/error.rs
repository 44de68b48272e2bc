//! How a command fails.

use crate::failure::chain;

/// The code for failures of fief's own, as docker's: apart from those of commands.
pub const OWN_FAILURE: u8 = 125;

/// A failure on its way to the terminal.
#[derive(Debug)]
pub struct Error {
    message: String,
    code: u8,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure that is told as `message`: "what: why; what to do".
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            code: OWN_FAILURE,
        }
    }

    /// The same with another exit code.
    pub fn with_code(mut self, code: i32) -> Self {
        self.code = u8::try_from(code).unwrap_or(OWN_FAILURE);
        self
    }

    /// Puts what was tried in front.
    pub fn context(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub fn code(&self) -> u8 {
        self.code
    }

    /// One line: what, why, and what to do.
    pub fn text(&self) -> String {
        format!("fief: {}", self.message.replace('\n', " "))
    }
}

// Every error that is passed up with `?` is told with its causes. (So this type is no `std::error::Error` itself.)
impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self::new(chain(&error))
    }
}

/// For errors of the agent's client, which know docker's codes.
pub fn remote(error: fief_agent_proto::Error) -> Error {
    let code = error.shell_code();
    Error::from(error).with_code(code)
}
