//! Bytes between a guest's stream and a host program's unix socket, 64 KiB a round.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use fief_devices::virtio::mock::{DATA, Driver, TestInterrupt, ram};
use fief_devices::virtio::vsock::{
    BUF_ALLOC, HEADER_BYTES, HOST_CID, Header, QUEUE_SIZES, TYPE_STREAM, Vsock, op,
};
use fief_devices::virtio::{Activation, VirtioDevice};
use tempfile::TempDir;

use crate::{Rounds, measure, pattern};

const CID: u32 = 42;
const PORT: u32 = 1024;

/// What a round sends: as much as the device has room for.
const BYTES: u32 = BUF_ALLOC;

/// Where packets to send and buffers to receive lie, each with room for a header and a round's bytes.
const TX_AREA: u64 = DATA;
const RX_AREA: u64 = DATA + 0x80_0000;
const APART: u64 = 0x2_0000;

/// Room that the guest says it has.
const GUEST_ROOM: u32 = 1 << 20;

/// A guest with one connection, and the host program that made it.
struct Connection {
    device: Vsock,
    rx: Driver,
    tx: Driver,
    host: UnixStream,
    host_port: u32,
    /// Payload of a packet.
    packet: u32,
    data: Vec<u8>,
    /// Of the device's receive buffer: bytes sent, and those that it has passed on.
    sent: u32,
    forwarded: u32,
    received: u32,
    /// Where the receive buffers are, by their heads.
    buffers: HashMap<u16, u64>,
    /// Used entries of the round.
    used: Vec<(u16, u32)>,
    _directory: TempDir,
}

impl Connection {
    fn new(packet: u32) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("v");
        let mut device = Vsock::new(CID, &path).unwrap();
        let (memory, interrupt) = (ram(), Arc::new(TestInterrupt::default()));
        let driver = |index: u16| {
            let size = QUEUE_SIZES[usize::from(index)];
            Driver::new(memory, &interrupt, index, size, true)
        };
        let (rx, tx, event) = (driver(0), driver(1), driver(2));
        let activation = Activation {
            memory: memory.clone(),
            features: device.features(),
            queues: vec![rx.active(), tx.active(), event.active()],
            interrupt,
        };
        device.activate(activation).unwrap();
        let host = UnixStream::connect(&path).unwrap();
        // Ends a broken benchmark.
        host.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut connection = Self {
            device,
            rx,
            tx,
            host,
            host_port: 0,
            packet,
            data: pattern(7, BYTES as usize),
            sent: 0,
            forwarded: 0,
            received: 0,
            buffers: HashMap::new(),
            used: Vec::new(),
            _directory: directory,
        };
        connection.accept();
        connection
    }

    fn accept(&mut self) {
        writeln!(self.host, "CONNECT {PORT}").unwrap();
        self.offer_buffers(1);
        self.rx.kick();
        let (request, _) = self.next_packet();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, PORT));
        self.host_port = request.src_port;
        self.say(op::RESPONSE);
        let expected = format!("OK {}\n", self.host_port);
        let mut answer = vec![0; expected.len()];
        self.host.read_exact(&mut answer).unwrap();
        assert_eq!(answer, expected.as_bytes());
    }

    fn header(&self, op: u16, len: u32) -> Header {
        Header {
            src_cid: u64::from(CID),
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: self.host_port,
            len,
            kind: TYPE_STREAM,
            op,
            flags: 0,
            buf_alloc: GUEST_ROOM,
            fwd_cnt: self.received,
        }
    }

    /// Sends a packet without payload.
    fn say(&mut self, op: u16) {
        let header = self.header(op, 0);
        self.tx.write(TX_AREA, &header.bytes());
        let head = self.tx.chain(&[(TX_AREA, HEADER_BYTES as u32, false)]);
        assert_eq!(self.tx.run(head), 0);
    }

    fn packets(&self) -> u16 {
        (BYTES / self.packet) as u16
    }

    fn offer_buffers(&mut self, count: u16) {
        for index in 0..u64::from(count) {
            let at = RX_AREA + index * APART;
            let bytes = HEADER_BYTES as u32 + self.packet;
            let head = self.rx.chain(&[(at, bytes, true)]);
            self.buffers.insert(head, at);
            self.rx.offer(head);
        }
    }

    /// The packet in a used buffer: header and payload.
    fn packet(&self, (head, length): (u16, u32)) -> (Header, Vec<u8>) {
        let at = self.buffers[&head];
        let header = self.rx.read(at, HEADER_BYTES);
        let header = Header::parse(header[..].try_into().unwrap());
        assert_eq!(length, HEADER_BYTES as u32 + header.len);
        let payload = self.rx.read(at + HEADER_BYTES as u64, header.len as usize);
        (header, payload)
    }

    fn next_packet(&mut self) -> (Header, Vec<u8>) {
        let used = self.rx.wait(1);
        assert_eq!(used.len(), 1);
        self.packet(used[0])
    }
}

