//! One stream between a program on the host and one in the guest.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::packet::{Header, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// Bytes that a guest may send ahead of the program on the host: what we advertise as our receive buffer.
pub const BUFFER_BYTES: u32 = 64 << 10;

/// Names a connection: ports on the host's and on the guest's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The guest was asked and has not answered.
    Requested,
    /// Data may flow.
    Open,
    /// The host's program is gone; the guest was told, and has to confirm with a reset.
    Closing,
}

/// The guest sent more than it was allowed to.
#[derive(Debug)]
pub struct Overrun;

/// One connection.
pub struct Connection {
    pub stream: UnixStream,
    pub stage: Stage,
    /// When a stage that waits for the guest is given up.
    pub deadline: Option<Instant>,
    /// What the guest sent and the program on the host has not taken. At most [`BUFFER_BYTES`].
    outgoing: VecDeque<u8>,
    /// The stream may have data: it is read when there is a receive buffer and credit, and not watched meanwhile.
    pub readable: bool,
    /// The stream has hung up: it is not watched at all any more.
    pub hung_up: bool,
    /// The end of the stream was read, and the guest was told that no more comes.
    pub finished_reading: bool,
    /// What the guest has shut down.
    guest_shutdown: u32,
    /// The write side of the stream was shut down after the guest's.
    finished_writing: bool,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    /// Size of the guest's buffer and what it has taken from it, as it last said.
    guest_buffer: u32,
    guest_forwarded: u32,
    /// The guest was asked for credit and has not answered.
    pub credit_requested: bool,
    /// Bytes passed on to the program on the host, modulo 2^32; and what of it the guest was last told.
    pub forwarded: u32,
    pub told_forwarded: u32,
    /// What the stream is watched for.
    watched: Option<EventSet>,
}

impl Connection {
    /// A connection over `stream`, which must not block.
    pub fn new(stream: UnixStream, stage: Stage) -> Self {
        Self {
            stream,
            stage,
            deadline: None,
            outgoing: VecDeque::new(),
            readable: false,
            hung_up: false,
            finished_reading: false,
            guest_shutdown: 0,
            finished_writing: false,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            credit_requested: false,
            forwarded: 0,
            told_forwarded: 0,
            watched: None,
        }
    }

    /// Takes note of the credit that every packet of the guest carries (virtio 1.3 §5.10.6.3).
    pub fn note_credit(&mut self, header: &Header) {
        self.guest_buffer = header.buffer_size;
        self.guest_forwarded = header.forwarded;
        self.credit_requested = false;
    }

