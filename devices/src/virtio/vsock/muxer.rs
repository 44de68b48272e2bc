//! Between the packets of the guest and the sockets of the host.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::Timeouts;
use super::connection::{Connection, Verdict};
use super::counters::Counters;
use super::handshake::{Handshake, Progress};
use super::packet::{HOST_CID, Header, Key, TYPE_STREAM, op};
use super::table::Table;
use super::unix::{self, Listener};
use crate::timer::Timer;
use crate::virtio::segments::Segments;
use crate::worker::Interest;

/// Host programs that have not said yet what they want. More of them wait in the listener's backlog.
pub const MAX_HANDSHAKES: usize = 128;

/// Answers to packets that belong to no connection, waiting for a buffer of the guest. More are dropped: to stop
/// listening to a guest that does not listen would stop both for ever (virtio 1.3 §5.10.6.1).
const MAX_RESETS: usize = 1024;

/// Host programs that are let in before others have their turn.
const ACCEPTS: usize = 32;

/// Pause of the listener when descriptors have run out: it would show the same connection again and again.
const EXHAUSTED: Duration = Duration::from_secs(1);

/// The host side of the device. It outlives the worker, from pause to pause.
pub(super) struct Muxer {
    guest_cid: u64,
    path: PathBuf,
    timeouts: Timeouts,
    listener: Listener,
    /// The listener is watched.
    listening: bool,
    /// Descriptors have run out; nobody is let in until then.
    exhausted: Option<Instant>,
    handshakes: HashMap<RawFd, Handshake>,
    table: Table,
    resets: VecDeque<Header>,
    timer: Timer,
    counters: Arc<Counters>,
}

impl Muxer {
    /// # Errors
    /// The timer cannot be made.
    pub fn new(
        guest_cid: u64,
        path: &Path,
        listener: Listener,
        timeouts: Timeouts,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        Ok(Self {
            guest_cid,
            path: path.to_owned(),
            timeouts,
            listener,
            listening: false,
            exhausted: None,
            handshakes: HashMap::new(),
            table: Table::default(),
            resets: VecDeque::new(),
            timer: Timer::new()?,
            counters,
        })
    }

    #[cfg(test)]
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Makes every deadline one that has passed long ago.
    #[cfg(test)]
    pub fn pass_time(&mut self) {
        let now = Instant::now();
        for handshake in self.handshakes.values_mut() {
            handshake.deadline = now;
        }
        self.table.pass_time(now);
    }

    /// How many handshakes and connections will have run out of time at `then`.
    #[cfg(test)]
    pub fn late_at(&self, then: Instant) -> usize {
        let handshakes = self.handshakes.values().filter(|h| h.deadline <= then);
        handshakes.count() + self.table.expired(then).0.len()
    }

