//! Ways to an agent's byte stream.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::{Error, Result};

/// The vsock port the agent listens on.
pub const AGENT_PORT: u32 = 1024;
/// Pause between two attempts while a tenant starts.
const RETRY: Duration = Duration::from_millis(10);
/// The longest answer to `CONNECT` is `OK 4294967295\n`; a longer line is none.
const LONGEST_ANSWER: usize = 32;

/// Connects to a vsock port of a guest through the monitor's unix socket (Firecracker's handshake: `CONNECT port\n`,
/// answered by `OK host-port\n`), again and again until the guest listens or the deadline passes.
///
/// # Errors
/// [`Error::Deadline`] with the last failure, or a path that can never work.
pub fn connect_vsock_unix(path: &Path, port: u32, deadline: Instant) -> Result<UnixStream> {
    retry(deadline, || {
        let stream = UnixStream::connect(path)?;
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        stream.set_write_timeout(Some(left))?;
        (&stream).write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut line = Vec::new();
        let mut byte = [0];
        // One byte at a time: what follows the line belongs to the session.
        while byte != *b"\n" {
            (&stream).read_exact(&mut byte)?;
            line.extend(byte);
            if line.len() > LONGEST_ANSWER {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the monitor's answer is no OK line",
                ));
            }
        }
        if !line.starts_with(b"OK ") {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "the guest refused the connection",
            ));
        }
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(stream)
    })
}

/// Connects to a unix socket: a relay's, a serial port's, or that of an agent run as a program.
///
/// # Errors
/// As [`connect_vsock_unix`].
pub fn connect_unix(path: &Path, deadline: Instant) -> Result<UnixStream> {
    let address = UnixAddr::new(path)
        .map_err(|errno| Error::io("cannot use the path of the agent's socket")(errno.into()))?;
    retry(deadline, || {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // An agent that accepts nobody must not hold this process up: a full queue is tried again (EAGAIN, unix(7)).
        connect(socket.as_raw_fd(), &address)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    })
}

fn retry(
    deadline: Instant,
    mut connect: impl FnMut() -> io::Result<UnixStream>,
) -> Result<UnixStream> {
    loop {
        match connect() {
            Ok(stream) => return Ok(stream),
            // The path is too long for a socket address.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(Error::io("cannot use the path of the agent's socket")(
                    error,
                ));
            }
            Err(error) if Instant::now() + RETRY >= deadline => {
                return Err(Error::Deadline(error.to_string()));
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

#[cfg(test)]
mod tests;
