//! The shim's loop: output into logs, events into the state, and the end.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use fief_api::ClientError;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::channel::{Channel, Order, Request};
use super::command::{self, Running};
use super::log::BoundedLog;
use super::{MESSAGES, ShimError, failed};
use crate::backend::{Backend, BackendError, Event, Spawned};
use crate::process::Child;
use crate::spec::Spec;
use crate::store::{Exit, Locked, Reason, State, Tenant};

/// How long a tenant may take to shut down when nobody waits for it any more.
const GRACE: Duration = Duration::from_secs(20);
/// How long a monitor that broke off may take to be gone.
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// Longest line of events, and of the monitor's messages, that is looked at.
const LONGEST_LINE: usize = 4096;

/// What a watch needs to know, and does not change.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    pub locked: &'a Locked,
    pub backend: &'a dyn Backend,
    pub signals: &'a SignalFd,
    pub spec: &'a Spec,
    pub order: &'a Order,
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    /// Somebody asked this shim for it.
    pub asked: bool,
}

/// Watches until the backend's process has ended; says how and why.
pub fn watch(
    watched: Watched<'_>,
    spawned: Spawned,
    state: State,
    channel: &Channel,
) -> Result<Ended, ShimError> {
    let Watched {
        locked,
        backend,
        signals,
        spec,
        order,
    } = watched;
    let mut watch = Watch {
        output: Output::open(&locked.tenant, spec, spawned)?,
        locked,
        backend,
        state,
        ended: None,
        asked_to_end: false,
        quiet: order.quiet.is_some(),
        deadline: None,
    };
    let command = match &order.command {
        Some(request) => {
            Some(command::run(&locked.tenant, request).map_err(failed("cannot run the command"))?)
        }
        None => None,
    };
    let mut channel = order.attached.then_some(channel);
    let mut command_output = command.as_ref().map(Running::output);
    loop {
        let happened = wait(
            [
                Some(watch.output.console.as_fd()),
                Some(watch.output.messages.as_fd()),
                watch.output.events.as_ref().map(AsFd::as_fd),
                Some(watch.output.child.process().as_fd()),
                Some(signals.as_fd()),
                channel.map(|channel| channel.stream().as_fd()),
                command_output,
            ],
            [watch.output.console_open, watch.output.messages_open],
            watch.deadline,
        )
        .map_err(failed("cannot wait for the tenant"))?;
        watch.take_events();
        watch.output.take();
        if happened[6]
            && let Some(from) = command_output
            && !watch.output.take_command(from)
        {
            command_output = None;
            // It has ended and its tenant was told to shut down.
            watch.deadline.get_or_insert(Instant::now() + GRACE);
        }
        if happened[3] {
            break;
        }
        if happened[4] && matches!(signals.read_signal(), Ok(Some(_))) {
            watch.kill();
        }
        if happened[5]
            && let Some(from) = channel
        {
            match heard(from) {
                Heard::Request(Request::Kill) => watch.kill(),
                Heard::Nothing => {}
                Heard::End => {
                    channel = None;
                    watch.abandoned(spec);
                }
            }
        }
        if watch
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            watch.kill();
        }
    }
    watch.finish(command)
}

struct Watch<'a> {
    output: Output,
    locked: &'a Locked,
    backend: &'a dyn Backend,
    state: State,
    ended: Option<(Reason, Option<String>)>,
    asked_to_end: bool,
    /// It runs for its files alone.
    quiet: bool,
    /// When patience is over.
    deadline: Option<Instant>,
}

