//! The client: a reader thread hands frames to the streams they belong to, callers write under a lock.
//!
//! The reader thread never writes, and the agent always reads, because what it must take in is bounded by the windows:
//! so neither side can wait for the other in a circle.

mod process;
mod pump;
mod socket;
mod stream;
mod transfer;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use process::{ChannelReader, Process, Remote, StdinWriter};
pub use pump::{Terminals, pump};
pub use socket::RemoteSocket;
use stream::{End, Stream};

use crate::handshake::wait_for;
use crate::{
    AgentHello, Decoder, Error, ExecRequest, Frame, FrameError, HEADER_LEN, Inbound, Kind,
    MAX_PAYLOAD, Provide, Result, Session, SetClock, Shutdown, Started, Stats, handshake,
    handshake_serial,
};

/// A session with an agent. Any number of commands may run through it at once, from any threads.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    /// Closed to wake the reader thread.
    wake: Option<OwnedFd>,
}

impl Connection {
    /// Begins a session on a fresh connection: vsock, a relay's socket.
    ///
    /// # Errors
    /// As [`handshake`], and [`Error::Boot`] if the agent runs but the tenant's root is not there.
    pub fn open(stream: impl Into<OwnedFd>, deadline: Instant) -> Result<Connection> {
        Connection::new(handshake(stream, deadline)?)
    }

