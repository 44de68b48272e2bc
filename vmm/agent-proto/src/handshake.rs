//! How a session begins, also on a byte stream where a client died in the middle of a frame.
//!
//! The client sends a preamble: a magic word and a nonce. The agent answers with another magic word and the same
//! nonce; the client drops everything before that answer, so what the agent still had to say to a dead client does no
//! harm. In the other direction the agent may wait for the rest of a dead client's frame: on a serial port the
//! preamble therefore follows as many zero bytes as the longest frame has. They complete that frame, and a frame of
//! zeros is malformed, after which the agent looks for nothing but a preamble.

use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use std::{collections::hash_map::RandomState, fs::File};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frame::{HEADER_LEN, MAGIC, MAX_PAYLOAD, REPLY_MAGIC};
use crate::message::VERSION;
use crate::{AgentHello, ClientHello, Decoder, Error, Frame, Inbound, Kind, Nonce, Result};

/// How long a preamble on a serial port may stay unanswered before it is sent again: the guest may have restarted
/// and lost it.
const SERIAL_RETRY: Duration = Duration::from_secs(2);

/// An open session: give it to [`Connection::new`](crate::Connection::new) or [`relay`](crate::relay()).
#[derive(Debug)]
pub struct Session {
    pub(crate) stream: File,
    /// Holds what arrived behind the agent's hello.
    pub(crate) decoder: Decoder,
    /// What the agent said about itself.
    pub hello: AgentHello,
}

/// The bytes with which a client begins a session.
pub fn preamble(nonce: &Nonce) -> Vec<u8> {
    [&MAGIC[..], nonce].concat()
}

/// The bytes with which the agent answers [`preamble`].
pub fn preamble_reply(nonce: &Nonce) -> Vec<u8> {
    [&REPLY_MAGIC[..], nonce].concat()
}

/// Begins a session on a connection that nobody used before, such as a vsock connection or a relay's socket.
///
/// # Errors
/// [`Error::Deadline`], [`Error::Lost`], [`Error::Version`], or what the agent sent instead of an answer.
pub fn handshake(stream: impl Into<OwnedFd>, deadline: Instant) -> Result<Session> {
    let stream = non_blocking(stream.into())?;
    let nonce = nonce();
    write_until(&stream, &preamble(&nonce), deadline)?;
    let mut search = Search {
        nonce,
        seen: Vec::new(),
    };
    loop {
        if let Some(rest) = search.find() {
            return greet(stream, &rest, deadline);
        }
        if !search.read(&stream, deadline)? {
            return Err(Error::Deadline("no answer to the preamble".into()));
        }
    }
}

/// Begins a session on a serial port, where an earlier client may have died in the middle of a frame, or the guest
/// may restart meanwhile: repeats the preamble until the deadline.
///
/// # Errors
/// As [`handshake`].
pub fn handshake_serial(stream: impl Into<OwnedFd>, deadline: Instant) -> Result<Session> {
    let stream = non_blocking(stream.into())?;
    let mut search = Search {
        nonce: nonce(),
        seen: Vec::new(),
    };
    loop {
        let mut bytes = vec![0; HEADER_LEN + MAX_PAYLOAD];
        // A new nonce each time: the answer to an older preamble is then skipped like any other old bytes.
        search.nonce = nonce();
        bytes.extend(preamble(&search.nonce));
        write_until(&stream, &bytes, deadline)?;
        let retry = deadline.min(Instant::now() + SERIAL_RETRY);
        loop {
            if let Some(rest) = search.find() {
                return greet(stream, &rest, deadline);
            }
            if !search.read(&stream, retry)? {
                break;
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::Deadline("no answer on the serial port".into()));
        }
    }
}

/// Looks for the agent's answer among older bytes.
struct Search {
    nonce: Nonce,
    seen: Vec<u8>,
}

impl Search {
    /// What follows the answer, if it is there.
    fn find(&mut self) -> Option<Vec<u8>> {
        let wanted = preamble_reply(&self.nonce);
        if let Some(at) = self
            .seen
            .windows(wanted.len())
            .position(|window| window == wanted)
        {
            return Some(self.seen.split_off(at + wanted.len()));
        }
        let keep = self.seen.len().min(wanted.len() - 1);
        self.seen.drain(..self.seen.len() - keep);
        None
    }