impl Watch<'_> {
    fn kill(&mut self) {
        self.asked_to_end = true;
        self.deadline = None;
        self.backend.hurry();
        // It may just have ended by itself.
        let _ = self.output.child.kill();
    }

    /// The `fief` whose tenant this is was killed.
    fn abandoned(&mut self, spec: &Spec) {
        if spec.remove || self.quiet || self.backend.press_power_button().is_err() {
            self.kill();
        } else {
            self.deadline.get_or_insert(Instant::now() + GRACE);
        }
    }

    fn take_events(&mut self) {
        for line in self.output.event_lines() {
            match self.backend.interpret(&line) {
                Some(Event::Rebooted) => {
                    self.state.reboots += 1;
                    // Worth knowing, not worth ending the tenant for.
                    let _ = self.locked.write_state(&self.state);
                    if !self.quiet {
                        crate::provide::give_beside(&self.locked.tenant);
                    }
                }
                Some(Event::Ended(reason, detail)) => self.ended = Some((reason, detail)),
                None => {}
            }
        }
    }

    fn finish(mut self, command: Option<Running>) -> Result<Ended, ShimError> {
        let status = self
            .output
            .child
            .wait()
            .map_err(failed("cannot wait for the monitor"))?;
        self.take_events();
        self.output.take();
        let code = command.and_then(|command| {
            // The tenant is gone: the command's connection is too.
            let code = command.join();
            code.filter(|_| !self.asked_to_end)
        });
        let mut exit = match self.backend.meaning(status) {
            Some((reason, detail)) => Exit::now(reason, detail),
            None => judge(
                status,
                self.ended,
                self.asked_to_end,
                self.backend.process(),
                &self.output.last_message,
            ),
        };
        if let Some(code) = code.filter(|_| exit.code == 0) {
            exit.code = code;
        }
        Ok(Ended {
            exit,
            asked: self.asked_to_end,
        })
    }
}

/// Why the process ended: the backend's own word first.
fn judge(
    status: ExitStatus,
    ended: Option<(Reason, Option<String>)>,
    asked: bool,
    process: &str,
    last_message: &str,
) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    let message = || Some(last_message.to_owned()).filter(|message| !message.is_empty());
    match (ended, status.signal()) {
        (Some((reason, detail)), None) => Exit::now(reason, detail),
        (_, Some(_)) if asked => Exit::now(Reason::Killed, None),
        (_, Some(9)) => Exit::now(Reason::Killed, Some(format!("{process} was killed"))),
        (_, Some(signal)) => {
            let detail = format!("{process} died of signal {signal}; monitor.log may tell more");
            Exit::now(Reason::Failed, Some(detail))
        }
        (None, None) if status.success() => Exit::now(Reason::Poweroff, None),
        (None, None) => Exit::now(
            Reason::Failed,
            message().or_else(|| Some(format!("{process} ended ({status})"))),
        ),
    }
}

/// A monitor that could not be set up: ends it, and adds its own last words to the error.
pub fn give_up(locked: &Locked, spec: &Spec, spawned: Spawned, error: ShimError) -> ShimError {
    let Ok(mut output) = Output::open(&locked.tenant, spec, spawned) else {
        return error;
    };
    let refused = matches!(
        &error,
        ShimError::Backend(BackendError::Api(ClientError::Refused { .. }))
    );
    // A connection breaks a moment before its process is gone.
    let ended = !refused && output.child.process().wait(LAST_MOMENT);
    let _ = output.child.kill();
    let _ = output.child.wait();
    output.take();
    if ended && !output.last_message.is_empty() {
        return ShimError::Backend(BackendError::Ended(output.last_message));
    }
    error
}

/// The process and what comes out of it.
struct Output {
    child: Child,
    console: OwnedFd,
    console_open: bool,
    console_log: BoundedLog,
    messages: OwnedFd,
    messages_open: bool,
    messages_log: BoundedLog,
    /// The last line of `messages`.
    last_message: String,
    partial_message: Vec<u8>,
    events: Option<std::fs::File>,
    partial_event: Vec<u8>,
}

