//! A connection that the agent made for a client, as one stream of a session.

use std::fs::File;
use std::io::ErrorKind::{BrokenPipe, Interrupted, WouldBlock};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use fief_agent_proto::{Channel, Connect, Frame, Kind, MAX_PAYLOAD, Outbound, RemoteError, WINDOW};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect,
    getsockopt, setsockopt, shutdown, socket, sockopt,
};

use super::command::{OUTBOUND_ROOM, READS_PER_TURN, io_error, protocol};
use super::inbox::Inbox;

#[derive(Debug)]
pub struct Socket {
    file: File,
    target: Connect,
    connecting: bool,
    inbox: Inbox,
    /// The peer was told that no more comes, or takes no more.
    write_ended: bool,
    credit: u32,
    /// The peer sends no more.
    read_ended: bool,
    /// Why it broke.
    failure: Option<RemoteError>,
}

impl Socket {
    /// Begins to connect.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn begin(target: Connect) -> Result<Socket, RemoteError> {
        let begun = match &target {
            Connect::Tcp(address) => dial(&SockaddrStorage::from(*address)),
            Connect::Unix(path) => UnixAddr::new(path.as_str()).and_then(|address| dial(&address)),
        };
        let (file, connecting) = begun.map_err(|errno| cannot_connect(&target, &errno.into()))?;
        // What a person types must not wait for more. Other kinds of sockets do not know it.
        let _ = setsockopt(&file, sockopt::TcpNoDelay, &true);
        Ok(Socket {
            file,
            target,
            connecting,
            inbox: Inbox::default(),
            write_ended: false,
            credit: WINDOW,
            read_ended: false,
            failure: None,
        })
    }

    /// The answer to the request, once it is connected.
    pub fn greeting(&self, id: u32) -> Option<Frame> {
        (!self.connecting).then(|| Frame::empty(id, Kind::Connected))
    }

    /// Takes bytes for the peer.
    ///
    /// # Errors
    /// More than the window.
    pub fn data(&mut self, payload: &[u8]) -> Result<(), RemoteError> {
        self.inbox.data(payload)
    }

    /// The client sends no more.
    ///
    /// # Errors
    /// The count does not match what arrived.
    pub fn end_input(&mut self, count: Option<u64>) -> Result<(), RemoteError> {
        self.inbox.end(count)
    }

    /// The client takes more.
    ///
    /// # Errors
    /// More than the window.
    pub fn credit(&mut self, bytes: u32) -> Result<(), RemoteError> {
        let credit = self
            .credit
            .checked_add(bytes)
            .filter(|credit| *credit <= WINDOW);
        self.credit = credit.ok_or_else(|| protocol("more credit than the window"))?;
        Ok(())
    }

    /// Breaks the connection off, so that the peer does not take it for the end of what was to be said.
    pub fn reset(self) {
        let now = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let _ = setsockopt(&self.file, sockopt::Linger, &now);
    }

    /// What to poll.
    pub fn interests<'a>(&'a self, room: bool, mut add: impl FnMut(Channel, PollFd<'a>)) {
        if self.connecting || self.may_write() {
            add(
                Channel::In,
                PollFd::new(self.file.as_fd(), PollFlags::POLLOUT),
            );
        } else if self.read_ended {
            // A peer that has gone is reported unasked. (One that still has something to say must not be: it is read first.)
            add(
                Channel::In,
                PollFd::new(self.file.as_fd(), PollFlags::empty()),
            );
        }
        if self.may_read(room) {
            add(
                Channel::Out,
                PollFd::new(self.file.as_fd(), PollFlags::POLLIN),
            );
        }
    }

    /// The poll said something about `channel`.
    pub fn ready(
        &mut self,
        id: u32,
        channel: Channel,
        events: PollFlags,
        out: &mut Outbound,
        scratch: &mut [u8],
    ) {
        if channel != Channel::In {
            for _ in 0..READS_PER_TURN {
                if !self.may_read(out.len() < OUTBOUND_ROOM) || !self.read(id, out, scratch) {
                    return;
                }
            }
        } else if self.connecting {
            self.connecting = false;
            match self.take_error() {
                None => out.frame(&Frame::empty(id, Kind::Connected)),
                Some(error) => self.fail(cannot_connect(&self.target, &error)),
            }
        } else if self.read_ended && events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
            self.write_ended = true;
            let error = self.take_error();
            self.failure = error.map(|error| broken(&self.target, &error));
        }
    }

    /// Does what needs no poll; the last frame when both directions are over.
    pub fn turn(&mut self, id: u32, out: &mut Outbound) -> Option<Frame> {
        if !self.connecting {
            self.write(id, out);
        }
        if !self.write_ended || !self.read_ended {
            return None;
        }
        match &self.failure {
            Some(error) => Frame::json(id, Kind::Error, error),
            None => Some(Frame::empty(id, Kind::Done)),
        }
    }

    fn may_write(&self) -> bool {
        !self.write_ended && !self.inbox.is_empty()
    }

    fn may_read(&self, room: bool) -> bool {
        !self.connecting && !self.read_ended && self.credit > 0 && room
    }

    /// Reads once; false if there is nothing now or any more.
    fn read(&mut self, id: u32, out: &mut Outbound, scratch: &mut [u8]) -> bool {
        let most = MAX_PAYLOAD.min(self.credit as usize).min(scratch.len());
        match self.file.read(&mut scratch[..most]) {
            Ok(0) => {
                self.read_ended = true;
                // The end of what broke is no end of what was to be said.
                if self.failure.is_none() {
                    out.frame(&Frame::eof(id, Channel::Out));
                }
                false
            }
            Ok(count) => {
                self.credit -= u32::try_from(count).unwrap_or(self.credit);
                out.data(id, Channel::Out, &scratch[..count]);
                true
            }
            Err(error) if matches!(error.kind(), Interrupted | WouldBlock) => false,
            Err(error) => {
                self.fail(broken(&self.target, &error));
                false
            }
        }
    }

    fn write(&mut self, id: u32, out: &mut Outbound) {
        while self.may_write() {
            match self.file.write(self.inbox.next()) {
                Ok(count) => self.inbox.passed_on(count),
                Err(error) if error.kind() == Interrupted => {}
                Err(error) if error.kind() == WouldBlock => break,
                Err(error) => self.close_input(id, &error, out),
            }
        }
        if self.inbox.is_empty() && self.inbox.has_ended() && !self.write_ended {
            // Where this fails the peer has gone, and reading tells how.
            let _ = shutdown(self.file.as_raw_fd(), Shutdown::Write);
            self.write_ended = true;
        }
        if let Some(credit) = self.inbox.credit_due() {
            out.frame(&Frame::credit(id, Channel::In, credit));
        }
    }

    /// The peer takes no more. What it said before is still to be read.
    fn close_input(&mut self, id: u32, error: &io::Error, out: &mut Outbound) {
        if self.inbox.is_open() {
            out.frame(&Frame::eof(id, Channel::In));
        }
        self.inbox.close();
        self.write_ended = true;
        if error.kind() != BrokenPipe {
            self.failure = Some(broken(&self.target, error));
        }
    }

    fn fail(&mut self, error: RemoteError) {
        self.failure.get_or_insert(error);
        self.read_ended = true;
        self.write_ended = true;
    }

    /// Why the kernel ended it.
    fn take_error(&self) -> Option<io::Error> {
        match getsockopt(&self.file, sockopt::SocketError) {
            Ok(0) => None,
            Ok(error) => Some(io::Error::from_raw_os_error(error)),
            Err(errno) => Some(errno.into()),
        }
    }
}

/// A new socket that is connected, or (true) on its way.
fn dial(address: &dyn SockaddrLike) -> nix::Result<(File, bool)> {
    let family = address.family().unwrap_or(AddressFamily::Unspec);
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let made = socket(family, SockType::Stream, flags, None)?;
    match connect(made.as_raw_fd(), address) {
        Ok(()) => Ok((made.into(), false)),
        Err(Errno::EINPROGRESS) => Ok((made.into(), true)),
        Err(errno) => Err(errno),
    }
}

fn cannot_connect(target: &Connect, error: &io::Error) -> RemoteError {
    io_error(&format!("cannot connect to {target}"), error)
}

fn broken(target: &Connect, error: &io::Error) -> RemoteError {
    io_error(&format!("the connection to {target} broke"), error)
}
