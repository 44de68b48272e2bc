//! One client's session: frames in, streams, frames out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::Instant;

use fief_agent_proto::{
    AgentHello, Channel, ClientHello, Connect, Decoder, ErrorKind, ExecRequest, ExitStatus, Frame,
    FrameError, Inbound, Kind, MAX_STREAMS, Outbound, Provide, ReadFile, RemoteError, SetClock,
    Shutdown, Signal, Started, VERSION, WindowSize, WriteFile, preamble_reply,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::command::{Command, OUTBOUND_ROOM, io_error, protocol};
use super::file::{Reading, Writing};
use super::socket::Socket;
use super::system;
use crate::log;
use crate::provide::{self, Providing, Sshd};
use crate::spawn::spawn;

/// Answers waiting beyond which a client that does not read them is not read either.
const ANSWERS_ROOM: usize = 2 * OUTBOUND_ROOM;

/// What requests need to know, and what they leave for the server to do.
#[derive(Debug)]
pub struct Context {
    pub hello: AgentHello,
    pub default_user: Option<String>,
    /// Where what the host gives goes; none for a program, whose system is none of the host's.
    pub root: Option<PathBuf>,
    pub sshd: Sshd,
    /// A client asked for it.
    pub shutdown: Option<Shutdown>,
    /// Process groups without a client, and when to kill them.
    pub condemned: Vec<(Pid, Instant)>,
}

#[derive(Debug)]
pub struct Session {
    file: File,
    /// A serial port outlives its clients.
    serial: bool,
    /// The serial port's host side is not connected.
    hung_up: bool,
    over: bool,
    decoder: Decoder,
    greeted: bool,
    streams: BTreeMap<u32, Stream>,
    pub out: Outbound,
}

#[derive(Debug)]
enum Stream {
    Command(Box<Command>),
    Writing(Writing),
    Reading(Reading),
    Providing(Providing),
    Socket(Box<Socket>),
}

impl Session {
    pub fn new(file: File, serial: bool) -> Session {
        Session {
            file,
            serial,
            hung_up: false,
            over: false,
            decoder: Decoder::for_client_bytes(),
            greeted: false,
            streams: BTreeMap::new(),
            out: Outbound::default(),
        }
    }

    /// Whether to drop it.
    pub fn is_over(&self) -> bool {
        self.over && (self.out.is_empty() || self.hung_up)
    }

    /// Whether it is a serial port that waits for its host side, which poll cannot wait for.
    pub fn waits_for_host(&mut self) -> bool {
        if self.hung_up {
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            let still = poll(&mut fds, PollTimeout::ZERO).is_ok()
                && fds[0]
                    .revents()
                    .is_some_and(|events| events.contains(PollFlags::POLLHUP));
            self.hung_up = still;
        }
        self.hung_up
    }

    /// The connection, and what to poll it for; None while that would spin.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let mut flags = PollFlags::empty();
        flags.set(
            PollFlags::POLLIN,
            !self.over && self.out.len() < ANSWERS_ROOM,
        );
        flags.set(PollFlags::POLLOUT, !self.out.is_empty());
        (!self.hung_up).then_some((self.file.as_fd(), flags))
    }

    /// What to poll the streams for.
    pub fn stream_interests<'a>(&'a self, mut add: impl FnMut(u32, Channel, PollFd<'a>)) {
        let room = self.out.len() < OUTBOUND_ROOM;
        for (id, stream) in &self.streams {
            match stream {
                Stream::Command(command) => {
                    command.interests(room, |channel, fd| add(*id, channel, fd));
                }
                Stream::Socket(socket) => {
                    socket.interests(room, |channel, fd| add(*id, channel, fd));
                }
                Stream::Writing(_) | Stream::Reading(_) | Stream::Providing(_) => {}
            }
        }
    }

    /// Whether a stream has work that needs no poll.
    pub fn is_busy(&self) -> bool {
        let room = self.out.len() < OUTBOUND_ROOM;
        self.streams
            .values()
            .any(|stream| matches!(stream, Stream::Reading(reading) if reading.may_read(room)))
    }

    /// The next time that matters.
    pub fn deadline(&self) -> Option<Instant> {
        let of = |stream: &Stream| {
            if let Stream::Command(command) = stream {
                command.deadline()
            } else {
                None
            }
        };
        self.streams.values().filter_map(of).min()
    }

    /// The poll said something about the connection.
    pub fn ready(&mut self, events: PollFlags, context: &mut Context, scratch: &mut [u8]) {
        if events.contains(PollFlags::POLLIN) {
            match self.file.read(scratch) {
                // A virtio port says so when its host side is not connected.
                Ok(0) => self.lose(context),
                Ok(count) => {
                    self.decoder.push(&scratch[..count]);
                    self.take_frames(context);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(_) => self.lose(context),
            }
        } else if events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            self.lose(context);
        }
    }

    /// The poll said something about a stream.
    pub fn stream_ready(
        &mut self,
        id: u32,
        channel: Channel,
        events: PollFlags,
        scratch: &mut [u8],
    ) {
        match self.streams.get_mut(&id) {
            Some(Stream::Command(command)) => {
                command.ready(id, channel, events, &mut self.out, scratch);
            }
            Some(Stream::Socket(socket)) => {
                socket.ready(id, channel, events, &mut self.out, scratch);
            }
            _ => {}
        }
    }

    /// Lets every stream do what needs no poll, ends those that are done, and writes what waits.
    pub fn turn(&mut self, now: Instant, context: &mut Context, scratch: &mut [u8]) {
        let mut ended = Vec::new();
        for (id, stream) in &mut self.streams {
            let last = match stream {
                Stream::Command(command) => {
                    command.turn(*id, now, &mut self.out);
                    command.last_frame(*id)
                }
                Stream::Reading(reading) => reading.turn(*id, &mut self.out, scratch),
                Stream::Providing(providing) => providing.last_frame(*id),
                Stream::Socket(socket) => socket.turn(*id, &mut self.out),
                Stream::Writing(_) => None,
            };
            if let Some(frame) = last {
                self.out.frame(&frame);
                ended.push(*id);
            }
        }
        ended.iter().for_each(|id| drop(self.streams.remove(id)));
        if !self.out.is_empty() && !self.hung_up && self.out.flush_to(&self.file).is_err() {
            self.lose(context);
        }
    }

    /// A process was reaped; whether it was this session's.
    pub fn exited(&mut self, pid: Pid, status: ExitStatus, now: Instant) -> bool {
        self.streams.values_mut().any(|stream| match stream {
            Stream::Command(command) if command.pid() == pid => {
                command.exited(status, now);
                true
            }
            Stream::Providing(providing) if providing.pid() == pid => {
                providing.exited(status);
                true
            }
            _ => false,
        })
    }

    /// Whether `pid` is a command of this session that was cancelled.
    pub fn condemned(&self, pid: Pid) -> bool {
        self.streams.values().any(
            |stream| matches!(stream, Stream::Command(command) if command.condemned().is_some_and(|(id, _)| id == pid)),
        )
    }

    /// The client has gone.
    pub fn lose(&mut self, context: &mut Context) {
        self.forget(context);
        self.decoder.restart();
        self.hung_up = true;
        self.over = !self.serial;
    }

    /// Ends all streams and forgets what was to be said.
    fn forget(&mut self, context: &mut Context) {
        let now = Instant::now();
        for stream in std::mem::take(&mut self.streams).into_values() {
            match stream {
                Stream::Command(mut command) => {
                    command.cancel(now);
                    context.condemned.extend(command.condemned());
                }
                Stream::Socket(socket) => socket.reset(),
                Stream::Writing(_) | Stream::Reading(_) | Stream::Providing(_) => {}
            }
        }
        self.out.clear();
        self.greeted = false;
    }

    fn take_frames(&mut self, context: &mut Context) {
        while !self.over
            && let Some(inbound) = self.decoder.event()
        {
            match inbound {
                Inbound::Preamble(nonce) => {
                    self.forget(context);
                    self.out.raw(&preamble_reply(&nonce));
                }
                // A new client on the same line; its preamble is still to come.
                Inbound::Malformed(FrameError::Preamble) => self.forget(context),
                Inbound::Malformed(error) => self.give_up(&error.to_string(), context),
                Inbound::Frame(frame) => {
                    if let Err(why) = self.take(&frame, context) {
                        self.give_up(why, context);
                    }
                }
            }
        }
    }

    /// The client broke the rules: tells it and ends the session.
    fn give_up(&mut self, why: &str, context: &mut Context) {
        let greeted = self.greeted;
        self.forget(context);
        self.decoder.restart();
        // On a serial port the rest of a dead client's bytes arrives here; nobody waits for an answer to them.
        if let Some(frame) =
            Frame::json(0, Kind::Error, &protocol(why)).filter(|_| greeted || !self.serial)
        {
            self.out.frame(&frame);
        }
        self.over = !self.serial;
    }

    fn take(&mut self, frame: &Frame, context: &mut Context) -> Result<(), &'static str> {
        if frame.kind == Kind::Hello {
            return self.greet(frame, context);
        }
        if !self.greeted {
            return Err("the first frame is no hello");
        }
        let id = frame.stream;
        let outcome = if frame.kind.opens() {
            if self.streams.contains_key(&id) {
                return Err("a stream was opened twice");
            }
            if self.streams.len() >= MAX_STREAMS {
                let message = format!(
                    "{MAX_STREAMS} requests are running already; try again when one has ended"
                );
                Err(RemoteError {
                    kind: ErrorKind::Limit,
                    message,
                })
            } else {
                self.open(frame, context)
            }
        } else {
            // A frame for a stream that has just ended is late, not wrong.
            let Some(stream) = self.streams.get_mut(&id) else {
                return Ok(());
            };
            match stream.take(frame, &mut self.out) {
                Ok(None) => return Ok(()),
                Ok(Some(last)) => Ok(Some(last)),
                Err(error) => Err(error),
            }
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(last)) => self.end(id, &last, context),
            Err(error) => {
                let last =
                    Frame::json(id, Kind::Error, &error).unwrap_or(Frame::empty(id, Kind::Error));
                self.end(id, &last, context);
            }
        }
        Ok(())
    }

    fn end(&mut self, id: u32, last: &Frame, context: &mut Context) {
        match self.streams.remove(&id) {
            Some(Stream::Command(mut command)) => {
                command.cancel(Instant::now());
                context.condemned.extend(command.condemned());
            }
            Some(Stream::Socket(socket)) => socket.reset(),
            _ => {}
        }
        self.out.frame(last);
    }

    fn greet(&mut self, frame: &Frame, context: &Context) -> Result<(), &'static str> {
        let hello: ClientHello = frame.parse().map_err(|_| "the hello cannot be read")?;
        if self.greeted {
            return Err("a second hello");
        }
        // Answered also if the versions differ: the client then knows which one this is.
        if let Some(answer) = Frame::json(0, Kind::Hello, &context.hello) {
            self.out.frame(&answer);
        }
        self.greeted = hello.version == VERSION;
        Ok(())
    }

    /// Starts a request; its last frame if it is done at once.
    fn open(&mut self, frame: &Frame, context: &mut Context) -> Result<Option<Frame>, RemoteError> {
        let id = frame.stream;
        let done = Ok(Some(Frame::empty(id, Kind::Done)));
        match frame.kind {
            Kind::Exec => {
                let request: ExecRequest = parse(frame)?;
                let spawned = spawn(&request, context.default_user.as_deref())?;
                let pid = spawned.pid.as_raw().cast_unsigned();
                self.answer(Frame::json(id, Kind::Started, &Started { pid }));
                self.streams
                    .insert(id, Stream::Command(Box::new(Command::new(spawned))));
                Ok(None)
            }
            Kind::WriteFile => {
                let writing = Writing::begin(&parse::<WriteFile>(frame)?)?;
                self.streams.insert(id, Stream::Writing(writing));
                Ok(None)
            }
            Kind::ReadFile => {
                let (reading, info) = Reading::begin(&parse::<ReadFile>(frame)?)?;
                self.answer(Frame::json(id, Kind::FileInfo, &info));
                self.streams.insert(id, Stream::Reading(reading));
                Ok(None)
            }
            Kind::Connect => {
                let socket = Socket::begin(parse::<Connect>(frame)?)?;
                self.answer(socket.greeting(id));
                self.streams.insert(id, Stream::Socket(Box::new(socket)));
                Ok(None)
            }
            Kind::Stats => {
                let stats = system::stats()
                    .map_err(|error| io_error("cannot read the system's load", &error))?;
                Ok(Frame::json(id, Kind::Done, &stats))
            }
            Kind::SetClock => {
                system::set_clock(parse::<SetClock>(frame)?).map_err(|error| {
                    io_error(
                        "cannot set the clock, which is the host's in a container",
                        &error,
                    )
                })?;
                done
            }
            Kind::Provide => {
                let request: Provide = parse(frame)?;
                let Some(root) = &context.root else {
                    return Err(RemoteError {
                        kind: ErrorKind::BadRequest,
                        message: "this agent is an ordinary program: its system is not a tenant's"
                            .into(),
                    });
                };
                let providing = Providing::begin(&request, root)?;
                self.streams.insert(id, Stream::Providing(providing));
                if provide::gives_keys(&request) {
                    context.sshd.ensure(context.hello.init);
                }
                Ok(None)
            }
            Kind::Shutdown => {
                let request: Shutdown = parse(frame)?;
                log::info(format!("a client asked for {:?}", request.action));
                context.shutdown = Some(request);
                done
            }
            // Ping; the other kinds open nothing.
            _ => done,
        }
    }

    fn answer(&mut self, frame: Option<Frame>) {
        frame.iter().for_each(|frame| self.out.frame(frame));
    }
}

