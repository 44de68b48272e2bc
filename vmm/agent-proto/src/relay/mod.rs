//! One session with an agent, shared by many local clients.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use crate::{Error, Result, Session};

/// Serves the clients of `listener` over `session` until `stop` becomes readable or the session ends.
///
/// # Errors
/// Why the session ended.
pub fn relay(session: Session, listener: UnixListener, stop: impl AsFd) -> Result<()> {
    let _ = (session, listener, stop.as_fd());
    Err(Error::Protocol("relay"))
}
