//! The driver side of one queue, on the mock rings of virtio-queue: for the tests of the devices and, with the feature
//! `mock`, for benchmarks. Its driver is no guest's, so it panics as tests do.
#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::GuestRam;
use crate::virtio::chain::Buffers;
use crate::virtio::queue::{Taken, WorkerQueue};
use crate::virtio::{ActiveQueue, VirtioInterrupt};

/// Free for tests from here on; the rings of queue n are in the 64 KiB at n * 64 KiB.
pub const DATA: u64 = 0x10_0000;
/// End of the first block of RAM; the second begins here and makes RAM that goes on without a gap.
pub const SEAM: u64 = 0x100_0000;
/// First address of the hole.
pub const HOLE: u64 = 0x200_0000;

/// 32 MiB in two regions that touch, a hole, 1 MiB behind it. Leaked, for the mock rings borrow it.
pub fn ram() -> &'static GuestRam {
    let ranges = [
        (GuestAddress(0), SEAM as usize),
        (GuestAddress(SEAM), (HOLE - SEAM) as usize),
        (GuestAddress(0x300_0000), 0x10_0000),
    ];
    Box::leak(Box::new(crate::ram::anonymous(&ranges).unwrap()))
}

/// What the device has told the driver.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Told {
    pub queues: Vec<u16>,
    pub config: usize,
    pub needs_reset: usize,
}

#[derive(Default)]
pub struct TestInterrupt {
    told: Mutex<Told>,
    changed: Condvar,
}

impl TestInterrupt {
    pub fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    /// Waits until `enough`; the minute is there to end a broken test, not to measure.
    pub fn wait(&self, mut enough: impl FnMut(&Told) -> bool) {
        let told = self.told.lock().unwrap();
        let (told, timeout) = self
            .changed
            .wait_timeout_while(told, Duration::from_secs(60), |told| !enough(told))
            .unwrap();
        assert!(!timeout.timed_out(), "the device does not answer: {told:?}");
    }

    fn note(&self, note: impl FnOnce(&mut Told)) {
        note(&mut self.told.lock().unwrap());
        self.changed.notify_all();
    }
}

impl VirtioInterrupt for TestInterrupt {
    fn queue(&self, index: u16) {
        self.note(|told| told.queues.push(index));
    }

    fn config(&self) {
        self.note(|told| told.config += 1);
    }

    fn needs_reset(&self) {
        self.note(|told| told.needs_reset += 1);
    }
}

/// A descriptor: address, length, device-writable.
pub type Part = (u64, u32, bool);

/// A queue as its driver sees it.
pub struct Driver {
    pub memory: &'static GuestRam,
    pub kick: EventFd,
    pub interrupt: Arc<TestInterrupt>,
    index: u16,
    size: u16,
    event_idx: bool,
    table: DescriptorTable<'static, GuestRam>,
    avail: AvailRing<'static, GuestRam>,
    used: UsedRing<'static, GuestRam>,
    next_descriptor: u16,
    seen: u16,
}

impl Driver {
    pub fn new(
        memory: &'static GuestRam,
        interrupt: &Arc<TestInterrupt>,
        index: u16,
        size: u16,
        event_idx: bool,
    ) -> Self {
        let base = u64::from(index) << 16;
        Self {
            memory,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            interrupt: interrupt.clone(),
            index,
            size,
            event_idx,
            table: DescriptorTable::new(memory, GuestAddress(base), size),
            avail: AvailRing::new(memory, GuestAddress(base + 0x4000), size),
            used: UsedRing::new(memory, GuestAddress(base + 0x8000), size),
            next_descriptor: 0,
            seen: 0,
        }
    }

