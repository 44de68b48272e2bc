//! One stream between a port of the guest and a unix socket of the host.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::Timeouts;
use super::credit::{BUF_ALLOC, GuestRoom, OurRoom};
use super::handshake;
use super::outbound::Outbound;
use super::packet::{HOST_CID, Header, Key, TYPE_STREAM, op, shutdown};
use super::unix::{self, Received};
use crate::virtio::segments::Segments;

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    Keep,
    /// It is over, and the guest has to be told by an RST.
    Reset,
    /// It is over, and the guest knows or never knew.
    Gone,
}

/// Who has to do the next step of opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// We send this: REQUEST or RESPONSE.
    Send(u16),
    /// The guest answers our REQUEST.
    Await,
    Done,
}

pub(super) struct Connection {
    pub stream: UnixStream,
    key: Key,
    opening: Opening,
    guest_room: GuestRoom,
    our_room: OurRoom,
    outbound: Outbound,
    /// The socket may have something to read; not watched for it while that is so.
    readable: bool,
    /// The host program sends nothing more.
    host_sent_all: bool,
    /// The host program receives nothing more.
    host_receives_none: bool,
    /// The socket is closed on both sides and would show that again and again.
    hung_up: bool,
    /// What the guest has said that it will not do any more; see [`shutdown`].
    guest_shutdown: u32,
    /// What the guest was told that the host will not do any more.
    told_shutdown: u32,
    /// The guest has forgotten the connection; what it had sent is still on its way to the host program.
    guest_gone: bool,
    /// The guest asked how much room there is.
    credit_wanted: bool,
    /// The guest was asked for room and has not given any.
    credit_asked: bool,
    /// When patience with a step of opening or closing ends.
    pub deadline: Option<Instant>,
    /// It is in the list of connections that have something for the guest.
    pub queued: bool,
    /// It is in the list of connections whose interest may have changed.
    pub touched: bool,
    /// What the socket is watched for; hang-up is always included.
    pub watched: Option<EventSet>,
}

impl Connection {
    /// A connection from a host program to the guest. `watched` is what its socket is watched for already.
    pub fn to_guest(
        key: Key,
        stream: UnixStream,
        watched: Option<EventSet>,
        deadline: Instant,
    ) -> Self {
        let mut connection = Self::new(key, stream, op::REQUEST);
        connection.watched = watched;
        connection.deadline = Some(deadline);
        connection
    }

    /// A connection from the guest, by its `request`, to a host program.
    pub fn to_host(request: &Header, stream: UnixStream) -> Self {
        let mut connection = Self::new(request.key_from_guest(), stream, op::RESPONSE);
        connection.note_credit(request);
        connection
    }

    fn new(key: Key, stream: UnixStream, first: u16) -> Self {
        Self {
            stream,
            key,
            opening: Opening::Send(first),
            guest_room: GuestRoom::default(),
            our_room: OurRoom::default(),
            outbound: Outbound::default(),
            readable: true,
            host_sent_all: false,
            host_receives_none: false,
            hung_up: false,
            guest_shutdown: 0,
            told_shutdown: 0,
            guest_gone: false,
            credit_wanted: false,
            credit_asked: false,
            deadline: None,
            queued: false,
            touched: false,
            watched: None,
        }
    }

    /// The worker has changed: nothing is watched, anything may have happened, and patience begins anew.
    pub fn reregister(&mut self, timeouts: &Timeouts) {
        self.watched = None;
        self.readable = true;
        let patience = match self.opening {
            Opening::Done => timeouts.linger,
            _ => timeouts.request,
        };
        self.deadline = self.deadline.map(|_| Instant::now() + patience);
    }

    /// Takes over the credit that every packet of the guest carries.
    fn note_credit(&mut self, header: &Header) {
        self.guest_room.update(header.buf_alloc, header.fwd_cnt);
        self.credit_asked &= self.guest_room.free() == 0;
    }

    /// A packet from the guest with `header.len` bytes of payload.
    pub fn handle(
        &mut self,
        header: &Header,
        payload: &mut Segments,
        timeouts: &Timeouts,
    ) -> Verdict {
        self.note_credit(header);
        match (header.op, self.opening) {
            (op::RST, _) => self.forgotten(),
            (op::CREDIT_UPDATE, _) => Verdict::Keep,
            (op::CREDIT_REQUEST, _) => {
                self.credit_wanted = true;
                Verdict::Keep
            }
            (op::RESPONSE, Opening::Await) => self.accepted(),
            // The guest may send as soon as it has asked: our RESPONSE is on its way or waits for a buffer.
            (_, Opening::Await | Opening::Send(op::REQUEST)) => Verdict::Reset,
            (op::RW, _) => self.take(header.len, payload),
            (op::SHUTDOWN, _) => self.guest_closes(header.flags, timeouts),
            _ => Verdict::Reset,
        }
    }

