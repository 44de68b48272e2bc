//! A guest with a vsock driver that behaves, and can be made not to.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use tempfile::TempDir;
use virtio_bindings::bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;

use super::super::packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, op};
use super::super::*;
use crate::virtio::mock::{DATA, Driver, Part, TestInterrupt, ram};

pub const CID: u32 = 42;

/// Where the tx queue's packets lie: before the rx queue's buffers.
const TX_AREA: u64 = DATA;
/// Where the rx queue's buffers lie, one behind the other.
pub const RX_AREA: u64 = DATA + 0x8_0000;

/// What a guest has come to: header and payload.
pub type Packet = (Header, Vec<u8>);

/// One end of a connection, as the guest keeps it.
#[derive(Debug, Clone, Copy)]
pub struct Socket {
    /// Size of the guest's buffer, as it says.
    pub buf_alloc: u32,
    /// Bytes that the guest has received, and taken out of its buffer.
    pub received: u32,
    pub fwd_cnt: u32,
    /// Bytes that it has sent, and what it knows of the device's buffer.
    pub sent: u32,
    pub peer_buf_alloc: u32,
    pub peer_fwd_cnt: u32,
}

impl Socket {
    fn new() -> Self {
        Self {
            buf_alloc: 256 << 10,
            received: 0,
            fwd_cnt: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
        }
    }

    /// One that has sent nothing and been told everything.
    pub fn peer_of(header: &Header) -> Self {
        Self {
            buf_alloc: header.buf_alloc,
            peer_buf_alloc: BUF_ALLOC,
            ..Self::new()
        }
    }

    /// What it may send.
    pub fn credit(&self) -> usize {
        let ahead = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc.checked_sub(ahead).unwrap() as usize
    }
}

pub struct Guest {
    pub device: Vsock,
    pub rx: Driver,
    pub tx: Driver,
    pub event: Driver,
    pub interrupt: Arc<TestInterrupt>,
    pub dir: TempDir,
    /// By host port and guest port.
    pub sockets: HashMap<(u32, u32), Socket>,
    /// What it does not say of itself: received packets are taken from the guest's buffer at once.
    pub reads_at_once: bool,
    /// The guest gives a used rx buffer back at once.
    pub refills: bool,
    received: VecDeque<Packet>,
    buffers: HashMap<u16, u64>,
    buffer_bytes: u32,
    event_idx: bool,
    /// Rx buffers offered so far: the index of the avail ring.
    offered: u16,
}

/// How a guest is made.
pub struct Setup {
    pub event_idx: bool,
    pub timeouts: Timeouts,
    pub rx_buffers: u16,
    pub rx_buffer_bytes: u32,
}

impl Default for Setup {
    fn default() -> Self {
        let long = Duration::from_secs(3600);
        Self {
            event_idx: true,
            timeouts: Timeouts {
                handshake: long,
                request: long,
                linger: long,
            },
            rx_buffers: 64,
            rx_buffer_bytes: 4096,
        }
    }
}

impl Guest {
    pub fn new() -> Self {
        Self::with(Setup::default())
    }

