//! One command to a device process, one reply from it, within a time limit and within bounds. Whatever the process does
//! instead, it is never talked to again.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::error::{Gone, UserError};
use super::message::{Body, Command, HEADER, Header};

/// Longest that an operation takes, waiting for others included.
pub const LIMIT: Duration = Duration::from_secs(5);

/// When an operation that begins now has to be done.
pub fn deadline() -> Instant {
    Instant::now() + LIMIT
}

/// Most descriptors that a message of the server may come with; what we tell it.
pub const MOST_DESCRIPTORS: usize = 8;

/// Most bytes of data in a message, either way; what we tell the server.
pub const MOST_DATA: usize = 1 << 20;

/// Longest body of a command that a server sends us: address, count and data of DMA_WRITE.
const LONGEST_COMMAND: usize = 16 + MOST_DATA;

/// A command to a server.
#[derive(Debug)]
pub struct Request<'a> {
    pub command: Command,
    pub body: Body,
    /// They go along. At most as many as the server takes.
    pub descriptors: &'a [RawFd],
    /// Most bytes that the body of the reply may have.
    pub longest: usize,
}

impl Request<'_> {
    /// One without descriptors, the reply to which has at most `longest` bytes after its header.
    pub fn new(command: Command, body: Body, longest: usize) -> Self {
        Self {
            command,
            body,
            descriptors: &[],
            longest,
        }
    }
}

/// A reply that is no refusal.
#[derive(Debug)]
pub struct Reply {
    /// What comes after the header.
    pub body: Vec<u8>,
    /// What came along. Nobody needs to look at it: it is closed when it is dropped.
    pub descriptors: Vec<OwnedFd>,
}

/// A connection to a device process. Calls come from several threads; each is a whole exchange.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    turn: Mutex<Turn>,
    /// Told when a turn ends.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Turn {
    taken: bool,
    next_id: u16,
    gone: Option<Gone>,
}