    /// What the transport would hand to the device.
    pub fn active(&self) -> ActiveQueue {
        let base = u32::from(self.index) << 16;
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(base), Some(0));
        queue.set_avail_ring_address(Some(base + 0x4000), Some(0));
        queue.set_used_ring_address(Some(base + 0x8000), Some(0));
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(self.memory));
        ActiveQueue {
            index: self.index,
            queue,
            kick: self.kick.try_clone().unwrap(),
        }
    }

    /// Writes one descriptor as it is.
    pub fn descriptor(&self, at: u16, address: u64, length: u32, flags: u32, next: u16) {
        let descriptor = Descriptor::new(address, length, flags as u16, next);
        self.table
            .store(at, RawDescriptor::from(descriptor))
            .unwrap();
    }

    /// Writes a chain into the table, without offering it, and returns its head. Descriptors are used in turn, so that a
    /// test may have up to the queue size of them at a time.
    pub fn chain(&mut self, parts: &[Part]) -> u16 {
        let head = self.next_descriptor;
        for (i, &(address, length, write)) in parts.iter().enumerate() {
            let at = self.next_descriptor;
            self.next_descriptor = (at + 1) % self.size;
            let next = if i + 1 < parts.len() {
                VRING_DESC_F_NEXT
            } else {
                0
            };
            let flags = next | if write { VRING_DESC_F_WRITE } else { 0 };
            self.descriptor(at, address, length, flags, self.next_descriptor);
        }
        head
    }

    /// As [`chain`](Self::chain), through an indirect table at `table_at`.
    pub fn indirect_chain(&mut self, table_at: u64, parts: &[Part]) -> u16 {
        for (i, &(address, length, write)) in parts.iter().enumerate() {
            let next = if i + 1 < parts.len() {
                VRING_DESC_F_NEXT
            } else {
                0
            };
            let flags = next | if write { VRING_DESC_F_WRITE } else { 0 };
            let descriptor = Descriptor::new(address, length, flags as u16, i as u16 + 1);
            let at = GuestAddress(table_at + 16 * i as u64);
            self.memory
                .write_obj(RawDescriptor::from(descriptor), at)
                .unwrap();
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.size;
        self.descriptor(
            head,
            table_at,
            16 * parts.len() as u32,
            VRING_DESC_F_INDIRECT,
            0,
        );
        head
    }

    /// Puts a head into the avail ring.
    pub fn offer(&mut self, head: u16) {
        let index = self.avail.idx().load();
        self.avail
            .ring()
            .ref_at(usize::from(index % self.size))
            .unwrap()
            .store(head);
        fence(Ordering::SeqCst);
        self.avail.idx().store(index.wrapping_add(1));
    }

    /// As if there had been `index` requests already.
    pub fn start_at(&mut self, index: u16) {
        self.avail.idx().store(index);
        self.used.idx().store(index);
        self.seen = index;
    }

    /// Lies about how many heads there are.
    pub fn set_avail_index(&self, index: u16) {
        self.avail.idx().store(index);
    }

    pub fn kick(&self) {
        fence(Ordering::SeqCst);
        self.kick.write(1).unwrap();
    }

    pub fn used_index(&self) -> u16 {
        self.used.idx().load()
    }

    /// Asks for an interrupt when the used index passes `index`.
    pub fn set_used_event(&self, index: u16) {
        let at = (u64::from(self.index) << 16) + 0x4000 + 4 + 2 * u64::from(self.size);
        self.memory.write_obj(index, GuestAddress(at)).unwrap();
        fence(Ordering::SeqCst);
    }

    /// The index whose passing makes the driver kick.
    pub fn avail_event(&self) -> u16 {
        let at = (u64::from(self.index) << 16) + 0x8000 + 4 + 8 * u64::from(self.size);
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Waits for `count` more used entries and returns them: head and length.
    pub fn wait(&mut self, count: u16) -> Vec<(u16, u32)> {
        let target = self.seen.wrapping_add(count);
        self.set_used_event(target.wrapping_sub(1));
        let (used, seen) = (&self.used, self.seen);
        self.interrupt
            .wait(|_| used.idx().load().wrapping_sub(seen) >= count);
        self.collect()
    }

    /// The used entries since the last call.
    pub fn collect(&mut self) -> Vec<(u16, u32)> {
        let mut entries = Vec::new();
        while self.seen != self.used.idx().load() {
            let entry = self
                .used
                .ring()
                .ref_at(usize::from(self.seen % self.size))
                .unwrap();
            let entry = entry.load();
            entries.push((entry.id() as u16, entry.len()));
            self.seen = self.seen.wrapping_add(1);
        }
        entries
    }

    /// Offers one chain, kicks, and waits for it: its length in the used ring.
    pub fn run(&mut self, head: u16) -> u32 {
        self.offer(head);
        self.kick();
        let used = self.wait(1);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        used[0].1
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// Writes a request header at `at`.
    pub fn header(&self, at: u64, kind: u32, sector: u64) {
        self.write(at, &kind.to_le_bytes());
        self.write(at + 4, &[0; 4]);
        self.write(at + 8, &sector.to_le_bytes());
    }
}

/// The device's side of a queue without a device behind it.
pub struct Taker {
    queue: WorkerQueue,
    memory: GuestRam,
    buffers: Buffers,
}

impl Taker {
    /// Of the queue that `driver` drives.
    pub fn new(driver: &Driver) -> Self {
        Self {
            queue: WorkerQueue::new(driver.active(), "mock"),
            memory: driver.memory.clone(),
            buffers: Buffers::default(),
        }
    }

    /// Takes the next chain, which must be well-formed, and gathers its buffers: its head and their bytes.
    pub fn take(&mut self) -> Option<(u16, u64)> {
        match self.queue.take(&self.memory, &mut self.buffers) {
            Ok(Taken::Chain(head)) => {
                let bytes = self.buffers.readable_bytes() + self.buffers.writable_bytes();
                Some((head, bytes))
            }
            Ok(Taken::Nothing) => None,
            Ok(Taken::Malformed(why)) => panic!("{why}"),
            Err(broken) => panic!("{broken:?}"),
        }
    }

    /// Returns a chain with `length` bytes written.
    pub fn give_back(&mut self, head: u16, length: u32) {
        (self.queue.give_back(&self.memory, head, length)).unwrap();
    }

    /// Returns chains together.
    pub fn give_back_all(&mut self, chains: &[(u16, u32)]) {
        self.queue.give_back_all(&self.memory, chains).unwrap();
    }
}
