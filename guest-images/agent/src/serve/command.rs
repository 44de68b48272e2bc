//! A running command as one stream of a session.

use std::fs::File;
use std::io::{self, ErrorKind::Interrupted, ErrorKind::WouldBlock, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use fief_agent_proto::{
    Channel, ErrorKind, ExitStatus, Frame, Kind, MAX_PAYLOAD, Outbound, RemoteError, WINDOW,
    WindowSize,
};
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::inbox::Inbox;
use crate::spawn::{self, Spawned};

/// Output waiting in one session beyond which its commands are not read.
pub const OUTBOUND_ROOM: usize = 256 * 1024;
/// After a command's end, how long its output may be silent while a descendant still holds it open.
const QUIET_AFTER_EXIT: Duration = Duration::from_millis(100);
/// After a command's end, how much of its descendants' output is still passed on beyond what was there at its end.
const BYTES_AFTER_EXIT: usize = 256 * 1024;
/// Between SIGHUP and SIGKILL for a command whose client has gone.
pub const KILL_AFTER: Duration = Duration::from_secs(2);
/// Reads of one channel in one turn of the loop.
pub const READS_PER_TURN: usize = 4;
/// ^D: end of file for a terminal's line discipline.
const END_OF_TRANSMISSION: u8 = 4;

#[derive(Debug)]
pub struct Command {
    pid: Pid,
    terminal: bool,
    stdin: Option<File>,
    /// For stdin, while there is one.
    inbox: Inbox,
    out: Output,
    err: Output,
    exit: Option<Exit>,
    /// Set when cancelled: when to use SIGKILL.
    kill_at: Option<Instant>,
}

#[derive(Debug)]
struct Output {
    channel: Channel,
    end: Option<File>,
    credit: u32,
    /// The client does not read a terminal any more; what comes is dropped.
    discarded: bool,
}

#[derive(Debug)]
struct Exit {
    status: ExitStatus,
    quiet_until: Instant,
    bytes_left: usize,
}

impl Command {
    pub fn new(spawned: Spawned) -> Command {
        let terminal = spawned.stderr.is_none();
        let mut inbox = Inbox::default();
        if spawned.stdin.is_none() {
            inbox.close();
        }
        Command {
            pid: spawned.pid,
            terminal,
            stdin: spawned.stdin,
            inbox,
            out: Output::new(Channel::Out, Some(spawned.stdout)),
            err: Output::new(Channel::Err, spawned.stderr),
            exit: None,
            kill_at: None,
        }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Takes bytes for stdin.
    ///
    /// # Errors
    /// More than the window.
    pub fn data(&mut self, payload: &[u8]) -> Result<(), RemoteError> {
        self.inbox.data(payload)
    }

    /// The client ended stdin.
    ///
    /// # Errors
    /// The count does not match what arrived.
    pub fn end_input(&mut self, count: Option<u64>) -> Result<(), RemoteError> {
        self.inbox.end(count)?;
        if self.terminal {
            self.inbox.add(END_OF_TRANSMISSION);
        }
        Ok(())
    }

    /// The client does not read `channel` any more.
    pub fn discard(&mut self, channel: Channel) {
        let terminal = self.terminal;
        if let Some(output) = self.output(channel) {
            output.discarded = true;
            if !terminal {
                // The next write there gets SIGPIPE.
                output.end = None;
            }
        }
    }

    /// The client takes more of `channel`.
    ///
    /// # Errors
    /// More than the window.
    pub fn credit(&mut self, channel: Channel, bytes: u32) -> Result<(), RemoteError> {
        let Some(output) = self.output(channel) else {
            return Err(protocol("credit for stdin from its sender"));
        };
        let credit = output
            .credit
            .checked_add(bytes)
            .filter(|credit| *credit <= WINDOW);
        output.credit = credit.ok_or_else(|| protocol("more credit than the window"))?;
        Ok(())
    }

    pub fn resize(&self, size: WindowSize) {
        // It may have ended meanwhile.
        let _ = self
            .out
            .end
            .as_ref()
            .filter(|_| self.terminal)
            .map(|terminal| spawn::resize(terminal, size));
    }

    /// Signals the process group.
    pub fn signal(&self, number: i32) {
        if self.exit.is_none() {
            // Numbers that are none are refused by the kernel, and that is all.
            // SAFETY: kill has no memory effects.
            unsafe { libc::kill(-self.pid.as_raw(), number) };
        }
    }

    /// Its client has gone: SIGHUP now, SIGKILL later.
    pub fn cancel(&mut self, now: Instant) {
        self.stdin = None;
        self.inbox.close();
        self.out.end = None;
        self.err.end = None;
        if self.exit.is_none() && self.kill_at.is_none() {
            let _ = killpg(self.pid, Signal::SIGHUP);
            // A stopped one could not act on it.
            let _ = killpg(self.pid, Signal::SIGCONT);
            self.kill_at = Some(now + KILL_AFTER);
        }
    }

    /// If it still runs without a client: its process group and when to kill it.
    pub fn condemned(&self) -> Option<(Pid, Instant)> {
        self.kill_at
            .filter(|_| self.exit.is_none())
            .map(|at| (self.pid, at))
    }

    /// It was reaped.
    pub fn exited(&mut self, status: ExitStatus, now: Instant) {
        let waiting = self.out.bytes_ready() + self.err.bytes_ready();
        self.exit = Some(Exit {
            status,
            quiet_until: now + QUIET_AFTER_EXIT,
            bytes_left: waiting + BYTES_AFTER_EXIT,
        });
        self.stdin = None;
        self.inbox.close();
    }

    /// What to poll.
    pub fn interests<'a>(&'a self, room: bool, mut add: impl FnMut(Channel, PollFd<'a>)) {
        if let Some(stdin) = &self.stdin {
            // A pipe reports its reader's end (POLLERR) unasked; a terminal would report hang-up for ever.
            let flags = if self.inbox.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::POLLOUT
            };
            if !self.terminal || !flags.is_empty() {
                add(Channel::In, PollFd::new(stdin.as_fd(), flags));
            }
        }
        for output in [&self.out, &self.err] {
            if let Some(end) = output.end.as_ref().filter(|_| output.may_read(room)) {
                add(output.channel, PollFd::new(end.as_fd(), PollFlags::POLLIN));
            }
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
        if channel == Channel::In {
            if self.inbox.is_empty() && events.contains(PollFlags::POLLERR) {
                self.close_stdin(id, out);
            }
            return;
        }
        let exit = &mut self.exit;
        let output = if channel == Channel::Err {
            &mut self.err
        } else {
            &mut self.out
        };
        for _ in 0..READS_PER_TURN {
            if !output.may_read(out.len() < OUTBOUND_ROOM) {
                return;
            }
            let Some(count) = output.read(id, out, scratch) else {
                return;
            };
            if let Some(exit) = exit {
                exit.quiet_until = Instant::now() + QUIET_AFTER_EXIT;
                exit.bytes_left = exit.bytes_left.saturating_sub(count);
            }
        }
    }

    /// Does what needs no poll: writes stdin, gives credit back, watches the time.
    pub fn turn(&mut self, id: u32, now: Instant, out: &mut Outbound) {
        if self.kill_at.is_some_and(|at| at <= now) && self.exit.is_none() {
            let _ = killpg(self.pid, Signal::SIGKILL);
            self.kill_at = Some(now + KILL_AFTER);
        }
        self.write_stdin(id, out);
        let room = out.len() < OUTBOUND_ROOM;
        let starved = [&self.out, &self.err]
            .iter()
            .any(|output| output.end.is_some() && !output.may_read(room));
        if let Some(exit) = &mut self.exit {
            let quiet = exit.quiet_until <= now;
            if exit.bytes_left == 0 || (quiet && !starved) {
                // A descendant holds them: it outlives the command and this stream.
                self.out.end = None;
                self.err.end = None;
            } else if quiet {
                exit.quiet_until = now + QUIET_AFTER_EXIT;
            }
        }
    }

    /// When [`turn`](Self::turn) has to be called even if nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.exit {
            Some(exit) => Some(exit.quiet_until),
            None => self.kill_at,
        }
    }

    /// Its last frame, once all is said.
    pub fn last_frame(&self, id: u32) -> Option<Frame> {
        let exit = self.exit.as_ref()?;
        let silent = self.out.end.is_none() && self.err.end.is_none();
        if silent {
            Frame::json(id, Kind::Exited, &exit.status)
        } else {
            None
        }
    }

    fn output(&mut self, channel: Channel) -> Option<&mut Output> {
        match channel {
            Channel::In => None,
            Channel::Out => Some(&mut self.out),
            Channel::Err => Some(&mut self.err),
        }
    }

    fn write_stdin(&mut self, id: u32, out: &mut Outbound) {
        while let Some(mut stdin) = self.stdin.as_ref().filter(|_| !self.inbox.is_empty()) {
            match stdin.write(self.inbox.next()) {
                Ok(count) => self.inbox.passed_on(count),
                Err(error) if error.kind() == Interrupted => {}
                Err(error) if error.kind() == WouldBlock => break,
                Err(_) => self.close_stdin(id, out),
            }
        }
        if self.inbox.is_empty() && self.inbox.has_ended() && !self.terminal {
            self.stdin = None;
        }
        if let Some(credit) = self.inbox.credit_due() {
            out.frame(&Frame::credit(id, Channel::In, credit));
        }
    }

    /// The command does not read its stdin any more.
    fn close_stdin(&mut self, id: u32, out: &mut Outbound) {
        self.stdin = None;
        self.inbox.close();
        if !self.inbox.has_ended() {
            out.frame(&Frame::eof(id, Channel::In));
        }
    }
}