    pub fn with(setup: Setup) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("v");
        let listener = Listener::bind(&path).unwrap();
        let device = Vsock::build(CID, &path, listener, setup.timeouts).unwrap();
        let mut guest = Self::around(device, dir, setup.event_idx);
        guest.post_buffers(setup.rx_buffers, setup.rx_buffer_bytes);
        guest.activate();
        guest
    }

    /// A guest whose driver has not started the device yet, and has no buffers.
    pub fn around(device: Vsock, dir: TempDir, event_idx: bool) -> Self {
        let (memory, interrupt) = (ram(), Arc::new(TestInterrupt::default()));
        let driver = |index: u16, size| Driver::new(memory, &interrupt, index, size, event_idx);
        Self {
            device,
            rx: driver(0, QUEUE_SIZES[0]),
            tx: driver(1, QUEUE_SIZES[1]),
            event: driver(2, QUEUE_SIZES[2]),
            interrupt,
            dir,
            sockets: HashMap::new(),
            reads_at_once: true,
            refills: true,
            received: VecDeque::new(),
            buffers: HashMap::new(),
            buffer_bytes: 0,
            event_idx,
            offered: 0,
        }
    }

    pub fn queues(&self) -> Vec<ActiveQueue> {
        vec![self.rx.active(), self.tx.active(), self.event.active()]
    }

    pub fn activate(&mut self) {
        let queues = self.queues();
        self.activate_with(queues);
    }

    pub fn activate_with(&mut self, queues: Vec<ActiveQueue>) {
        self.device
            .activate(Activation {
                memory: self.rx.memory.clone(),
                features: 0,
                queues,
                interrupt: self.interrupt.clone(),
            })
            .unwrap();
    }

    /// Offers `count` rx buffers of `bytes` each; no more than 256 in all.
    pub fn post_buffers(&mut self, count: u16, bytes: u32) {
        self.buffer_bytes = bytes;
        for _ in 0..count {
            let at = RX_AREA + self.buffers.len() as u64 * u64::from(bytes);
            // Header and payload apart, as older drivers do it, or in one.
            let parts = [(at, bytes, true)];
            let head = self.rx.chain(&parts);
            self.buffers.insert(head, at);
            self.offer(&[head]);
        }
    }

    /// Offers rx buffers and kicks only if the device wants to know, as a driver that saves its exits does
    /// (virtio 1.3 §2.7.10).
    pub fn offer(&mut self, heads: &[u16]) {
        let old = self.offered;
        for &head in heads {
            self.rx.offer(head);
        }
        self.offered = old.wrapping_add(heads.len() as u16);
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.rx.avail_event();
            self.offered.wrapping_sub(event).wrapping_sub(1) < self.offered.wrapping_sub(old)
        } else {
            let flags = self.rx.read(0x8000, 2);
            u32::from(flags[0]) & VRING_USED_F_NO_NOTIFY == 0
        };
        if wanted {
            self.rx.kick();
        }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("v")
    }

    // Packets

    /// The next packet from the device, which must come.
    pub fn receive(&mut self) -> Packet {
        if let Some(packet) = self.take_received() {
            return packet;
        }
        let used = self.rx.wait(1);
        self.read(used);
        self.take_received().unwrap()
    }

    fn take_received(&mut self) -> Option<Packet> {
        let packet = self.received.pop_front();
        packet.or_else(|| {
            let used = self.rx.collect();
            self.read(used);
            self.received.pop_front()
        })
    }

    /// The next packet if one is there.
    pub fn try_receive(&mut self) -> Option<Packet> {
        self.take_received()
    }

    fn read(&mut self, used: Vec<(u16, u32)>) {
        for &(head, length) in &used {
            let at = self.buffers[&head];
            assert!(length >= HEADER_BYTES as u32, "a buffer came back empty");
            let bytes = self.rx.read(at, HEADER_BYTES);
            let header = Header::parse(bytes[..].try_into().unwrap());
            assert_eq!(length, HEADER_BYTES as u32 + header.len);
            assert_eq!(header.dst_cid, u64::from(CID));
            assert!(header.op == op::RW || header.len == 0);
            let payload = self.rx.read(at + HEADER_BYTES as u64, header.len as usize);
            self.note(&header);
            self.received.push_back((header, payload));
        }
        if self.refills {
            let heads: Vec<u16> = used.iter().map(|&(head, _)| head).collect();
            self.offer(&heads);
        }
    }

    /// Keeps the books.
    fn note(&mut self, header: &Header) {
        let key = (header.src_port, header.dst_port);
        if header.op == op::REQUEST {
            self.sockets.insert(key, Socket::new());
        }
        let Some(socket) = self.sockets.get_mut(&key) else {
            return;
        };
        if header.op == op::RST {
            self.sockets.remove(&key);
            return;
        }
        assert_eq!(header.buf_alloc, BUF_ALLOC);
        socket.peer_buf_alloc = header.buf_alloc;
        socket.peer_fwd_cnt = header.fwd_cnt;
        socket.received = socket.received.wrapping_add(header.len);
        let waiting = socket.received.wrapping_sub(socket.fwd_cnt);
        assert!(waiting <= socket.buf_alloc, "more than there is credit for");
        if self.reads_at_once {
            socket.fwd_cnt = socket.received;
        }
    }

    /// A header as the guest's driver writes it.
    pub fn header(&self, op: u16, host_port: u32, guest_port: u32) -> Header {
        let socket = self.sockets.get(&(host_port, guest_port));
        Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: socket.map_or(0, |s| s.buf_alloc),
            fwd_cnt: socket.map_or(0, |s| s.fwd_cnt),
            ..Header::default()
        }
    }

    /// Sends `header` and waits until the device has taken it.
    pub fn send(&mut self, header: &Header, payload: &[u8]) {
        let head = self.tx_chain(header, payload);
        assert_eq!(self.tx.run(head), 0);
    }

    /// Writes a packet, without offering it.
    pub fn tx_chain(&mut self, header: &Header, payload: &[u8]) -> u16 {
        self.tx.write(TX_AREA, &header.bytes());
        let mut parts: Vec<Part> = vec![(TX_AREA, HEADER_BYTES as u32, false)];
        if !payload.is_empty() {
            self.tx.write(TX_AREA + 64, payload);
            parts.push((TX_AREA + 64, payload.len() as u32, false));
        }
        self.tx.chain(&parts)
    }

    /// A packet without payload.
    pub fn say(&mut self, op: u16, key: (u32, u32)) {
        self.say_with(op, key, 0);
    }

    pub fn say_with(&mut self, op: u16, key: (u32, u32), flags: u32) {
        let header = Header {
            flags,
            ..self.header(op, key.0, key.1)
        };
        self.send(&header, &[]);
    }

    /// Data, whether there is credit for it or not.
    pub fn data(&mut self, key: (u32, u32), payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..self.header(op::RW, key.0, key.1)
        };
        if let Some(socket) = self.sockets.get_mut(&key) {
            socket.sent = socket.sent.wrapping_add(header.len);
        }
        self.send(&header, payload);
    }

    /// Expects a packet without payload.
    pub fn expect(&mut self, op: u16, key: (u32, u32)) -> Header {
        let (header, payload) = self.receive();
        assert_eq!(
            (header.op, header.src_port, header.dst_port),
            (op, key.0, key.1),
            "{header:?}"
        );
        assert_eq!(payload, []);
        header
    }

    pub fn expect_data(&mut self, key: (u32, u32), count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let (header, payload) = self.receive();
            assert_eq!(
                (header.op, header.src_port, header.dst_port),
                (op::RW, key.0, key.1),
                "{header:?}"
            );
            bytes.extend(payload);
        }
        assert_eq!(bytes.len(), count);
        bytes
    }

    // Connections

    /// A host program that has connected and said `line`.
    pub fn dial(&self, line: &[u8]) -> UnixStream {
        let mut stream = patient(UnixStream::connect(self.path()).unwrap());
        stream.write_all(line).unwrap();
        stream
    }

    /// A connection of a host program to `port` that the guest has accepted.
    pub fn accept(&mut self, port: u32) -> (UnixStream, (u32, u32)) {
        let mut stream = self.dial(format!("CONNECT {port}\n").as_bytes());
        let key = self.expect_request(port);
        self.say(op::RESPONSE, key);
        assert_eq!(read_line(&mut stream), format!("OK {}\n", key.0));
        (stream, key)
    }

    pub fn expect_request(&mut self, port: u32) -> (u32, u32) {
        let (header, _) = self.receive();
        assert_eq!(
            (header.op, header.dst_port),
            (op::REQUEST, port),
            "{header:?}"
        );
        assert_eq!(header.src_cid, HOST_CID);
        assert_eq!(header.kind, TYPE_STREAM);
        (header.src_port, header.dst_port)
    }

    /// A host program that listens for the guest's connections to `port`.
    pub fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap()
    }

    /// A connection of the guest from `key.1` to port `key.0`, where `listener` listens.
    pub fn connect(&mut self, listener: &UnixListener, key: (u32, u32)) -> UnixStream {
        self.request(key);
        self.expect(op::RESPONSE, key);
        patient(listener.accept().unwrap().0)
    }

    pub fn request(&mut self, key: (u32, u32)) {
        self.sockets.insert(key, Socket::new());
        self.say(op::REQUEST, key);
    }

    /// Proves that the device still serves: a new connection in both directions.
    pub fn assert_serves(&mut self) {
        let (mut stream, key) = self.accept(7);
        stream.write_all(b"to the guest").unwrap();
        assert_eq!(self.expect_data(key, 12), b"to the guest");
        self.data(key, b"to the host");
        let mut bytes = [0; 11];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"to the host");
        self.say(op::RST, key);
        assert_eof(&mut stream);
    }
}

/// A stream that ends a broken test instead of waiting for ever; nothing is measured.
pub fn patient(stream: UnixStream) -> UnixStream {
    let minute = Some(Duration::from_secs(60));
    stream.set_read_timeout(minute).unwrap();
    stream.set_write_timeout(minute).unwrap();
    stream
}

/// Reads up to a newline and no further.
pub fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}

/// The device has closed `stream`, and has not said anything before.
pub fn assert_eof(stream: &mut UnixStream) {
    match stream.read(&mut [0; 16]) {
        Ok(0) => {}
        // It was closed with something unread in it.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?} instead of the end"),
    }
}