    /// The guest has accepted: the host program hears of it.
    fn accepted(&mut self) -> Verdict {
        self.opening = Opening::Done;
        self.deadline = None;
        let line = handshake::accepted(self.key.host_port);
        // Nothing was written to the socket before: if it does not take a line, nobody is there.
        match (&self.stream).write(&line) {
            Ok(count) if count == line.len() => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    /// The guest knows nothing of the connection any more.
    fn forgotten(&mut self) -> Verdict {
        // It waits no longer than it likes for the end of a connection that it has closed; its data stays data.
        if self.guest_shutdown == shutdown::BOTH && !self.outbound.is_empty() {
            self.guest_gone = true;
            return Verdict::Keep;
        }
        Verdict::Gone
    }

    /// Data for the host program.
    fn take(&mut self, count: u32, payload: &mut Segments) -> Verdict {
        let done = self.guest_shutdown & shutdown::SEND != 0;
        if done || !self.our_room.receive(count) {
            return Verdict::Reset;
        }
        let mut left = count as usize;
        while left > 0 && self.outbound.is_empty() && !self.host_receives_none {
            // SAFETY: the payload is in guest RAM, which the worker keeps mapped.
            match unsafe { unix::send(&self.stream, payload.remaining(), left) } {
                Ok((sent, all)) => {
                    payload.advance(sent);
                    self.our_room.forward(sent);
                    left -= sent;
                    if !all {
                        break;
                    }
                }
                Err(_) => self.host_gone(),
            }
        }
        if self.host_receives_none {
            // Nobody will ever read it; the guest hears of that by SHUTDOWN.
            self.our_room.forward(left);
        } else if left > 0 {
            self.outbound.push(payload, left);
        }
        Verdict::Keep
    }

    /// The guest will not send, or not receive, any more.
    fn guest_closes(&mut self, flags: u32, timeouts: &Timeouts) -> Verdict {
        self.guest_shutdown |= flags & shutdown::BOTH;
        if flags & shutdown::RECEIVE != 0 {
            // The host program gets EPIPE. Fails only if it is gone.
            let _ = self.stream.shutdown(std::net::Shutdown::Read);
            self.readable = false;
            self.host_sent_all |= self.host_receives_none;
        }
        if self.guest_shutdown == shutdown::BOTH {
            self.deadline = Some(Instant::now() + timeouts.linger);
        }
        self.drained()
    }

    /// Passes the end of the guest's data on once all of it was sent.
    fn drained(&mut self) -> Verdict {
        if !self.outbound.is_empty() || self.guest_shutdown & shutdown::SEND == 0 {
            return Verdict::Keep;
        }
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
        match (self.guest_shutdown, self.guest_gone) {
            (_, true) => Verdict::Gone,
            // A close ends with an RST (virtio 1.3 §5.10.6.5).
            (shutdown::BOTH, _) => Verdict::Reset,
            _ => Verdict::Keep,
        }
    }

    /// The socket takes more.
    pub fn writable(&mut self, timeouts: &Timeouts) -> Verdict {
        match self.outbound.flush(&self.stream) {
            Ok(sent) => {
                self.our_room.forward(sent);
                if sent > 0 && self.guest_shutdown == shutdown::BOTH {
                    self.deadline = Some(Instant::now() + timeouts.linger);
                }
            }
            Err(_) => self.host_gone(),
        }
        self.drained()
    }

    /// The socket has something to read, or its end.
    pub fn readable(&mut self) -> Verdict {
        self.readable = true;
        Verdict::Keep
    }

    /// The socket may be closed on both sides.
    pub fn hang_up(&mut self) -> Verdict {
        // The event may be one of an earlier owner of the descriptor's number.
        if !unix::hung_up(&self.stream) {
            return Verdict::Keep;
        }
        match self.opening {
            Opening::Send(op::REQUEST) => return Verdict::Gone,
            Opening::Await => return Verdict::Reset,
            _ => {}
        }
        self.readable = true;
        self.hung_up = true;
        self.host_gone();
        self.drained()
    }

    fn host_gone(&mut self) {
        self.host_receives_none = true;
        let lost = self.outbound.clear();
        self.our_room.forward(lost);
        // Otherwise there may still be something to read.
        self.host_sent_all |= self.guest_shutdown & shutdown::RECEIVE != 0;
    }

    /// Patience has ended.
    pub fn expire(&mut self) -> Verdict {
        match (self.opening, self.guest_gone) {
            (Opening::Send(op::REQUEST), _) | (_, true) => Verdict::Gone,
            _ => Verdict::Reset,
        }
    }

    /// True if there is a packet to send to the guest.
    pub fn has_packet(&self) -> bool {
        match self.opening {
            Opening::Send(_) => true,
            Opening::Await => self.credit_wanted,
            Opening::Done => {
                !self.guest_gone
                    && (self.may_read()
                        || self.shutdown_news() != 0
                        || self.tells_credit()
                        || self.asks_credit())
            }
        }
    }

    /// True if bytes of the host program are to be read if there are any.
    fn wants_bytes(&self) -> bool {
        self.opening == Opening::Done
            && !self.host_sent_all
            && self.guest_shutdown & shutdown::RECEIVE == 0
    }

    fn may_read(&self) -> bool {
        self.wants_bytes() && self.readable && self.guest_room.free() > 0
    }

    /// What the guest has yet to be told that the host will not do any more.
    fn shutdown_news(&self) -> u32 {
        let send = if self.host_sent_all {
            shutdown::SEND
        } else {
            0
        };
        let receive = if self.host_receives_none {
            shutdown::RECEIVE
        } else {
            0
        };
        (send | receive) & !self.told_shutdown
    }

    fn tells_credit(&self) -> bool {
        let may_send = self.guest_shutdown & shutdown::SEND == 0;
        self.credit_wanted || (may_send && self.our_room.worth_telling())
    }

    /// The guest tells of new room by itself; if it thinks that we know, both would wait for ever.
    fn asks_credit(&self) -> bool {
        self.wants_bytes() && self.readable && self.guest_room.free() == 0 && !self.credit_asked
    }

    /// The next packet for the guest; payload of up to `room` bytes is put into `payload`.
    pub fn next_packet(
        &mut self,
        payload: &Segments,
        room: usize,
        timeouts: &Timeouts,
    ) -> Option<Header> {
        if let Opening::Send(opcode) = self.opening {
            self.opening = match opcode {
                op::REQUEST => Opening::Await,
                _ => Opening::Done,
            };
            return Some(self.header(opcode, 0, 0));
        }
        if self.guest_gone {
            return None;
        }
        if self.may_read()
            && let Some(count) = self.read(payload, room)
        {
            self.guest_room.sent(count);
            return Some(self.header(op::RW, count, 0));
        }
        if self.opening == Opening::Done && self.shutdown_news() != 0 {
            self.told_shutdown |= self.shutdown_news();
            if self.told_shutdown == shutdown::BOTH {
                self.deadline = Some(Instant::now() + timeouts.linger);
            }
            return Some(self.header(op::SHUTDOWN, 0, self.told_shutdown));
        }
        if self.tells_credit() {
            return Some(self.header(op::CREDIT_UPDATE, 0, 0));
        }
        if self.asks_credit() {
            self.credit_asked = true;
            return Some(self.header(op::CREDIT_REQUEST, 0, 0));
        }
        None
    }

    /// Reads what the host program has sent into `payload`; `None` if there is nothing, or nothing more.
    fn read(&mut self, payload: &Segments, room: usize) -> Option<u32> {
        let room = u32::try_from(room).unwrap_or(u32::MAX);
        let limit = room.min(self.guest_room.free());
        // SAFETY: the payload is in guest RAM, which the worker keeps mapped and the guest has offered for writing.
        let received = unsafe { unix::receive(&self.stream, payload.remaining(), limit as usize) };
        match received {
            Ok(Received::Bytes { count, more }) => {
                // No event comes for a socket that has hung up: its end has to be read now.
                self.readable = more || self.hung_up;
                return u32::try_from(count).ok();
            }
            Ok(Received::Nothing) => self.readable = false,
            Ok(Received::End) => {
                self.readable = false;
                self.host_sent_all = true;
                if unix::hung_up(&self.stream) {
                    self.hung_up = true;
                    self.host_gone();
                }
            }
            // ECONNRESET: it went without reading all that it had got. Anything else would not get better either.
            Err(_) => {
                self.readable = false;
                self.host_sent_all = true;
                self.hung_up = true;
                self.host_gone();
            }
        }
        None
    }

    fn header(&mut self, op: u16, len: u32, flags: u32) -> Header {
        self.credit_wanted = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: 0,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.our_room.tell(),
        }
    }

    /// What the socket is to be watched for now; `None` if not even for a hang-up, which would come again and again.
    pub fn interest(&self) -> Option<EventSet> {
        if self.hung_up {
            return None;
        }
        let mut events = EventSet::empty();
        if self.wants_bytes() && !self.readable {
            events |= EventSet::IN;
        }
        if !self.outbound.is_empty() {
            events |= EventSet::OUT;
        }
        Some(events)
    }
}