    /// Bytes that the guest has room for. A guest whose numbers make no sense gets nothing.
    pub fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(in_flight)
    }

    /// There may be something to read for the guest, and it may be told.
    pub fn wants_to_send(&self) -> bool {
        self.stage == Stage::Open
            && (self.readable || self.hung_up)
            && !self.finished_reading
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    /// Counts `count` bytes as sent to the guest.
    pub fn note_sent(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }

    /// Takes data from the guest: writes what the stream takes now and keeps the rest.
    ///
    /// # Errors
    /// [`Overrun`] when the rest is more than the buffer that the guest knows of.
    pub fn accept(&mut self, data: &[u8]) -> Result<(), Overrun> {
        let mut rest = data;
        while self.outgoing.is_empty() && !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(count) => {
                    self.note_forwarded(count);
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    // Nobody reads on the host: the bytes count as taken, and the hang-up ends the connection.
                    self.note_forwarded(rest.len());
                    return Ok(());
                }
            }
        }
        if self.outgoing.len() + rest.len() > BUFFER_BYTES as usize {
            return Err(Overrun);
        }
        self.outgoing.extend(rest);
        Ok(())
    }

    /// Writes as much of what is kept as the stream takes.
    pub fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            let (front, _) = self.outgoing.as_slices();
            match self.stream.write(front) {
                Ok(count) => {
                    self.outgoing.drain(..count);
                    self.note_forwarded(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.note_forwarded(self.outgoing.len());
                    self.outgoing.clear();
                }
            }
        }
    }

    /// Everything that the guest sent has been passed on.
    pub fn is_flushed(&self) -> bool {
        self.outgoing.is_empty()
    }

    fn note_forwarded(&mut self, count: usize) {
        // At most 64 KiB a call.
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// The guest may send again but does not know how much.
    pub fn owes_credit(&self) -> bool {
        self.forwarded.wrapping_sub(self.told_forwarded) >= BUFFER_BYTES / 2
    }

    /// Notes that the guest shuts down one or both directions.
    pub fn shut_down(&mut self, flags: u32) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
    }

    /// The guest has said that it sends no more.
    pub fn guest_finished(&self) -> bool {
        self.guest_shutdown & SHUTDOWN_SEND != 0
    }

    /// The guest has closed its socket.
    pub fn guest_closed(&self) -> bool {
        self.guest_shutdown == SHUTDOWN_BOTH
    }

    /// Passes the guest's end of data on once everything before it has been written. True if nothing is left to do in
    /// either direction.
    pub fn settle(&mut self) -> bool {
        if self.guest_finished() && self.outgoing.is_empty() && !self.finished_writing {
            self.finished_writing = true;
            // It may have hung up meanwhile; then there is nobody to tell.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
        let guest_takes_no_more = self.guest_shutdown & SHUTDOWN_RECEIVE != 0;
        self.finished_writing && (guest_takes_no_more || self.finished_reading)
    }

    /// What the stream is to be watched for: `None` not at all.
    pub fn interest(&self) -> Option<EventSet> {
        if self.hung_up {
            return None;
        }
        let mut events = EventSet::empty();
        let reading = self.stage == Stage::Open && !self.finished_reading;
        if reading && !self.readable && self.guest_shutdown & SHUTDOWN_RECEIVE == 0 {
            events |= EventSet::IN;
        }
        if !self.outgoing.is_empty() {
            events |= EventSet::OUT;
        }
        Some(events)
    }

    /// What the stream was last watched for, and from now on `now`.
    pub fn rewatch(&mut self, now: Option<EventSet>) -> Option<EventSet> {
        std::mem::replace(&mut self.watched, now)
    }

    /// The stream's descriptor.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// A program on the host that has connected and has not yet said to which port it wants.
pub struct Handshake {
    pub stream: UnixStream,
}

/// The longest line: `CONNECT 4294967295\n`, and some blanks.
const LONGEST_LINE: usize = 32;

/// What a handshake has come to.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// Not a whole line yet.
    Nothing,
    /// `CONNECT port`.
    Port(u32),
    /// Something else, too much, or the end.
    Nonsense,
}

impl Handshake {
    /// Looks at what has come and takes the line, and no byte behind it, when it is whole.
    pub fn read(&mut self) -> Said {
        let mut line = [0; LONGEST_LINE];
        let count = match self.peek(&mut line) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Said::Nothing,
            Err(_) => return Said::Nonsense,
        };
        let seen = line.get(..count).unwrap_or_default();
        let Some(end) = seen.iter().position(|&byte| byte == b'\n') else {
            return if count == 0 || count == LONGEST_LINE {
                Said::Nonsense
            } else {
                Said::Nothing
            };
        };
        let mut taken = vec![0; end + 1];
        if self.stream.read_exact(&mut taken).is_err() {
            return Said::Nonsense;
        }
        let text = std::str::from_utf8(&taken).ok();
        let port = text.and_then(|text| text.trim().strip_prefix("CONNECT "));
        match port.and_then(|port| port.trim().parse().ok()) {
            Some(port) => Said::Port(port),
            None => Said::Nonsense,
        }
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer is writable for its length, and the descriptor is open.
        let count = unsafe {
            libc::recv(
                self.stream.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}