impl Stream {
    /// Takes a frame for a stream that is open; its last frame if that ends it.
    fn take(&mut self, frame: &Frame, out: &mut Outbound) -> Result<Option<Frame>, RemoteError> {
        let cancelled = || RemoteError {
            kind: ErrorKind::Cancelled,
            message: "the client cancelled it".into(),
        };
        match (self, frame.kind) {
            (Stream::Command(command), Kind::Data) => command.data(&frame.payload)?,
            (Stream::Command(command), Kind::Eof) if frame.channel == Channel::In => {
                command.end_input(frame.eof_count())?;
            }
            (Stream::Command(command), Kind::Eof) => command.discard(frame.channel),
            (Stream::Command(command), Kind::Credit) => {
                command.credit(frame.channel, frame.credit_bytes())?
            }
            (Stream::Command(command), Kind::Signal) => {
                command.signal(parse::<Signal>(frame)?.number)
            }
            (Stream::Command(command), Kind::Resize) => command.resize(parse::<WindowSize>(frame)?),
            (Stream::Command(command), Kind::Cancel) => command.cancel(Instant::now()),
            (Stream::Writing(writing), Kind::Data) => {
                writing.data(frame.stream, &frame.payload, out)?
            }
            (Stream::Writing(writing), Kind::Eof) if frame.channel == Channel::In => {
                writing.finish(frame.eof_count())?;
                return Ok(Some(Frame::empty(frame.stream, Kind::Done)));
            }
            (Stream::Reading(reading), Kind::Credit) if frame.channel == Channel::Out => {
                reading.credit(frame.credit_bytes())?;
            }
            (Stream::Socket(socket), Kind::Data) => socket.data(&frame.payload)?,
            (Stream::Socket(socket), Kind::Eof) if frame.channel == Channel::In => {
                socket.end_input(frame.eof_count())?;
            }
            (Stream::Socket(socket), Kind::Credit) if frame.channel == Channel::Out => {
                socket.credit(frame.credit_bytes())?;
            }
            (_, Kind::Cancel) => return Err(cancelled()),
            (Stream::Reading(_) | Stream::Socket(_), Kind::Eof) => return Err(cancelled()),
            // A relay closes both outputs of what it cancels, whatever it is.
            (Stream::Writing(_), Kind::Eof) => {}
            _ => {
                return Err(protocol(
                    "a frame that does not belong to this kind of stream",
                ));
            }
        }
        Ok(None)
    }
}

fn parse<T: serde::de::DeserializeOwned>(frame: &Frame) -> Result<T, RemoteError> {
    frame.parse().map_err(|error| RemoteError {
        kind: ErrorKind::BadRequest,
        message: format!("the request cannot be read: {error}"),
    })
}
