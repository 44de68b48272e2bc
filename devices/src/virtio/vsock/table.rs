//! All connections, and which of them have something to do.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::Timeouts;
use super::connection::Connection;
use super::packet::Key;
use crate::timer::Timer;
use crate::worker::Interest;

/// Most connections at a time, both directions together. Each may hold 64 KiB and a descriptor.
pub const MAX_CONNECTIONS: usize = 1024;

/// Host ports given to host programs: 2^30 to 2^31 - 1, as Firecracker does, so that they are none a service uses.
const FIRST_PORT: u32 = 1 << 30;

#[derive(Default)]
pub(super) struct Table {
    connections: HashMap<Key, Connection>,
    by_descriptor: HashMap<RawFd, Key>,
    /// Those with something for the guest, in turn; each at most once.
    ready: VecDeque<Key>,
    /// Those whose interest may have changed in this turn.
    touched: Vec<Key>,
    /// Sockets to close at the end of this turn, and whether they are watched: until then nobody gets their number.
    closing: Vec<(UnixStream, bool)>,
    /// Port given out last, counted from the first.
    last_port: u32,
}

impl Table {
    pub fn is_full(&self) -> bool {
        self.connections.len() >= MAX_CONNECTIONS
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    #[cfg(test)]
    pub fn pass_time(&mut self, now: Instant) {
        for connection in self.connections.values_mut() {
            connection.deadline = connection.deadline.map(|_| now);
        }
    }

    /// Entries of all lists that a guest could make grow.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.ready.len() + self.touched.len() + self.closing.len() + self.by_descriptor.len()
    }

    /// A host port that no connection uses. Every port is given out once before one comes again.
    pub fn free_port(&mut self) -> u32 {
        loop {
            self.last_port = self.last_port.wrapping_add(1) % FIRST_PORT;
            let port = FIRST_PORT | self.last_port;
            // At most as many rounds as there are connections, which have very few ports of these.
            if !self.connections.keys().any(|key| key.host_port == port) {
                return port;
            }
        }
    }

    pub fn insert(&mut self, key: Key, connection: Connection) {
        self.by_descriptor
            .insert(connection.stream.as_raw_fd(), key);
        self.connections.insert(key, connection);
        self.settle(key);
    }

    pub fn get(&mut self, key: Key) -> Option<&mut Connection> {
        self.connections.get_mut(&key)
    }

    pub fn key_of(&self, descriptor: RawFd) -> Option<Key> {
        self.by_descriptor.get(&descriptor).copied()
    }

    /// Something has happened to a connection.
    pub fn settle(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        if !connection.queued && connection.has_packet() {
            connection.queued = true;
            self.ready.push_back(key);
        }
        if !connection.touched {
            connection.touched = true;
            self.touched.push(key);
        }
    }

    /// Forgets a connection.
    pub fn remove(&mut self, key: Key) {
        let Some(connection) = self.connections.remove(&key) else {
            return;
        };
        if connection.queued {
            // Left there, a guest that opens and closes would make the list grow.
            self.ready.retain(|&other| other != key);
        }
        self.by_descriptor.remove(&connection.stream.as_raw_fd());
        self.close(connection.stream, connection.watched.is_some());
    }

    /// Closes a socket at the end of this turn.
    pub fn close(&mut self, stream: UnixStream, watched: bool) {
        self.closing.push((stream, watched));
    }

    /// Closes what waits to be closed, while nothing is watched.
    pub fn close_now(&mut self) {
        self.closing.clear();
    }

    pub fn remove_all(&mut self) {
        let keys: Vec<Key> = self.connections.keys().copied().collect();
        for key in keys {
            self.remove(key);
        }
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The connection whose turn it is. It has to be settled again.
    pub fn next_ready(&mut self) -> Option<(Key, &mut Connection)> {
        let key = self.ready.pop_front()?;
        let connection = self.connections.get_mut(&key)?;
        connection.queued = false;
        Some((key, connection))
    }

    /// The worker has changed: begins with nothing watched and every connection to be looked at.
    pub fn reregister(&mut self, timeouts: &Timeouts) {
        self.close_now();
        let keys: Vec<Key> = self.connections.keys().copied().collect();
        for key in keys {
            if let Some(connection) = self.connections.get_mut(&key) {
                connection.reregister(timeouts);
            }
            self.settle(key);
        }
    }

    /// The end of a turn: closes sockets, watches what is to be watched and lets `timer` know of deadlines. Returns the
    /// connections whose socket cannot be watched.
    pub fn end_turn(&mut self, interest: &Interest<'_>, timer: &mut Timer) -> Vec<Key> {
        for (stream, watched) in self.closing.drain(..) {
            if watched && let Err(error) = interest.remove(stream.as_raw_fd()) {
                tracing::error!("vsock: cannot stop watching a socket: {error}");
            }
        }
        let mut failed = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.touched = false;
            if let Some(deadline) = connection.deadline {
                timer.by(deadline);
            }
            let (old, new) = (connection.watched, connection.interest());
            match watch(interest, connection.stream.as_raw_fd(), old, new) {
                Ok(()) => connection.watched = new,
                Err(error) => {
                    tracing::error!("vsock: cannot watch a socket: {error}");
                    failed.push(key);
                }
            }
        }
        failed
    }

    /// Connections whose deadline has passed, and the earliest of the others.
    pub fn expired(&self, now: Instant) -> (Vec<Key>, Option<Instant>) {
        let mut next: Option<Instant> = None;
        let mut keys = Vec::new();
        for (key, connection) in &self.connections {
            match connection.deadline {
                Some(deadline) if deadline <= now => keys.push(*key),
                Some(deadline) => next = Some(next.map_or(deadline, |next| next.min(deadline))),
                None => {}
            }
        }
        (keys, next)
    }
}

fn watch(
    interest: &Interest<'_>,
    descriptor: RawFd,
    old: Option<EventSet>,
    new: Option<EventSet>,
) -> std::io::Result<()> {
    match (old, new) {
        (old, new) if old == new => Ok(()),
        (None, Some(events)) => interest.add(descriptor, events),
        (Some(_), Some(events)) => interest.modify(descriptor, events),
        (Some(_), None) => interest.remove(descriptor),
        (None, None) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_passed_over_also_at_the_end_of_the_range() {
        let mut table = Table::default();
        let mut others = Vec::new();
        for (host_port, guest_port) in [(0x4000_0001, 9), (0x7FFF_FFFF, 9), (0x4000_0000, 8)] {
            let key = Key {
                host_port,
                guest_port,
            };
            let (ours, other) = UnixStream::pair().unwrap();
            others.push(other);
            let connection = Connection::to_guest(key, ours, None, Instant::now());
            table.insert(key, connection);
        }
        assert_eq!(table.free_port(), 0x4000_0002);
        table.last_port = 0x3FFF_FFFD;
        assert_eq!(table.free_port(), 0x7FFF_FFFE);
        assert_eq!(table.free_port(), 0x4000_0002);
    }
}