struct FromGuest(Connection);

impl Rounds for FromGuest {
    fn prepare(&mut self) {
        let packets = self.0.packets();
        let header = self.0.header(op::RW, self.0.packet);
        let Connection {
            tx, data, packet, ..
        } = &mut self.0;
        for (index, payload) in data.chunks(*packet as usize).enumerate() {
            let at = TX_AREA + index as u64 * APART;
            tx.write(at, &header.bytes());
            tx.write(at + HEADER_BYTES as u64, payload);
            let head = tx.chain(&[(at, HEADER_BYTES as u32 + *packet, false)]);
            tx.offer(head);
        }
        assert_eq!(usize::from(packets), data.len() / *packet as usize);
        self.0.sent = self.0.sent.wrapping_add(BYTES);
    }

    fn run(&mut self) {
        let packets = self.0.packets();
        self.0.tx.kick();
        self.0.used = self.0.tx.wait(packets);
    }

    /// What the device says of its room is read too, or the next round would be more than there is room for.
    fn check(&mut self, first: bool) {
        let mut got = vec![0; BYTES as usize];
        self.0.host.read_exact(&mut got).unwrap();
        assert!(!first || got == self.0.data, "other bytes came out");
        while self.0.forwarded != self.0.sent {
            self.0.offer_buffers(1);
            self.0.rx.kick();
            let (header, _) = self.0.next_packet();
            assert_eq!(header.op, op::CREDIT_UPDATE);
            self.0.forwarded = header.fwd_cnt;
        }
        assert_eq!(self.0.device.metrics().malformed, 0);
    }
}

struct ToGuest(Connection);

impl Rounds for ToGuest {
    /// The device has no buffers, so the bytes wait in the socket until it is kicked.
    fn prepare(&mut self) {
        let Connection { host, data, .. } = &mut self.0;
        host.write_all(data).unwrap();
        let packets = self.0.packets();
        self.0.offer_buffers(packets);
    }

    fn run(&mut self) {
        let packets = self.0.packets();
        self.0.rx.kick();
        self.0.used = self.0.rx.wait(packets);
    }

    fn check(&mut self, first: bool) {
        let used = std::mem::take(&mut self.0.used);
        let payload = used.iter().map(|&(_, length)| length - HEADER_BYTES as u32);
        assert!(payload.eq(std::iter::repeat_n(self.0.packet, used.len())));
        assert_eq!(used.len(), usize::from(self.0.packets()));
        if first {
            let payload = used.iter().flat_map(|&used| self.0.packet(used).1);
            assert!(
                payload.eq(self.0.data.iter().copied()),
                "other bytes came in"
            );
        }
        self.0.received = self.0.received.wrapping_add(BYTES);
        self.0.say(op::CREDIT_UPDATE);
    }
}

pub fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("vsock");
    for (name, packet) in [("4k packets", 4096), ("64k packets", BYTES)] {
        let amount = || Throughput::Bytes(u64::from(BYTES));
        let from = FromGuest(Connection::new(packet));
        measure(&mut group, &format!("from guest, {name}"), amount(), from);
        let to = ToGuest(Connection::new(packet));
        measure(&mut group, &format!("to guest, {name}"), amount(), to);
    }
    group.finish();
}