impl Output {
    fn open(tenant: &Tenant, spec: &Spec, spawned: Spawned) -> Result<Self, ShimError> {
        let Spawned {
            child,
            console,
            messages,
            events,
            unlimited: _,
        } = spawned;
        for end in [&console, &messages] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(|errno| failed("cannot set up the tenant's output")(errno.into()))?;
        }
        let log = failed("cannot open the tenant's logs");
        let logs = BoundedLog::open(&tenant.console(), spec.log)
            .and_then(|console| Ok((console, BoundedLog::open(&tenant.monitor_log(), MESSAGES)?)));
        let (console_log, messages_log) = logs.map_err(log)?;
        Ok(Self {
            child,
            console,
            console_open: true,
            console_log,
            messages,
            messages_open: true,
            messages_log,
            last_message: String::new(),
            partial_message: Vec::new(),
            events,
            partial_event: Vec::new(),
        })
    }

    /// Takes what there is now. A log that cannot be written loses output; the tenant goes on.
    fn take(&mut self) {
        let log = &mut self.console_log;
        self.console_open =
            self.console_open && drain(self.console.as_fd(), |bytes| drop(log.write(bytes)));
        let mut lines = Vec::new();
        let (log, partial) = (&mut self.messages_log, &mut self.partial_message);
        self.messages_open = self.messages_open
            && drain(self.messages.as_fd(), |bytes| {
                let _ = log.write(bytes);
                lines.extend(split(partial, bytes));
            });
        if let Some(last) = lines.into_iter().rev().find(|line| !line.trim().is_empty()) {
            self.last_message = last;
        }
    }

    /// Takes a detached command's output; false at its end.
    fn take_command(&mut self, from: BorrowedFd<'_>) -> bool {
        let log = &mut self.console_log;
        drain(from, |bytes| drop(log.write(bytes)))
    }

    fn event_lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 4096];
        let Some(events) = &mut self.events else {
            return lines;
        };
        while let Ok(count @ 1..) = events.read(&mut buffer) {
            lines.extend(split(&mut self.partial_event, &buffer[..count]));
        }
        lines
    }
}

/// Reads until there is nothing now; false at the end of the file.
fn drain(from: BorrowedFd<'_>, mut each: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; 16 << 10];
    // A guest that prints faster than this is read in the next round, after everything else.
    for _ in 0..64 {
        match nix::unistd::read(from, &mut buffer) {
            Ok(0) => return false,
            Ok(count) => each(&buffer[..count]),
            Err(Errno::EINTR) => {}
            Err(_) => return true,
        }
    }
    true
}

/// Adds `bytes` to a line that is not complete yet; the lines that now are. A line that is too long loses its rest.
fn split(partial: &mut Vec<u8>, bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    for &byte in bytes {
        if byte == b'\n' {
            lines.push(String::from_utf8_lossy(partial).into_owned());
            partial.clear();
        } else if partial.len() < LONGEST_LINE {
            partial.push(byte);
        }
    }
    lines
}

/// What came over the channel.
pub enum Heard {
    Request(Request),
    Nothing,
    End,
}

pub fn heard(channel: &Channel) -> Heard {
    let mut buffer = [0; 256];
    let mut stream = channel.stream();
    match stream.read(&mut buffer) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Heard::Nothing,
        Ok(0) | Err(_) => Heard::End,
        // Several may have come while nobody listened; one is enough.
        Ok(count) => buffer[..count]
            .split(|&byte| byte == b'\n')
            .find_map(|line| serde_json::from_slice(line).ok())
            .map_or(Heard::Nothing, Heard::Request),
    }
}

/// Waits until one of the descriptors is readable or at its end; the first two only while `open`.
fn wait(
    fds: [Option<BorrowedFd<'_>>; 7],
    open: [bool; 2],
    deadline: Option<Instant>,
) -> io::Result<[bool; 7]> {
    let mut polled = Vec::with_capacity(fds.len());
    let mut places = Vec::with_capacity(fds.len());
    for (place, fd) in fds.into_iter().enumerate() {
        if let Some(fd) = fd.filter(|_| open.get(place).copied().unwrap_or(true)) {
            polled.push(PollFd::new(fd, PollFlags::POLLIN));
            places.push(place);
        }
    }
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    let mut happened = [false; 7];
    match poll(&mut polled, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(happened),
        Err(error) => return Err(error.into()),
    }
    for (fd, place) in polled.iter().zip(places) {
        happened[place] = fd.revents().is_some_and(|events| !events.is_empty());
    }
    Ok(happened)
}
