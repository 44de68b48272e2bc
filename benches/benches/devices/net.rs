//! Frames between a driver and a socket in place of the tap. The socket holds what is to come, and what has gone.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use fief_devices::limiter::Limits;
use fief_devices::virtio::mock::{DATA, Driver, Part, TestInterrupt, ram};
use fief_devices::virtio::net::{Net, NetConfig, QUEUE_SIZES, Tap};
use fief_devices::virtio::{Activation, VirtioDevice};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF,
};

use crate::{Rounds, measure, pattern};

/// Bytes of a virtio-net header.
const HEADER: usize = 12;

/// Where frames and buffers lie, and how far apart.
const AREA: u64 = DATA;
const APART: u64 = 0x2_0000;

/// The frames of a benchmark.
#[derive(Clone, Copy)]
struct Frames {
    /// What precedes each.
    header: [u8; HEADER],
    /// Bytes without the header.
    length: usize,
    /// In a round.
    count: u16,
    /// Bytes of a receive buffer.
    buffer: u32,
    features: u64,
}

/// A packet of 1500 bytes behind its Ethernet header. The driver takes no larger ones.
const PACKETS: Frames = Frames {
    header: [0; HEADER],
    length: 1514,
    count: 32,
    buffer: 2048,
    features: 1 << VIRTIO_NET_F_MRG_RXBUF,
};

/// A TCP segment of 64 KiB that others cut: checksum missing, from byte 34, 16 further on; IPv4, headers of 54 bytes,
/// 1448 bytes a packet. The largest frame fills the buffers of a round.
const SEGMENTS: Frames = Frames {
    header: [1, 1, 54, 0, 0xA8, 5, 34, 0, 16, 0, 0, 0],
    length: 65_536,
    count: 1,
    buffer: 1536,
    features: 1 << VIRTIO_NET_F_MRG_RXBUF
        | 1 << VIRTIO_NET_F_GUEST_CSUM
        | 1 << VIRTIO_NET_F_GUEST_TSO4,
};

impl Frames {
    /// The `index`-th with its header.
    fn message(&self, index: u16) -> Vec<u8> {
        [&self.header[..], &pattern(index.into(), self.length)].concat()
    }

    /// Buffers that a frame fills.
    fn buffers(&self) -> u16 {
        let message = (HEADER + self.length) as u32;
        message.div_ceil(self.buffer) as u16
    }
}

struct Interface {
    net: Net,
    rx: Driver,
    tx: Driver,
    host: File,
    frames: Frames,
    messages: Vec<Vec<u8>>,
    used: Vec<(u16, u32)>,
}

impl Interface {
    fn new(frames: Frames) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        let (tap, host) = pair.unwrap();
        let config = NetConfig {
            id: "eth0".to_owned(),
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: None,
            rx_limits: Limits::default(),
            tx_limits: Limits::default(),
        };
        let mut net = Net::new(Tap::socket(tap.into(), true), config).unwrap();
        let (memory, interrupt) = (ram(), Arc::new(TestInterrupt::default()));
        let driver = |index: u16, size| Driver::new(memory, &interrupt, index, size, true);
        let (rx, tx) = (driver(0, QUEUE_SIZES[0]), driver(1, QUEUE_SIZES[1]));
        let activation = Activation {
            memory: memory.clone(),
            features: frames.features,
            queues: vec![rx.active(), tx.active()],
            interrupt,
        };
        net.activate(activation).unwrap();
        let messages = (0..frames.count)
            .map(|index| frames.message(index))
            .collect();
        Self {
            net,
            rx,
            tx,
            host: host.into(),
            frames,
            messages,
            used: Vec::new(),
        }
    }
}

/// From the guest.
struct Tx(Interface);

impl Rounds for Tx {
    fn prepare(&mut self) {
        let Interface { tx, messages, .. } = &mut self.0;
        for (index, message) in messages.iter().enumerate() {
            let at = AREA + index as u64 * APART;
            tx.write(at, message);
            // A driver's pages.
            let part =
                |(i, chunk): (usize, &[u8])| (at + i as u64 * 4096, chunk.len() as u32, false);
            let parts: Vec<Part> = message.chunks(4096).enumerate().map(part).collect();
            let head = tx.chain(&parts);
            tx.offer(head);
        }
    }

    fn run(&mut self) {
        self.0.tx.kick();
        self.0.used = self.0.tx.wait(self.0.frames.count);
    }

    fn check(&mut self, first: bool) {
        let Interface {
            net,
            host,
            messages,
            used,
            ..
        } = &self.0;
        assert_eq!(used.len(), messages.len());
        let mut message = vec![0; 1 << 17];
        for expected in messages {
            let length = recv(host.as_raw_fd(), &mut message, MsgFlags::empty()).unwrap();
            assert_eq!(length, expected.len());
            assert!(
                !first || message[..length] == expected[..],
                "other bytes came out"
            );
        }
        assert_eq!(net.metrics().tx_dropped + net.metrics().malformed, 0);
    }
}

/// To the guest.
struct Rx(Interface);

impl Rx {
    /// Buffers that the frames of a round fill.
    fn buffers(&self) -> u16 {
        self.0.frames.buffers() * self.0.frames.count
    }
}

impl Rounds for Rx {
    /// The device has no buffers, so frames wait in the socket until it is kicked.
    fn prepare(&mut self) {
        let Interface {
            host,
            messages,
            frames,
            ..
        } = &self.0;
        for message in messages {
            let sent = send(host.as_raw_fd(), message, MsgFlags::empty()).unwrap();
            assert_eq!(sent, message.len());
        }
        let bytes = frames.buffer;
        for index in 0..self.buffers() {
            let at = AREA + u64::from(index) * u64::from(bytes);
            let head = self.0.rx.chain(&[(at, bytes, true)]);
            self.0.rx.offer(head);
        }
    }

    fn run(&mut self) {
        let buffers = self.buffers();
        self.0.rx.kick();
        self.0.used = self.0.rx.wait(buffers);
    }

    fn check(&mut self, first: bool) {
        let Interface {
            net,
            rx,
            messages,
            used,
            frames,
            ..
        } = &self.0;
        assert_eq!(used.len(), usize::from(self.buffers()));
        assert_eq!(net.metrics().rx_dropped + net.metrics().malformed, 0);
        if !first {
            return;
        }
        let each = usize::from(frames.buffers());
        for (index, (expected, used)) in messages.iter().zip(used.chunks(each)).enumerate() {
            let mut expected = expected.clone();
            // num_buffers is the device's.
            expected[10..12].copy_from_slice(&frames.buffers().to_le_bytes());
            let at = |i: usize| AREA + (index * each + i) as u64 * u64::from(frames.buffer);
            let read = |(i, &(_, length))| rx.read(at(i), length as usize);
            let got: Vec<u8> = used.iter().enumerate().flat_map(read).collect();
            assert!(got == expected, "other bytes came in");
        }
    }
}

pub fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("net");
    for (name, frames, amount) in [
        ("1500-byte packets", PACKETS, Throughput::Elements(32)),
        ("64k segment", SEGMENTS, Throughput::Bytes(65_536)),
    ] {
        let tx = Tx(Interface::new(frames));
        measure(&mut group, &format!("tx, {name}"), amount.clone(), tx);
        let rx = Rx(Interface::new(frames));
        measure(&mut group, &format!("rx, {name}"), amount, rx);
    }
    group.finish();
}
