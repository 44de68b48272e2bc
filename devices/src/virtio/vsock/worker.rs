//! The worker: packets from the guest, packets to the guest, sockets on the host.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use virtio_queue::{QueueOwnedT, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::connection::{BUFFER_BYTES, Connection, Handshake, Key, Said, Stage};
use super::packet::{
    HEADER_BYTES, HOST_CID, Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::table::{MAX_HANDSHAKES, MAX_REPLIES, Owner, Table};
use super::{EVENT_QUEUE, QUEUE_SIZE, RX_QUEUE, TX_QUEUE};
use crate::GuestRam;
use crate::virtio::chain::Buffers;
use crate::virtio::segments::Segments;
use crate::virtio::{ActiveQueue, VirtioInterrupt};
use crate::worker::{Handler, Interest};

/// How long the guest may take to answer a request for a connection, or to confirm that one has ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often deadlines are looked at while there are any.
const TICK: Duration = Duration::from_secs(1);
/// Most bytes of one packet to the guest; larger ones would hold the others up.
const MAX_PACKET_BYTES: usize = 64 << 10;
/// Packets from the guest before the other direction has its turn.
const BUDGET: usize = 64;

/// The queue cannot be trusted any more.
struct Broken(&'static str);

const RINGS: Broken = Broken("its rings are not in guest RAM");
const INDEX: Broken =
    Broken("its avail ring says that there are more requests than it has room for");
const HEAD: Broken = Broken("its avail ring names a descriptor that the queue does not have");

/// Takes the next chain of a queue into `buffers`: its head, and whether it could be followed to its end.
fn pop(
    queue: &mut ActiveQueue,
    memory: &GuestRam,
    buffers: &mut Buffers,
) -> Result<Option<(u16, bool)>, Broken> {
    let queue = &mut queue.queue;
    let available = queue
        .avail_idx(memory, Ordering::Acquire)
        .map_err(|_| RINGS)?;
    if available.0 == queue.next_avail() {
        return Ok(None);
    }
    let chain = queue.iter(memory).map_err(|_| INDEX)?.next().ok_or(RINGS)?;
    let head = chain.head_index();
    let whole = buffers.gather(chain, usize::from(QUEUE_SIZE)).is_ok();
    Ok(Some((head, whole)))
}

/// Serves the device while it is active.
pub(super) struct Worker {
    pub table: Table,
    pub rx: ActiveQueue,
    pub tx: ActiveQueue,
    pub event: ActiveQueue,
    pub memory: GuestRam,
    pub interrupt: Arc<dyn VirtioInterrupt>,
    pub malformed: Arc<AtomicU64>,
    /// The guest has to be told that its connections are gone (virtio 1.3 §5.10.6.7).
    pub transport_reset: bool,
    pub timer: TimerFd,
    pub timer_runs: bool,
    pub buffers: Buffers,
    pub segments: Segments,
    pub scratch: Vec<u8>,
    pub broken: bool,
}

impl Handler for Worker {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        for fd in [
            self.rx.kick.as_raw_fd(),
            self.tx.kick.as_raw_fd(),
            self.event.kick.as_raw_fd(),
            self.table.listener.as_raw_fd(),
            self.timer.as_raw_fd(),
        ] {
            interest.add(fd, EventSet::IN)?;
        }
        // After a pause: connections are as they were, nothing is watched, and kicks may have gone unseen.
        for handshake in &self.table.handshakes {
            interest.add(handshake.stream.as_raw_fd(), EventSet::IN)?;
        }
        for fd in self.table.leftovers.keys() {
            interest.add(*fd, EventSet::OUT)?;
        }
        let keys: Vec<Key> = self.table.connections.keys().copied().collect();
        for key in keys {
            if let Some(connection) = self.table.connections.get_mut(&key) {
                connection.rewatch(None);
            }
            self.watch(key, interest);
        }
        self.serve(interest);
        Ok(())
    }

    fn ready(&mut self, fd: RawFd, events: EventSet, interest: &Interest<'_>) {
        if fd == self.rx.kick.as_raw_fd() {
            let _ = self.rx.kick.read();
        } else if fd == self.tx.kick.as_raw_fd() {
            let _ = self.tx.kick.read();
        } else if fd == self.event.kick.as_raw_fd() {
            let _ = self.event.kick.read();
        } else if fd == self.timer.as_raw_fd() {
            self.expire(interest);
        } else if fd == self.table.listener.as_raw_fd() {
            self.accept(interest);
        } else {
            match self.table.owners.get(&fd).copied() {
                Some(Owner::Handshake) => self.continue_handshake(fd, interest),
                Some(Owner::Connection(key)) => self.stream_event(key, events, interest),
                Some(Owner::Leftover) => self.flush_leftover(fd, events, interest),
                None => {
                    let _ = interest.remove(fd);
                }
            }
        }
        self.serve(interest);
    }
}

impl Worker {
    /// Does all that can be done now.
    fn serve(&mut self, interest: &Interest<'_>) {
        if self.broken {
            return;
        }
        if let Err(Broken(why)) = self.try_serve(interest) {
            tracing::error!("virtio-vsock stops until the driver resets it: {why}");
            self.broken = true;
            self.interrupt.needs_reset();
        }
    }

    fn try_serve(&mut self, interest: &Interest<'_>) -> Result<(), Broken> {
        self.tell_reset()?;
        loop {
            let sent = self.send_to_guest(interest)?;
            let more = self.receive_from_guest(interest)?;
            if !sent && !more {
                return Ok(());
            }
        }
    }

    fn malformed(&self, why: &str) {
        let count = self
            .malformed
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(1);
        // The 1st, 2nd, 4th, 8th …: the guest cannot fill the log.
        if count.is_power_of_two() {
            tracing::warn!("the guest sent virtio-vsock a malformed packet, {count} so far: {why}");
        }
    }

    /// Tells the guest through the event queue that its connections are gone, once.
    fn tell_reset(&mut self) -> Result<(), Broken> {
        if !self.transport_reset {
            return Ok(());
        }
        let Some((head, whole)) = pop(&mut self.event, &self.memory, &mut self.buffers)? else {
            return Ok(());
        };
        // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET is 0.
        let event = 0_u32.to_le_bytes();
        let written = whole && self.buffers.write(&self.memory, &event).is_ok();
        self.transport_reset = !written;
        let length = if written { 4 } else { 0 };
        self.event
            .queue
            .add_used(&self.memory, head, length)
            .map_err(|_| HEAD)?;
        self.notify(EVENT_QUEUE)
    }

    fn notify(&mut self, index: u16) -> Result<(), Broken> {
        let queue = match index {
            RX_QUEUE => &mut self.rx.queue,
            TX_QUEUE => &mut self.tx.queue,
            _ => &mut self.event.queue,
        };
        if queue.needs_notification(&self.memory).map_err(|_| RINGS)? {
            self.interrupt.queue(index);
        }
        Ok(())
    }

    // ---- to the guest ----

    /// Fills receive buffers as long as there are any and something to send. True if something was sent.
    fn send_to_guest(&mut self, interest: &Interest<'_>) -> Result<bool, Broken> {
        let mut sent = false;
        while !(self.table.replies.is_empty() && self.table.ready.is_empty()) {
            let place = self.rx.queue.next_avail();
            let Some((head, whole)) = pop(&mut self.rx, &self.memory, &mut self.buffers)? else {
                // The driver has to kick when it adds buffers; it may have added one meanwhile.
                if self
                    .rx
                    .queue
                    .enable_notification(&self.memory)
                    .map_err(|_| RINGS)?
                {
                    continue;
                }
                break;
            };
            let room = self.buffers.writable_bytes();
            if !whole || room < HEADER_BYTES as u64 || self.buffers.readable_bytes() > 0 {
                self.malformed("a receive buffer that has no room for a header, or is to be read");
                self.rx
                    .queue
                    .add_used(&self.memory, head, 0)
                    .map_err(|_| HEAD)?;
                sent = true;
                continue;
            }
            match self.fill(room, interest) {
                Some(length) => {
                    self.rx
                        .queue
                        .add_used(&self.memory, head, length)
                        .map_err(|_| HEAD)?;
                    sent = true;
                }
                // Nothing came of it: the buffer stays for the next packet.
                None => self.rx.queue.set_next_avail(place),
            }
        }
        if sent {
            self.notify(RX_QUEUE)?;
        }
        Ok(sent)
    }

    /// Puts one packet into the buffers that were popped; how many bytes it has.
    fn fill(&mut self, room: u64, interest: &Interest<'_>) -> Option<u32> {
        if let Some(mut header) = self.table.replies.pop_front() {
            let key = Key {
                host_port: header.source_port,
                guest_port: header.target_port,
            };
            if let Some(connection) = self.table.connections.get_mut(&key) {
                header.forwarded = connection.forwarded;
                connection.told_forwarded = connection.forwarded;
            }
            return self.put(&header);
        }
        let key = self.table.ready.pop_front()?;
        let connection = self
            .table
            .connections
            .get_mut(&key)
            .filter(|connection| connection.wants_to_send())?;
        let credit = connection.credit();
        if credit == 0 {
            if !connection.credit_requested {
                connection.credit_requested = true;
                self.table.reply(key, Operation::CreditRequest);
            }
            return None;
        }
        let most = u64::from(credit).min(room.saturating_sub(HEADER_BYTES as u64));
        let most = usize::try_from(most)
            .unwrap_or(usize::MAX)
            .min(MAX_PACKET_BYTES);
        if most == 0 {
            self.malformed("a receive buffer that has room for a header only");
            return Some(0);
        }
        self.fill_data(key, most, interest)
    }

    fn fill_data(&mut self, key: Key, most: usize, interest: &Interest<'_>) -> Option<u32> {
        self.segments.clear();
        if self
            .buffers
            .writable_segments(&self.memory, &mut self.segments)
            .is_err()
        {
            self.malformed("a receive buffer that is not in guest RAM");
            self.table.make_ready(key);
            return Some(0);
        }
        self.segments.advance(HEADER_BYTES);
        let connection = self.table.connections.get_mut(&key)?;
        let count = read_into(connection.fd(), &self.segments, most);
        match count {
            Ok(0) => {
                connection.finished_reading = true;
                let gone = connection.hung_up;
                self.end_of_stream(key, gone, interest);
                None
            }
            Ok(count) => {
                let length = u32::try_from(count).unwrap_or(u32::MAX);
                connection.note_sent(length);
                connection.told_forwarded = connection.forwarded;
                let forwarded = connection.forwarded;
                let header = self.table.header(key, Operation::Data);
                self.table.ready.push_back(key);
                self.put(&Header {
                    length,
                    forwarded,
                    ..header
                })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                connection.readable = false;
                self.watch(key, interest);
                None
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.table.make_ready(key);
                None
            }
            Err(_) => {
                self.reset(key, interest);
                None
            }
        }
    }

    /// Writes a header to the start of the buffers that were popped; how many bytes the packet has.
    fn put(&mut self, header: &Header) -> Option<u32> {
        let bytes = header.encode();
        if self.buffers.write(&self.memory, &bytes).is_err() {
            self.malformed("a receive buffer that is not in guest RAM");
            return Some(0);
        }
        u32::try_from(HEADER_BYTES).ok()?.checked_add(header.length)
    }

    /// The program on the host sends no more; if it is `gone`, it takes no more either.
    fn end_of_stream(&mut self, key: Key, gone: bool, interest: &Interest<'_>) {
        let Some(connection) = self.table.connections.get_mut(&key) else {
            return;
        };
        if connection.settle() {
            self.reset(key, interest);
            return;
        }
        if gone {
            connection.stage = Stage::Closing;
            connection.deadline = Some(Instant::now() + PATIENCE);
            self.start_timer();
        }
        let flags = if gone { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
        self.table.reply_with(key, Operation::Shutdown, flags);
        self.watch(key, interest);
    }

    // ---- from the guest ----

    /// Takes packets of the guest. True if there are more.
    fn receive_from_guest(&mut self, interest: &Interest<'_>) -> Result<bool, Broken> {
        self.tx
            .queue
            .disable_notification(&self.memory)
            .map_err(|_| RINGS)?;
        let mut served = 0;
        let mut more = true;
        while served < BUDGET && self.table.replies.len() < MAX_REPLIES {
            let Some((head, whole)) = pop(&mut self.tx, &self.memory, &mut self.buffers)? else {
                more = false;
                break;
            };
            if whole {
                self.packet(interest);
            } else {
                self.malformed("a descriptor chain that breaks off");
            }
            self.tx
                .queue
                .add_used(&self.memory, head, 0)
                .map_err(|_| HEAD)?;
            served += 1;
        }
        if served > 0 {
            self.notify(TX_QUEUE)?;
        }
        // With too many replies waiting, the next receive buffer brings us back here.
        let waiting = self.table.replies.len() >= MAX_REPLIES;
        let added = self
            .tx
            .queue
            .enable_notification(&self.memory)
            .map_err(|_| RINGS)?;
        Ok(!waiting && (added || more))
    }

    /// Handles the packet in the buffers that were popped.
    fn packet(&mut self, interest: &Interest<'_>) {
        let Ok(bytes) = self.buffers.take_readable::<HEADER_BYTES>(&self.memory) else {
            self.malformed("a packet without a whole header");
            return;
        };
        let header = Header::decode(&bytes);
        if self.buffers.writable_bytes() > 0
            || u64::from(header.length) > self.buffers.readable_bytes()
        {
            self.malformed("a packet that is shorter than it says, or to be written");
            return;
        }
        if header.source_cid != u64::from(self.table.guest_cid) || header.target_cid != HOST_CID {
            self.malformed("a packet from or to somebody else");
            return;
        }
        let key = Key {
            host_port: header.target_port,
            guest_port: header.source_port,
        };
        let Some(operation) = header.operation.filter(|_| header.kind == TYPE_STREAM) else {
            self.malformed("a packet of a kind that does not exist");
            self.table.reply(key, Operation::Reset);
            return;
        };
        let Some(connection) = self.table.connections.get_mut(&key) else {
            match operation {
                Operation::Request => self.open(key, &header, interest),
                Operation::Reset => {}
                _ => self.table.reply(key, Operation::Reset),
            }
            return;
        };
        connection.note_credit(&header);
        if connection.wants_to_send() {
            self.table.make_ready(key);
        }
        self.dispatch(key, operation, &header, interest);
    }

    fn dispatch(
        &mut self,
        key: Key,
        operation: Operation,
        header: &Header,
        interest: &Interest<'_>,
    ) {
        let Some(connection) = self.table.connections.get_mut(&key) else {
            return;
        };
        match (operation, connection.stage) {
            (Operation::Response, Stage::Requested) => self.established(key, interest),
            (Operation::Reset, _) => self.forget_by_guest(key, interest),
            (Operation::Shutdown, Stage::Open | Stage::Closing) => {
                connection.shut_down(header.flags);
                self.settle(key, interest);
            }
            (Operation::Data, Stage::Open) if !connection.guest_finished() => {
                self.data(key, header.length, interest)
            }
            // The program on the host is gone: what still comes goes nowhere.
            (Operation::Data, Stage::Closing) => {}
            (Operation::CreditUpdate, _) => {}
            (Operation::CreditRequest, _) => self.table.reply(key, Operation::CreditUpdate),
            _ => {
                self.malformed("a packet that does not belong where its connection is");
                self.reset(key, interest);
            }
        }
    }

    /// A program in the guest wants to reach one on the host.
    fn open(&mut self, key: Key, header: &Header, interest: &Interest<'_>) {
        let stream = match self.table.connect(key.host_port) {
            Ok(stream) if self.table.has_room() => stream,
            _ => {
                self.table.reply(key, Operation::Reset);
                return;
            }
        };
        let mut connection = Connection::new(stream, Stage::Open);
        connection.note_credit(header);
        self.insert(key, connection);
        self.table.reply(key, Operation::Response);
        self.watch(key, interest);
    }

    fn insert(&mut self, key: Key, connection: Connection) {
        self.table
            .owners
            .insert(connection.fd(), Owner::Connection(key));
        self.table.connections.insert(key, connection);
    }

    /// The guest has accepted a connection of a program on the host.
    fn established(&mut self, key: Key, interest: &Interest<'_>) {
        let Some(connection) = self.table.connections.get_mut(&key) else {
            return;
        };
        connection.stage = Stage::Open;
        connection.deadline = None;
        let line = format!("OK {}\n", key.host_port);
        // A fresh socket has room for one line.
        let told = io::Write::write(&mut connection.stream, line.as_bytes());
        if told.is_ok_and(|count| count == line.len()) {
            if connection.hung_up {
                self.table.make_ready(key);
            }
            self.watch(key, interest);
        } else {
            self.reset(key, interest);
        }
    }

    fn data(&mut self, key: Key, length: u32, interest: &Interest<'_>) {
        let mut data = std::mem::take(&mut self.scratch);
        data.resize(length.min(BUFFER_BYTES) as usize, 0);
        self.segments.clear();
        let resolved = self
            .buffers
            .readable_segments(&self.memory, &mut self.segments)
            .is_ok();
        if resolved {
            self.segments.copy_to(&mut data);
        }
        let connection = self
            .table
            .connections
            .get_mut(&key)
            .filter(|_| resolved && length <= BUFFER_BYTES);
        let taken = connection.is_some_and(|connection| connection.accept(&data).is_ok());
        self.scratch = data;
        if taken {
            self.settle(key, interest);
        } else {
            self.malformed("more data than there is credit for, or data outside guest RAM");
            self.reset(key, interest);
        }
    }

    /// After something changed: tells the guest what it must know, ends the connection if nothing is left to do.
    fn settle(&mut self, key: Key, interest: &Interest<'_>) {
        let Some(connection) = self.table.connections.get_mut(&key) else {
            return;
        };
        if connection.settle() {
            self.reset(key, interest);
            return;
        }
        if connection.owes_credit() && !connection.guest_finished() {
            connection.told_forwarded = connection.forwarded;
            self.table.reply(key, Operation::CreditUpdate);
        }
        self.watch(key, interest);
    }

    /// The guest has reset a connection. What it sent before it closed its socket in good order is still delivered.
    fn forget_by_guest(&mut self, key: Key, interest: &Interest<'_>) {
        let Some(mut connection) = self.remove(key, interest) else {
            return;
        };
        connection.flush();
        if !connection.guest_closed() || connection.is_flushed() {
            return;
        }
        let fd = connection.fd();
        if interest.add(fd, EventSet::OUT).is_ok() {
            self.table.owners.insert(fd, Owner::Leftover);
            self.table.leftovers.insert(fd, connection);
        }
    }

    /// The program on the host may take more of what a closed connection has left.
    fn flush_leftover(&mut self, fd: RawFd, events: EventSet, interest: &Interest<'_>) {
        let Some(connection) = self.table.leftovers.get_mut(&fd) else {
            return;
        };
        connection.flush();
        if connection.is_flushed() || events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            let _ = interest.remove(fd);
            self.table.owners.remove(&fd);
            self.table.leftovers.remove(&fd);
        }
    }

    /// Ends a connection and tells the guest.
    fn reset(&mut self, key: Key, interest: &Interest<'_>) {
        self.remove(key, interest);
        self.table.reply(key, Operation::Reset);
    }

    fn remove(&mut self, key: Key, interest: &Interest<'_>) -> Option<Connection> {
        let mut connection = self.table.connections.remove(&key)?;
        self.table.owners.remove(&connection.fd());
        if connection.rewatch(None).is_some() {
            let _ = interest.remove(connection.fd());
        }
        Some(connection)
    }

    // ---- sockets ----

    fn accept(&mut self, interest: &Interest<'_>) {
        // Whoever finds no room is closed at once: a full table must not keep the listener ready for ever.
        while let Ok((stream, _)) = self.table.listener.accept() {
            if !self.table.has_room() || stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.table.handshakes.len() >= MAX_HANDSHAKES
                && let Some(oldest) = self
                    .table
                    .handshakes
                    .front()
                    .map(|handshake| handshake.stream.as_raw_fd())
            {
                self.take_handshake(oldest, interest);
            }
            let fd = stream.as_raw_fd();
            if interest.add(fd, EventSet::IN).is_ok() {
                self.table.owners.insert(fd, Owner::Handshake);
                self.table.handshakes.push_back(Handshake { stream });
            }
        }
    }

    fn take_handshake(&mut self, fd: RawFd, interest: &Interest<'_>) -> Option<Handshake> {
        let place = self
            .table
            .handshakes
            .iter()
            .position(|handshake| handshake.stream.as_raw_fd() == fd)?;
        let _ = interest.remove(fd);
        self.table.owners.remove(&fd);
        self.table.handshakes.remove(place)
    }

    fn continue_handshake(&mut self, fd: RawFd, interest: &Interest<'_>) {
        let mut handshakes = self.table.handshakes.iter_mut();
        let Some(handshake) = handshakes.find(|handshake| handshake.stream.as_raw_fd() == fd)
        else {
            return;
        };
        match handshake.read() {
            Said::Nothing => {}
            Said::Nonsense => {
                self.take_handshake(fd, interest);
            }
            Said::Port(guest_port) => {
                let Some(handshake) = self.take_handshake(fd, interest) else {
                    return;
                };
                let key = Key {
                    host_port: self.table.free_host_port(guest_port),
                    guest_port,
                };
                let mut connection = Connection::new(handshake.stream, Stage::Requested);
                connection.deadline = Some(Instant::now() + PATIENCE);
                self.insert(key, connection);
                self.table.reply(key, Operation::Request);
                self.start_timer();
                self.watch(key, interest);
            }
        }
    }

    fn stream_event(&mut self, key: Key, events: EventSet, interest: &Interest<'_>) {
        let Some(connection) = self.table.connections.get_mut(&key) else {
            return;
        };
        if events.contains(EventSet::OUT) {
            connection.flush();
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            connection.hung_up = true;
            if connection.stage == Stage::Requested {
                self.reset(key, interest);
                return;
            }
        }
        connection.readable |= events.contains(EventSet::IN);
        if connection.wants_to_send() {
            self.table.make_ready(key);
        } else if connection.hung_up
            && connection.finished_reading
            && connection.stage == Stage::Open
        {
            // It had ended its sending before; now it takes nothing either.
            self.end_of_stream(key, true, interest);
            return;
        }
        self.settle(key, interest);
    }

    /// Watches a connection's stream for what it waits for now, and nothing else.
    fn watch(&mut self, key: Key, interest: &Interest<'_>) {
        let Some(connection) = self.table.connections.get_mut(&key) else {
            return;
        };
        let now = connection.interest();
        let fd = connection.fd();
        let result = match (connection.rewatch(now), now) {
            (None, Some(events)) => interest.add(fd, events),
            (Some(_), None) => interest.remove(fd),
            (Some(before), Some(events)) if before != events => interest.modify(fd, events),
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::warn!("virtio-vsock cannot watch a connection: {error}");
        }
    }

    // ---- time ----

    fn start_timer(&mut self) {
        if !self.timer_runs {
            self.timer_runs = self.timer.reset(TICK, Some(TICK)).is_ok();
        }
    }

    /// Ends the connections whose guest has not answered in time.
    fn expire(&mut self, interest: &Interest<'_>) {
        let _ = self.timer.wait();
        let now = Instant::now();
        let late =
            |connection: &Connection| connection.deadline.is_some_and(|deadline| deadline <= now);
        let connections = self.table.connections.iter();
        let expired: VecDeque<Key> = connections
            .filter(|(_, c)| late(c))
            .map(|(key, _)| *key)
            .collect();
        for key in expired {
            self.reset(key, interest);
        }
        if !self
            .table
            .connections
            .values()
            .any(|connection| connection.deadline.is_some())
        {
            self.timer_runs = self.timer.clear().is_err();
        }
    }
}

/// Reads at most `most` bytes from a socket straight into guest RAM.
fn read_into(fd: RawFd, segments: &Segments, most: usize) -> io::Result<usize> {
    let mut left = most;
    let mut vectors = Vec::with_capacity(segments.remaining().len());
    for segment in segments.remaining() {
        if left == 0 {
            break;
        }
        let length = segment.iov_len.min(left);
        left -= length;
        vectors.push(libc::iovec {
            iov_base: segment.iov_base,
            iov_len: length,
        });
    }
    let count = libc::c_int::try_from(vectors.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the vectors are parts of guest RAM, which stays mapped while the worker has it.
    let count = unsafe { libc::readv(fd, vectors.as_ptr(), count) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
