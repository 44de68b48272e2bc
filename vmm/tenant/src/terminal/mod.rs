//! This process's terminal and standard streams, connected to a command elsewhere.

mod raw;
mod session;
mod signals;

use std::io::IsTerminal;

use fief_agent_proto::WindowSize;

pub use raw::restore;
pub use session::{Streams, attend, cancel, output, say};
pub use signals::Signals;

/// `-t` was given where there is no terminal. The words are docker's.
#[derive(Debug, thiserror::Error)]
#[error("the input device is not a TTY; leave -t out, or run it in a terminal")]
pub struct NoTerminal;

/// The size of the terminal, for a command that gets one.
///
/// # Errors
/// Standard input is none.
pub fn size() -> Result<WindowSize, NoTerminal> {
    if !std::io::stdin().is_terminal() {
        return Err(NoTerminal);
    }
    Ok(current_size().unwrap_or(WindowSize {
        rows: 24,
        columns: 80,
    }))
}

fn current_size() -> Option<WindowSize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok()?;
    Some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
    .filter(|size| size.rows > 0 && size.columns > 0)
}