    /// Begins a session on a serial port that others may have used before.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_serial(stream: impl Into<OwnedFd>, deadline: Instant) -> Result<Connection> {
        Connection::new(handshake_serial(stream, deadline)?)
    }

    /// Uses a session that is already open.
    ///
    /// # Errors
    /// [`Error::Boot`]; [`Error::Io`] if no thread can be started.
    pub fn new(session: Session) -> Result<Connection> {
        if let Some(problem) = session.hello.problem {
            return Err(Error::Boot(problem));
        }
        Connection::new_despite_problem(session)
    }

    /// As [`Connection::new`], also if the tenant's root could not be set up: to look around in the initramfs.
    ///
    /// # Errors
    /// [`Error::Io`] if no thread can be started.
    pub fn new_despite_problem(session: Session) -> Result<Connection> {
        let (wake_read, wake) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(io::Error::from)
            .map_err(Error::io("cannot make a pipe"))?;
        let shared = Arc::new(Shared {
            stream: session.stream,
            write: Mutex::new(()),
            streams: Mutex::new(Streams {
                next: 1,
                open: HashMap::new(),
                failed: None,
            }),
            hello: session.hello,
        });
        let for_thread = Arc::clone(&shared);
        let decoder = session.decoder;
        let reader = std::thread::Builder::new()
            .name("agent-reader".into())
            .spawn(move || {
                let error = for_thread.read_frames(decoder, &wake_read);
                for_thread.fail(&error);
            })
            .map_err(Error::io("cannot start a thread"))?;
        Ok(Connection {
            shared,
            reader: Some(reader),
            wake: Some(wake),
        })
    }

    /// What the agent said about itself.
    pub fn hello(&self) -> &AgentHello {
        &self.shared.hello
    }

    /// Runs a command; returns when it has started.
    ///
    /// Dropping the last handle of the [`Process`] before its end cancels it (SIGHUP, then SIGKILL).
    ///
    /// # Errors
    /// [`Error::Remote`] with the kinds of [`ErrorKind`](crate::ErrorKind) if it cannot be started,
    /// [`Error::TooLong`], or the connection's failure.
    pub fn exec(&self, request: &ExecRequest) -> Result<Process> {
        let stream = self.shared.open(Kind::Exec, request)?;
        let process = Process::new(stream, request);
        process.wait_started()?;
        Ok(process)
    }

    /// Asks whether the agent is there.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn ping(&self) -> Result<()> {
        self.shared.open_empty(Kind::Ping)?.wait_done().map(drop)
    }

    /// Asks for load and memory.
    ///
    /// # Errors
    /// The connection's failure, or the agent's if it cannot read `/proc`.
    pub fn stats(&self) -> Result<Stats> {
        let body = self.shared.open_empty(Kind::Stats)?.wait_done()?;
        serde_json::from_slice(&body).map_err(|_| Error::Protocol("stats that cannot be read"))
    }

    /// Sets the tenant's clock.
    ///
    /// # Errors
    /// The connection's failure, or the kernel's.
    pub fn set_clock(&self, clock: SetClock) -> Result<()> {
        self.shared
            .open(Kind::SetClock, &clock)?
            .wait_done()
            .map(drop)
    }

    /// Makes names and an account be there, whatever was before; returns when they are.
    ///
    /// # Errors
    /// The connection's failure, or the agent's: an image whose files it does not understand, a request out of bounds.
    /// An agent older than this request ends the session.
    pub fn provide(&self, request: &Provide) -> Result<()> {
        self.shared
            .open(Kind::Provide, request)?
            .wait_done()
            .map(drop)
    }

    /// Begins to shut the tenant down; the connection will end.
    ///
    /// # Errors
    /// The connection's failure, or the agent's if it cannot reach the init.
    pub fn shutdown(&self, request: Shutdown) -> Result<()> {
        self.shared
            .open(Kind::Shutdown, &request)?
            .wait_done()
            .map(drop)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.fail(&Error::Lost("this side closed it".into()));
        drop(self.wake.take());
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// What streams share.
#[derive(Debug)]
struct Shared {
    stream: File,
    /// Held while a frame is written, so that frames do not mix.
    write: Mutex<()>,
    streams: Mutex<Streams>,
    hello: AgentHello,
}

#[derive(Debug)]
struct Streams {
    next: u32,
    open: HashMap<u32, Arc<Stream>>,
    failed: Option<Error>,
}

impl Shared {
    fn open<T: serde::Serialize>(self: &Arc<Self>, kind: Kind, body: &T) -> Result<Arc<Stream>> {
        let payload = serde_json::to_vec(body)
            .map_err(|_| Error::Protocol("a request that has no JSON form"))?;
        if payload.len() > MAX_PAYLOAD {
            return Err(Error::TooLong {
                size: payload.len(),
                limit: MAX_PAYLOAD,
            });
        }
        self.open_with(kind, payload)
    }

    fn open_empty(self: &Arc<Self>, kind: Kind) -> Result<Arc<Stream>> {
        self.open_with(kind, Vec::new())
    }

    fn open_with(self: &Arc<Self>, kind: Kind, payload: Vec<u8>) -> Result<Arc<Stream>> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &streams.failed {
            return Err(error.clone());
        }
        let id = loop {
            let id = streams.next;
            streams.next = id.wrapping_add(1).max(1);
            if !streams.open.contains_key(&id) {
                break id;
            }
        };
        let stream = Arc::new(Stream::new(id, Arc::clone(self)));
        streams.open.insert(id, Arc::clone(&stream));
        drop(streams);
        self.send(&Frame {
            stream: id,
            kind,
            channel: crate::Channel::In,
            payload,
        })?;
        Ok(stream)
    }

    /// Writes one frame; waits while the connection is full.
    fn send(&self, frame: &Frame) -> Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_LEN + frame.payload.len());
        frame.encode(&mut bytes);
        self.send_bytes(&bytes)
    }

    fn send_bytes(&self, mut bytes: &[u8]) -> Result<()> {
        let _one_at_a_time = self.write.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &self
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .failed
        {
            return Err(error.clone());
        }
        while !bytes.is_empty() {
            match (&self.stream).write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait_for(&self.stream, PollFlags::POLLOUT, None)
                        .map_err(Error::io("cannot wait for the agent"))?;
                }
                Err(error) => {
                    // Half a frame may be out: nothing can follow it.
                    let error = Error::Lost(error.to_string());
                    self.fail(&error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Reads until the session ends; returns why.
    fn read_frames(&self, mut decoder: Decoder, wake: &OwnedFd) -> Error {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            while let Some(inbound) = decoder.event() {
                let result = match inbound {
                    Inbound::Frame(frame) => self.dispatch(frame),
                    Inbound::Malformed(error) => Err(error.into()),
                    Inbound::Preamble(_) => Err(FrameError::Preamble.into()),
                };
                if let Err(error) = result {
                    return error;
                }
            }
            match (&self.stream).read(&mut bytes) {
                Ok(0) => return Error::Lost("the agent closed it".into()),
                Ok(count) => decoder.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut fds = [
                        PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
                        PollFd::new(wake.as_fd(), PollFlags::POLLIN),
                    ];
                    let polled = poll(&mut fds, PollTimeout::NONE);
                    if polled.is_ok() && fds[1].revents().is_some_and(|events| !events.is_empty()) {
                        return Error::Lost("this side closed it".into());
                    }
                }
                Err(error) => return Error::Lost(error.to_string()),
            }
        }
    }

    fn dispatch(&self, frame: Frame) -> Result<()> {
        if frame.stream == 0 {
            return match frame.parse::<crate::RemoteError>() {
                Ok(error) if frame.kind == Kind::Error => Err(error.into()),
                _ => Err(Error::Protocol("unexpected frame on stream 0")),
            };
        }
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = if frame.kind.ends() {
            streams.open.remove(&frame.stream)
        } else {
            streams.open.get(&frame.stream).cloned()
        };
        drop(streams);
        // A stream this side already forgot is none of the agent's mistakes.
        stream.map_or(Ok(()), |stream| stream.receive(frame))
    }

    /// Ends everything with `error`, unless it ended before.
    fn fail(&self, error: &Error) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.failed.is_some() {
            return;
        }
        streams.failed = Some(error.clone());
        let open = std::mem::take(&mut streams.open);
        drop(streams);
        for stream in open.into_values() {
            stream.end(End::Failed(error.clone()));
        }
    }
}

/// The body of `Started`, if the agent sent one.
fn parse_started(frame: &Frame) -> Result<Started> {
    frame
        .parse()
        .map_err(|_| Error::Protocol("a start message that cannot be read"))
}

#[cfg(test)]
mod tests;