impl Output {
    fn new(channel: Channel, end: Option<File>) -> Output {
        Output {
            channel,
            end,
            credit: WINDOW,
            discarded: false,
        }
    }

    fn may_read(&self, room: bool) -> bool {
        self.end.is_some() && (self.discarded || (self.credit > 0 && room))
    }

    /// Reads once; None if there is nothing now or any more.
    fn read(&mut self, id: u32, out: &mut Outbound, scratch: &mut [u8]) -> Option<usize> {
        let most = if self.discarded {
            MAX_PAYLOAD
        } else {
            MAX_PAYLOAD.min(self.credit as usize)
        };
        let most = most.min(scratch.len());
        match self.end.as_ref()?.read(&mut scratch[..most]) {
            Ok(count @ 1..) => {
                if !self.discarded {
                    self.credit -= u32::try_from(count).unwrap_or(self.credit);
                    out.data(id, self.channel, &scratch[..count]);
                }
                Some(count)
            }
            Err(error) if error.kind() == Interrupted || error.kind() == WouldBlock => None,
            // A terminal without users says EIO.
            Ok(_) | Err(_) => {
                self.end = None;
                if !self.discarded {
                    out.frame(&Frame::eof(id, self.channel));
                }
                None
            }
        }
    }

    fn bytes_ready(&self) -> usize {
        let mut count: libc::c_int = 0;
        let Some(end) = &self.end else { return 0 };
        // SAFETY: FIONREAD writes one int.
        let result = unsafe { libc::ioctl(end.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        if result == 0 {
            usize::try_from(count).unwrap_or(0)
        } else {
            0
        }
    }
}

pub fn protocol(message: &str) -> RemoteError {
    RemoteError {
        kind: ErrorKind::Protocol,
        message: message.to_owned(),
    }
}

/// An I/O failure with what was tried.
pub fn io_error(what: &str, error: &io::Error) -> RemoteError {
    let kind = if error.kind() == io::ErrorKind::NotFound {
        ErrorKind::NotFound
    } else {
        ErrorKind::Io
    };
    RemoteError {
        kind,
        message: format!("{what}: {error}"),
    }
}