impl Connection {
    /// # Errors
    /// The socket is none that can be used.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        // The time limit is kept by polling, as the limits of sockets begin anew with every byte.
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            turn: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    /// Hangs up when the process is gone, for whatever reason.
    pub fn lifeline(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.stream)
    }

    /// Sends a command and waits for its reply. An operation of several exchanges has one deadline.
    ///
    /// # Errors
    /// The process refused, or is gone: it has not answered by the deadline, closed the connection, answered what is no
    /// answer, or did one of these before.
    pub fn exchange(&self, deadline: Instant, request: Request<'_>) -> Result<Reply, UserError> {
        let command = request.command;
        let id = self.take_turn(command, deadline)?;
        let talk = Talk {
            stream: &self.stream,
            command,
            deadline,
        };
        let outcome = talk.converse(id, request);
        let mut turn = self.locked();
        turn.taken = false;
        let outcome = outcome.map_err(|gone| self.give_up(&mut turn, gone));
        drop(turn);
        self.ended.notify_one();
        outcome?.map_err(|source| UserError::Refused { command, source })
    }

    /// Waits until no other exchange is under way. Gives the number of the message.
    fn take_turn(&self, command: Command, deadline: Instant) -> Result<u16, Gone> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (mut turn, _) = self
            .ended
            .wait_timeout_while(self.locked(), left, |turn| {
                turn.taken && turn.gone.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        if turn.gone.is_none() && turn.taken {
            return Err(self.give_up(&mut turn, Gone::Silent(command)));
        }
        if let Some(gone) = turn.gone {
            return Err(gone);
        }
        turn.taken = true;
        turn.next_id = turn.next_id.wrapping_add(1);
        Ok(turn.next_id)
    }

    /// Never talks to the process again, because of `gone` or of what came before it.
    pub fn lose(&self, gone: Gone) -> Gone {
        self.give_up(&mut self.locked(), gone)
    }

    /// Lets go of the process. Gives why it went: the first reason stays.
    fn give_up(&self, turn: &mut Turn, gone: Gone) -> Gone {
        if let Some(first) = turn.gone {
            return first;
        }
        turn.gone = Some(gone);
        tracing::warn!("the device process is gone: {gone}");
        // Wakes whoever is in an exchange, and whoever watches the lifeline. It fails if the other end did it already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.ended.notify_all();
        gone
    }

    fn locked(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exchange under way.
struct Talk<'a> {
    stream: &'a UnixStream,
    command: Command,
    deadline: Instant,
}

impl Talk<'_> {
    /// The inner error is a refusal.
    fn converse(&self, id: u16, request: Request<'_>) -> Result<io::Result<Reply>, Gone> {
        let message = request.body.into_message(id, self.command);
        self.send(&message, request.descriptors)?;
        let (header, descriptors) = self.reply_header(id)?;
        let length = header
            .body()
            .filter(|length| *length <= request.longest)
            .ok_or(self.nonsense("its size"))?;
        let mut body = vec![0; length];
        self.receive_all(&mut body)?;
        Ok(match header.errno() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(Reply { body, descriptors }),
        })
    }

    /// The header of the reply to message `id`. Commands that the server sends meanwhile are refused.
    fn reply_header(&self, id: u16) -> Result<(Header, Vec<OwnedFd>), Gone> {
        loop {
            let (header, descriptors) = self.header()?;
            if header.is_command() {
                self.refuse(header)?;
            } else if !header.is_reply() {
                return Err(self.nonsense("its type"));
            } else if header.id != id {
                return Err(self.nonsense("the number of the message"));
            } else if header.command != self.command as u16 {
                return Err(self.nonsense("it is for another command"));
            } else {
                return Ok((header, descriptors));
            }
        }
    }

    /// Refuses a command of the server: to access guest memory by messages (DMA_READ, DMA_WRITE) is not offered, as all of
    /// it is mapped.
    fn refuse(&self, header: Header) -> Result<(), Gone> {
        let length = header
            .body()
            .filter(|length| *length <= LONGEST_COMMAND)
            .ok_or(self.nonsense("a command of the server has a wrong size"))?;
        let mut left = length;
        let mut ignored = [0; 4096];
        while left > 0 {
            let some = ignored.get_mut(..left.min(4096)).unwrap_or_default();
            self.receive_all(some)?;
            left = left.saturating_sub(some.len());
        }
        if header.wants_reply() {
            self.send(&header.refusal(libc::EOPNOTSUPP).to_bytes(), &[])?;
        }
        Ok(())
    }

    fn header(&self) -> Result<(Header, Vec<OwnedFd>), Gone> {
        let mut bytes = [0; HEADER];
        let mut filled = 0;
        let mut descriptors = Vec::new();
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            self.ready(libc::POLLIN)?;
            filled = filled.saturating_add(self.receive(rest, &mut descriptors)?);
            if descriptors.len() > MOST_DESCRIPTORS {
                return Err(self.nonsense("too many descriptors"));
            }
        }
        Ok((Header::parse(bytes), descriptors))
    }

    /// Receives some bytes, and the descriptors that come along.
    fn receive(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize, Gone> {
        let mut vectors = [libc::iovec {
            iov_base: into.as_mut_ptr().cast(),
            iov_len: into.len(),
        }];
        let mut raw = [-1; MOST_DESCRIPTORS];
        // SAFETY: the one vector is `into`, which nothing else uses meanwhile.
        let received = unsafe { self.stream.recv_with_fds(&mut vectors, &mut raw) };
        match received {
            Ok((count, came)) => {
                // SAFETY: the kernel has just made them for this process, and nobody else knows of them.
                let owned = raw
                    .iter()
                    .take(came)
                    .map(|one| unsafe { OwnedFd::from_raw_fd(*one) });
                descriptors.extend(owned);
                if count == 0 {
                    Err(Gone::Closed)
                } else {
                    Ok(count)
                }
            }
            Err(error) => match error.errno() {
                libc::EAGAIN | libc::EINTR => Ok(0),
                // The descriptors were more than there is room for, and are closed.
                libc::ENOBUFS => Err(self.nonsense("too many descriptors")),
                _ => Err(Gone::Closed),
            },
        }
    }

    /// Receives exactly `into`. Descriptors that come along are never made: the kernel drops what there is no room for.
    fn receive_all(&self, mut into: &mut [u8]) -> Result<(), Gone> {
        // Most of the time it came with the header, so there is nothing to wait for.
        while !into.is_empty() {
            match io::Read::read(&mut &*self.stream, into) {
                Ok(0) => return Err(Gone::Closed),
                Ok(count) => into = into.get_mut(count..).unwrap_or_default(),
                Err(error) if again(&error) => self.ready(libc::POLLIN)?,
                Err(_) => return Err(Gone::Closed),
            }
        }
        Ok(())
    }

    /// Sends all of `message`, the descriptors with its first bytes.
    fn send(&self, mut message: &[u8], mut descriptors: &[RawFd]) -> Result<(), Gone> {
        while !message.is_empty() {
            match self.stream.send_with_fds(&[message], descriptors) {
                Ok(count) => {
                    message = message.get(count..).unwrap_or_default();
                    descriptors = &[];
                }
                Err(error) if matches!(error.errno(), libc::EAGAIN | libc::EINTR) => {
                    self.ready(libc::POLLOUT)?;
                }
                Err(_) => return Err(Gone::Closed),
            }
        }
        Ok(())
    }

    /// Waits until the socket is ready for `events`, or the time is up.
    fn ready(&self, events: libc::c_short) -> Result<(), Gone> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Gone::Silent(self.command));
            }
            let mut entry = libc::pollfd {
                fd: self.stream.as_raw_fd(),
                events,
                revents: 0,
            };
            // Rounded up, so that it does not turn at the end of the time.
            let milliseconds = libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX);
            // SAFETY: one entry, which the kernel writes to.
            let ready = unsafe { libc::poll(&mut entry, 1, milliseconds.saturating_add(1)) };
            if ready > 0 {
                return Ok(());
            }
            // Nothing yet, or a signal (that is how vCPU threads are called away, but an access is finished first).
        }
    }

    fn nonsense(&self, what: &'static str) -> Gone {
        Gone::Nonsense(self.command, what)
    }
}

fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