    /// Reads more; false if the time is up.
    fn read(&mut self, stream: &File, deadline: Instant) -> Result<bool> {
        let mut bytes = [0; 4096];
        let count = read_until(stream, &mut bytes, deadline)?;
        self.seen.extend_from_slice(&bytes[..count.unwrap_or(0)]);
        Ok(count.is_some())
    }
}

/// Exchanges `Hello` frames.
fn greet(stream: File, rest: &[u8], deadline: Instant) -> Result<Session> {
    let mut bytes = Vec::new();
    let hello = Frame::json(0, Kind::Hello, &ClientHello { version: VERSION })
        .ok_or(Error::Protocol("hello"))?;
    hello.encode(&mut bytes);
    write_until(&stream, &bytes, deadline)?;
    let mut decoder = Decoder::for_agent_bytes();
    decoder.push(rest);
    let mut chunk = [0; 4096];
    let frame = loop {
        match decoder.event() {
            Some(Inbound::Frame(frame)) => break frame,
            Some(Inbound::Malformed(error)) => return Err(error.into()),
            Some(Inbound::Preamble(_)) => return Err(Error::Protocol("preamble from the agent")),
            None => match read_until(&stream, &mut chunk, deadline)? {
                Some(count) => decoder.push(&chunk[..count]),
                None => return Err(Error::Deadline("no hello".into())),
            },
        }
    };
    let bad = |_| Error::Protocol("hello that cannot be read");
    match frame.kind {
        Kind::Hello => {
            let hello: AgentHello = frame.parse().map_err(bad)?;
            if hello.version != VERSION {
                return Err(Error::Version {
                    agent: hello.version,
                    client: VERSION,
                });
            }
            Ok(Session {
                stream,
                decoder,
                hello,
            })
        }
        Kind::Error => Err(Error::Remote(frame.parse().map_err(bad)?)),
        _ => Err(Error::Protocol("something else than a hello")),
    }
}

/// 16 bytes that no other session has; they need not be secret.
fn nonce() -> Nonce {
    let word = || RandomState::new().build_hasher().finish().to_le_bytes();
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&word());
    nonce[8..].copy_from_slice(&word());
    nonce
}

pub(crate) fn non_blocking(fd: OwnedFd) -> Result<File> {
    let set = |fd: &OwnedFd| -> nix::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    };
    set(&fd)
        .map_err(io::Error::from)
        .map_err(Error::io("cannot make the agent's connection non-blocking"))?;
    Ok(File::from(fd))
}

/// Waits for `flags` on `fd`; false when the deadline (None: none) passed.
pub(crate) fn wait_for(
    fd: impl AsFd,
    flags: PollFlags,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(at) => {
                // Rounded up, or the last millisecond would spin.
                let left =
                    at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
                PollTimeout::try_from(left.min(Duration::from_secs(3600)))
                    .unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(fd.as_fd(), flags)], timeout) {
            Ok(0) if deadline.is_some_and(|at| Instant::now() >= at) => return Ok(false),
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

fn read_until(mut stream: &File, bytes: &mut [u8], deadline: Instant) -> Result<Option<usize>> {
    loop {
        match stream.read(bytes) {
            Ok(0) => return Err(Error::Lost("it was closed".into())),
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let ready = wait_for(stream, PollFlags::POLLIN, Some(deadline));
                if !ready.map_err(Error::io("cannot wait for the agent"))? {
                    return Ok(None);
                }
            }
            Err(error) => return Err(Error::Lost(error.to_string())),
        }
    }
}

fn write_until(mut stream: &File, mut bytes: &[u8], deadline: Instant) -> Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let ready = wait_for(stream, PollFlags::POLLOUT, Some(deadline));
                if !ready.map_err(Error::io("cannot wait for the agent"))? {
                    return Err(Error::Deadline("it does not read".into()));
                }
            }
            Err(error) => return Err(Error::Lost(error.to_string())),
        }
    }
    Ok(())
}