    /// Packets and connections in the lists of what the guest is to hear.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.resets.len() + self.table.waiting()
    }

    /// Closes all connections without a word to the guest, which has forgotten them, or is told of a transport reset.
    pub fn forget_guest(&mut self) {
        self.table.remove_all();
        self.resets.clear();
    }

    /// As [`forget_guest`](Self::forget_guest), while no worker serves: the sockets are closed at once.
    pub fn reset(&mut self) {
        self.forget_guest();
        self.table.close_now();
    }

    // The guest's side

    /// A packet from the guest whose payload is `header.len` bytes of `payload`.
    pub fn deliver(&mut self, header: &Header, payload: &mut Segments) {
        let for_us = header.src_cid == self.guest_cid && header.dst_cid == HOST_CID;
        if !for_us || header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let key = header.key_from_guest();
        if let Some(connection) = self.table.get(key) {
            let verdict = connection.handle(header, payload, &self.timeouts);
            if header.op == op::RW && verdict == Verdict::Keep {
                self.counters.from_guest_bytes.add(u64::from(header.len));
            }
            return self.settle(key, verdict);
        }
        if header.op == op::REQUEST {
            self.connect(header);
        } else {
            self.refuse(header);
        }
    }

    /// A packet whose payload is not what its header says.
    pub fn deliver_malformed(&mut self, header: &Header) {
        let for_us = header.src_cid == self.guest_cid && header.dst_cid == HOST_CID;
        let key = header.key_from_guest();
        if for_us && header.kind == TYPE_STREAM && self.table.get(key).is_some() {
            self.settle(key, Verdict::Reset);
        } else {
            self.refuse(header);
        }
    }

    /// The guest connects to a port of the host.
    fn connect(&mut self, request: &Header) {
        let port = request.dst_port;
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let connected = if self.table.is_full() {
            Err(io::Error::other("there are too many connections"))
        } else {
            unix::connect(Path::new(&path))
        };
        match connected {
            Ok(stream) => {
                self.counters.connections.add(1);
                let connection = Connection::to_host(request, stream);
                self.table.insert(request.key_from_guest(), connection);
            }
            Err(error) => {
                tracing::debug!("vsock: the guest cannot connect to port {port}: {error}");
                self.counters.refused.add(1);
                self.refuse(request);
            }
        }
    }

    /// Answers a packet by RST; an RST is not answered (virtio 1.3 §5.10.6.4).
    fn refuse(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        self.push_reset(Header {
            src_cid: header.dst_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            kind: header.kind,
            op: op::RST,
            ..Header::default()
        });
    }

    fn push_reset(&mut self, reset: Header) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(reset);
        } else {
            self.counters
                .malformed(&"packets for no connection, while it takes no answers");
        }
    }

    /// Does with a connection what has come out.
    fn settle(&mut self, key: Key, verdict: Verdict) {
        if verdict == Verdict::Keep {
            return self.table.settle(key);
        }
        self.table.remove(key);
        if verdict == Verdict::Reset {
            self.push_reset(Header {
                src_cid: HOST_CID,
                src_port: key.host_port,
                dst_port: key.guest_port,
                kind: TYPE_STREAM,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    /// True if there may be a packet for the guest.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || self.table.has_ready()
    }

    /// The next packet for the guest, with up to `room` bytes of payload put into `payload`; `None` if the one whose turn
    /// it was has nothing after all.
    pub fn next_packet(&mut self, payload: &Segments, room: usize) -> Option<Header> {
        let header = match self.resets.pop_front() {
            Some(reset) => Some(reset),
            None => {
                let (key, connection) = self.table.next_ready()?;
                let header = connection.next_packet(payload, room, &self.timeouts);
                self.table.settle(key);
                header
            }
        };
        let header = header?;
        self.counters.to_guest_bytes.add(u64::from(header.len));
        Some(Header {
            dst_cid: self.guest_cid,
            ..header
        })
    }

    // The host's side

    /// A descriptor of the host side is ready.
    pub fn ready(&mut self, descriptor: RawFd, events: EventSet) {
        if descriptor == self.listener.as_raw_fd() {
            self.accept();
        } else if descriptor == self.timer.as_raw_fd() {
            self.expire();
        } else if self.handshakes.contains_key(&descriptor) {
            self.advance(descriptor);
        } else if let Some(key) = self.table.key_of(descriptor) {
            self.socket_ready(key, events);
        }
    }

    fn socket_ready(&mut self, key: Key, events: EventSet) {
        let timeouts = self.timeouts;
        type Step = fn(&mut Connection, &Timeouts) -> Verdict;
        let steps: [(EventSet, Step); 3] = [
            (EventSet::IN, |connection, _| connection.readable()),
            (EventSet::OUT, Connection::writable),
            (EventSet::HANG_UP | EventSet::ERROR, |connection, _| {
                connection.hang_up()
            }),
        ];
        for (mask, step) in steps {
            if !events.intersects(mask) {
                continue;
            }
            // A step may have ended it.
            let Some(connection) = self.table.get(key) else {
                return;
            };
            let verdict = step(connection, &timeouts);
            self.settle(key, verdict);
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS {
            if self.handshakes.len() >= MAX_HANDSHAKES {
                return;
            }
            match self.listener.accept() {
                Ok(Some(stream)) => {
                    let deadline = Instant::now() + self.timeouts.handshake;
                    let descriptor = stream.as_raw_fd();
                    let handshake = Handshake::new(stream, deadline);
                    self.handshakes.insert(descriptor, handshake);
                    // Most have sent their line already.
                    self.advance(descriptor);
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::error!("vsock: cannot let a host program in: {error}");
                    let until = Instant::now() + EXHAUSTED;
                    self.exhausted = Some(until);
                    self.timer.by(until);
                    return;
                }
            }
        }
    }

    /// Reads what a host program that has not said yet what it wants has to say.
    fn advance(&mut self, descriptor: RawFd) {
        let Some(handshake) = self.handshakes.get_mut(&descriptor) else {
            return;
        };
        match handshake.advance() {
            Progress::Waiting => self.timer.by(handshake.deadline),
            Progress::Connect(port) => {
                if let Some(handshake) = self.handshakes.remove(&descriptor) {
                    self.connect_to_guest(handshake, port);
                }
            }
            Progress::Refused => self.turn_away(descriptor),
        }
    }

    fn connect_to_guest(&mut self, handshake: Handshake, guest_port: u32) {
        let Handshake {
            stream, watched, ..
        } = handshake;
        if self.table.is_full() {
            self.counters.refused.add(1);
            return self.table.close(stream, watched);
        }
        self.counters.connections.add(1);
        let host_port = self.table.free_port();
        let key = Key {
            host_port,
            guest_port,
        };
        let deadline = Instant::now() + self.timeouts.request;
        let watched = watched.then_some(EventSet::IN);
        let connection = Connection::to_guest(key, stream, watched, deadline);
        self.table.insert(key, connection);
    }

    fn turn_away(&mut self, descriptor: RawFd) {
        if let Some(handshake) = self.handshakes.remove(&descriptor) {
            self.counters.refused.add(1);
            self.table.close(handshake.stream, handshake.watched);
        }
    }

    /// A deadline may have passed.
    fn expire(&mut self) {
        let now = Instant::now();
        let (keys, mut next) = self.table.expired(now);
        for key in keys {
            if let Some(connection) = self.table.get(key) {
                let verdict = connection.expire();
                self.settle(key, verdict);
            }
        }
        let mut late = Vec::new();
        for (descriptor, handshake) in &self.handshakes {
            if handshake.deadline <= now {
                late.push(*descriptor);
            } else {
                next = Some(next.map_or(handshake.deadline, |next| next.min(handshake.deadline)));
            }
        }
        for descriptor in late {
            self.turn_away(descriptor);
        }
        match self.exhausted {
            Some(until) if until <= now => self.exhausted = None,
            Some(until) => next = Some(next.map_or(until, |next| next.min(until))),
            None => {}
        }
        self.timer.set(next);
    }

    // The worker

    /// Begins to be served by a worker.
    ///
    /// # Errors
    /// The timer cannot be watched.
    pub fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        let now = Instant::now();
        self.listening = false;
        self.exhausted = None;
        for handshake in self.handshakes.values_mut() {
            handshake.watched = false;
            handshake.deadline = now + self.timeouts.handshake;
        }
        self.table.reregister(&self.timeouts);
        self.timer
            .set(self.handshakes.values().map(|h| h.deadline).min());
        interest.add(self.timer.as_raw_fd(), EventSet::IN)?;
        self.end_turn(interest);
        Ok(())
    }

    /// The end of a turn: what is watched follows what has happened.
    pub fn end_turn(&mut self, interest: &Interest<'_>) {
        for key in self.table.end_turn(interest, &mut self.timer) {
            self.settle(key, Verdict::Reset);
        }
        for (descriptor, handshake) in &mut self.handshakes {
            if handshake.watched {
                continue;
            }
            match interest.add(*descriptor, EventSet::IN) {
                Ok(()) => handshake.watched = true,
                // Its deadline ends it.
                Err(error) => tracing::error!("vsock: cannot watch a socket: {error}"),
            }
        }
        let listen = self.exhausted.is_none() && self.handshakes.len() < MAX_HANDSHAKES;
        if listen != self.listening {
            let descriptor = self.listener.as_raw_fd();
            let changed = if listen {
                interest.add(descriptor, EventSet::IN)
            } else {
                interest.remove(descriptor)
            };
            match changed {
                Ok(()) => self.listening = listen,
                Err(error) => tracing::error!("vsock: cannot watch the listening socket: {error}"),
            }
        }
    }
}
