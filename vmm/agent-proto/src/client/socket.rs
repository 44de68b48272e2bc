//! Connections to sockets in the agent's system.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{read, write};

use super::process::{ChannelReader, StdinWriter};
use super::{Connection, Remote};
use crate::{Channel, Connect, Kind, MAX_PAYLOAD, Result};

/// A connection that the agent has made for this client. Dropping it before its end resets it.
#[derive(Debug)]
pub struct RemoteSocket {
    remote: Remote,
    input: Option<StdinWriter>,
    output: Option<ChannelReader>,
}

impl Connection {
    /// Connects to a socket in the agent's system; returns when that is done.
    ///
    /// # Errors
    /// [`Error::Remote`] if nobody listens there, or the connection's failure.
    pub fn connect(&self, target: &Connect) -> Result<RemoteSocket> {
        let stream = self.shared.open(Kind::Connect, target)?;
        let socket = RemoteSocket {
            remote: Remote {
                stream: stream.clone(),
            },
            input: Some(StdinWriter {
                stream: stream.clone(),
            }),
            output: Some(ChannelReader {
                stream: stream.clone(),
                channel: Channel::Out,
            }),
        };
        stream.wait_connected()?;
        Ok(socket)
    }
}

impl RemoteSocket {
    /// Makes one connection of this and `local`, a connected stream socket in blocking mode: carries bytes both ways
    /// until both directions have ended. The end of one direction is passed on while the other goes on. Afterwards
    /// `local` is of no more use: close it; after an error by a reset.
    ///
    /// # Errors
    /// Either side broke off, or the session was lost.
    pub fn join(mut self, local: impl AsFd + Sync) -> Result<()> {
        let (Some(input), Some(output)) = (self.input.take(), self.output.take()) else {
            return Ok(());
        };
        let remote = self.remote.clone();
        std::thread::scope(|scope| {
            scope.spawn(|| send(&local, input, &self.remote));
            receive(output, &local, &remote);
            let ended = remote.stream.wait_done().map(drop);
            // Whoever still waits for what this side will say need not any more.
            let _ = shutdown(local.as_fd().as_raw_fd(), Shutdown::Read);
            ended
        })
    }
}

impl Drop for RemoteSocket {
    fn drop(&mut self) {
        if !self.remote.is_ended() {
            // If the session is gone, so is the connection.
            let _ = self.remote.cancel();
        }
    }
}

/// Carries what `local` says to its end. If it breaks off, so does the whole connection.
fn send(local: &impl AsFd, mut to: StdinWriter, remote: &Remote) {
    let mut chunk = vec![0; MAX_PAYLOAD];
    loop {
        match read(local, &mut chunk) {
            // The end of `to` is what the other side sees next.
            Ok(0) => return,
            Ok(count) => {
                // Nobody reads it there any more, or the session was lost: the other direction tells.
                if to.write_all(&chunk[..count]).is_err() {
                    return;
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => {
                let _ = remote.cancel();
                return;
            }
        }
    }
}

/// Carries what comes for `local` to its end.
fn receive(mut from: ChannelReader, local: &impl AsFd, remote: &Remote) {
    let mut chunk = vec![0; 2 * MAX_PAYLOAD];
    loop {
        let count = match from.read(&mut chunk) {
            Ok(count) => count,
            // The wait for the end says why.
            Err(_) => return,
        };
        if count == 0 {
            let _ = shutdown(local.as_fd().as_raw_fd(), Shutdown::Write);
            return;
        }
        if write_all(local, &chunk[..count]).is_err() {
            let _ = remote.cancel();
            return;
        }
    }
}

fn write_all(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
