//! The connections of a device and its listening socket: everything that outlives a pause.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::connection::{Connection, Handshake, Key};
use super::packet::{HOST_CID, Header, Operation, TYPE_STREAM};

/// Most connections at once, programs in the handshake included.
pub const MAX_CONNECTIONS: usize = 1024;
/// Most programs on the host that have connected and not said their line; the oldest gives way.
pub const MAX_HANDSHAKES: usize = 64;
/// Headers that wait for a receive buffer; when there are so many, the guest's packets wait.
pub const MAX_REPLIES: usize = 1024;
/// First port that programs on the host get as theirs; below are those that guests may want to reach.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// What a descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Handshake,
    Connection(Key),
    /// The guest has closed it; the program on the host still has to take the rest.
    Leftover,
}

/// The host's side of the device.
pub struct Table {
    pub guest_cid: u32,
    pub listener: UnixListener,
    path: PathBuf,
    pub connections: HashMap<Key, Connection>,
    pub handshakes: VecDeque<Handshake>,
    /// Connections that the guest has closed and whose last data the program on the host has not taken.
    pub leftovers: HashMap<RawFd, Connection>,
    pub owners: HashMap<RawFd, Owner>,
    /// Headers for the guest, in order.
    pub replies: VecDeque<Header>,
    /// Connections that may have data for the guest, in turn.
    pub ready: VecDeque<Key>,
    next_host_port: u32,
}

impl Table {
    pub fn new(guest_cid: u32, path: PathBuf, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            guest_cid,
            listener,
            path,
            connections: HashMap::new(),
            handshakes: VecDeque::new(),
            leftovers: HashMap::new(),
            owners: HashMap::new(),
            replies: VecDeque::new(),
            ready: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
        })
    }

    /// Drops every connection: the guest has forgotten them.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.handshakes.clear();
        self.leftovers.clear();
        self.owners.clear();
        self.replies.clear();
        self.ready.clear();
    }

    /// True if there is room for another connection.
    pub fn has_room(&self) -> bool {
        self.connections.len() + self.leftovers.len() < MAX_CONNECTIONS
    }

    /// A header from the host to the guest's side of `key`.
    pub fn header(&self, key: Key, operation: Operation) -> Header {
        Header {
            source_cid: HOST_CID,
            target_cid: u64::from(self.guest_cid),
            source_port: key.host_port,
            target_port: key.guest_port,
            length: 0,
            kind: TYPE_STREAM,
            operation: Some(operation),
            flags: 0,
            buffer_size: super::connection::BUFFER_BYTES,
            forwarded: 0,
        }
    }

    /// Sends `operation` to the guest when there is a receive buffer.
    pub fn reply(&mut self, key: Key, operation: Operation) {
        self.reply_with(key, operation, 0);
    }

    /// As [`reply`](Self::reply), with flags.
    pub fn reply_with(&mut self, key: Key, operation: Operation, flags: u32) {
        let header = Header {
            flags,
            ..self.header(key, operation)
        };
        self.replies.push_back(header);
    }

    /// A port of the host that has no connection to `guest_port`.
    pub fn free_host_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_host_port;
            self.next_host_port = host_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            // There are far more ports than connections.
            if !self.connections.contains_key(&Key {
                host_port,
                guest_port,
            }) {
                return host_port;
            }
        }
    }

    /// Puts a connection in the line of those that are asked for data.
    pub fn make_ready(&mut self, key: Key) {
        if !self.ready.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// Connects to the program that listens for guests' connections to `port`.
    ///
    /// # Errors
    /// There is none, or its backlog is full.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut name = self.path.clone().into_os_string();
        name.push(format!("_{port}"));
        let bytes = name.as_bytes();
        // SAFETY: an all-zero sockaddr_un is a valid value.
        let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
        address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
        if bytes.len() >= address.sun_path.len() {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        for (to, from) in address.sun_path.iter_mut().zip(bytes) {
            *to = from.cast_signed();
        }
        // SAFETY: plain system call; the result is checked and owned at once. Not blocking from the start: connecting to
        // a full backlog would stop the worker otherwise.
        let socket = unsafe {
            let flags = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = libc::socket(libc::AF_UNIX, flags, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
        // SAFETY: the address is a whole sockaddr_un of the length given.
        let connected =
            unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if connected < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(UnixStream::from(socket))
    }
}
