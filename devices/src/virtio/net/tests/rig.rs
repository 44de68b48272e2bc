//! A guest with a network driver, and a socket in place of the tap.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use crate::virtio::mock::{DATA, Driver, Part, TestInterrupt, ram};

/// Where the tests put frames to send, and where receive buffers lie.
pub const TX_AREA: u64 = DATA;
pub const RX_AREA: u64 = DATA + 0x10_0000;

/// What the drivers of these tests take unless they say otherwise.
pub const MERGED: u64 = feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4;

pub const HEADER: u32 = offload::HEADER_BYTES as u32;

/// Both ends of a socket that keeps messages apart: the device's, which does not block, and the host's.
pub fn socket_pair() -> (File, File) {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `ends` has room for the two descriptors, which nobody else owns.
    let [ours, theirs] = unsafe {
        let result = libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr());
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        ends.map(|end| OwnedFd::from_raw_fd(end))
    };
    (ours.into(), theirs.into())
}

pub fn config() -> NetConfig {
    NetConfig {
        id: "eth0".to_owned(),
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: None,
        rx_limits: Limits::default(),
        tx_limits: Limits::default(),
    }
}

/// A frame of `length` bytes that differs from others.
pub fn frame(seed: u8, length: usize) -> Vec<u8> {
    let byte = |i: usize| (i as u8).wrapping_mul(31).wrapping_add(seed);
    (0..length).map(byte).collect()
}

pub struct Rig {
    pub net: Net,
    pub rx: Driver,
    pub tx: Driver,
    pub interrupt: Arc<TestInterrupt>,
    pub host: File,
    pub features: u64,
}

impl Rig {
    pub fn new(features: u64) -> Self {
        Self::with(features, config(), true)
    }

    /// A device that is not active.
    pub fn with(features: u64, config: NetConfig, event_idx: bool) -> Self {
        let (ours, host) = socket_pair();
        let net = Net::new(Tap::socket(ours, true), config).unwrap();
        let (memory, interrupt) = (ram(), Arc::new(TestInterrupt::default()));
        let driver = |index: u16| {
            let size = QUEUE_SIZES[usize::from(index)];
            Driver::new(memory, &interrupt, index, size, event_idx)
        };
        Self {
            net,
            rx: driver(0),
            tx: driver(1),
            interrupt,
            host,
            features,
        }
    }

    /// A device that serves its queues.
    pub fn started(features: u64) -> Self {
        let mut rig = Self::new(features);
        rig.activate();
        rig
    }

    pub fn activate(&mut self) {
        let queues = vec![self.rx.active(), self.tx.active()];
        self.activate_with(queues);
    }

    pub fn activate_with(&mut self, queues: Vec<ActiveQueue>) {
        self.net
            .activate(Activation {
                memory: self.rx.memory.clone(),
                features: self.features,
                queues,
                interrupt: self.interrupt.clone(),
            })
            .unwrap();
    }

    /// Offers the `index`-th receive buffer of `bytes` each.
    pub fn offer_buffer(&mut self, index: u64, bytes: u32) -> u16 {
        let at = RX_AREA + index * u64::from(bytes);
        self.rx.write(at, &vec![0xEE; bytes as usize]);
        let head = self.rx.chain(&[(at, bytes, true)]);
        self.rx.offer(head);
        head
    }

    /// A frame comes from the host.
    pub fn host_sends(&self, frame: &[u8]) {
        let message = [&[0; offload::HEADER_BYTES], frame].concat();
        self.host_writes(&message).unwrap();
    }

    pub fn host_writes(&self, message: &[u8]) -> io::Result<()> {
        let fd = self.host.as_raw_fd();
        // SAFETY: pointer and length describe `message`.
        let sent = unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) };
        match sent {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The next message at the host, header and frame, which must come.
    pub fn host_receives(&self) -> Vec<u8> {
        self.wait_for_host();
        self.host_reads().unwrap()
    }

    /// A message at the host, if there is one.
    pub fn host_reads(&self) -> io::Result<Vec<u8>> {
        let mut message = vec![0; 1 << 17];
        let fd = self.host.as_raw_fd();
        // SAFETY: pointer and length describe `message`.
        let got = unsafe { libc::recv(fd, message.as_mut_ptr().cast(), message.len(), 0) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        message.truncate(got);
        Ok(message)
    }

    /// Waits for a message; the minute is there to end a broken test, not to measure.
    fn wait_for_host(&self) {
        let mut entry = libc::pollfd {
            fd: self.host.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer and the count describe `entry`.
        let ready = unsafe { libc::poll(&mut entry, 1, 60_000) };
        assert_eq!(ready, 1, "nothing comes");
    }

    /// The guest sends a frame behind a header of zeros; it is not waited for.
    pub fn guest_sends(&mut self, at: u64, frame: &[u8]) -> u16 {
        let head = self.tx_chain(at, frame);
        self.tx.offer(head);
        self.tx.kick();
        head
    }

    pub fn tx_chain(&mut self, at: u64, frame: &[u8]) -> u16 {
        self.tx.write(at, &[0; offload::HEADER_BYTES]);
        self.tx.write(at + u64::from(HEADER), frame);
        self.tx.chain(&[(at, HEADER + frame.len() as u32, false)])
    }

    /// The guest sends a chain and gets it back.
    pub fn guest_runs(&mut self, parts: &[Part]) {
        let head = self.tx.chain(parts);
        assert_eq!(self.tx.run(head), 0);
    }

    /// The bytes that the used entries tell of, from the buffers at [`RX_AREA`] of `bytes` each whose heads are their numbers.
    pub fn contents(&self, used: &[(u16, u32)], bytes: u32) -> Vec<u8> {
        let read = |&(head, length): &(u16, u32)| {
            let at = RX_AREA + u64::from(head) * u64::from(bytes);
            self.rx.read(at, length as usize)
        };
        used.iter().flat_map(read).collect()
    }

    /// A frame still goes both ways.
    pub fn assert_serves(&mut self) {
        self.assert_sends();
        let frame = frame(77, 200);
        let at = RX_AREA + 0xF_0000;
        let head = self.rx.chain(&[(at, 2048, true)]);
        self.rx.offer(head);
        self.rx.kick();
        self.host_sends(&frame);
        let used = self.rx.wait(1);
        assert_eq!(used.last(), Some(&(head, HEADER + 200)));
        assert_eq!(self.rx.read(at + u64::from(HEADER), 200), frame);
    }

    pub fn assert_sends(&mut self) {
        let frame = frame(99, 100);
        self.guest_sends(TX_AREA + 0x8_0000, &frame);
        self.tx.wait(1);
        assert_eq!(self.host_receives()[offload::HEADER_BYTES..], frame);
    }

    /// Waits until a counter has reached `count`.
    pub fn wait_for(&self, count: u64, counter: impl Fn(&NetMetrics) -> u64) {
        for _ in 0..60_000 {
            if counter(&self.net.metrics()) >= count {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("{:?}", self.net.metrics());
    }

    /// Waits until the worker has been woken after it was `before` times.
    pub fn wait_for_turn(&self, before: u64) {
        while self.turns() == before {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes what waits at the device's end, while it is not served.
    pub fn drain_device(&self) {
        let mut byte = 0_u8;
        // SAFETY: `byte` has room for the byte that is read.
        while unsafe { libc::read(self.net.tap.as_raw_fd(), (&raw mut byte).cast(), 1) } >= 0 {}
    }

    pub fn turns(&self) -> u64 {
        self.net.counters.turns.get()
    }
}
