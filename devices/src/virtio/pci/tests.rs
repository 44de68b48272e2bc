//! The transport as a guest meets it: everything goes through configuration space and the BAR.

mod hostile;
mod protocol;
mod snapshot;

use std::sync::{Arc, Mutex};

use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;

use super::*;
use crate::bus::BusDevice;
use crate::fakes::{FakeDoorbells, FakeMsi};
use crate::pci::{PciRoot, PciWindows, Window};
use crate::virtio::{ActivateError, Activation, DeviceState};

/// Where the BAR lands.
const BAR: u64 = 0xC000_0000;
const RAM: u64 = 16 << 20;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
/// Device feature bits offered by the model.
const OFFERED: u64 = 0b101;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// What a model has been through; the test looks at it and plays its worker.
#[derive(Default)]
struct Log {
    active: Option<Activation>,
    activations: usize,
    resets: usize,
    fail: bool,
    config: Vec<u8>,
}

/// A device model whose worker is the test.
struct Model {
    log: Arc<Mutex<Log>>,
    sizes: Vec<u16>,
}

impl VirtioDevice for Model {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn features(&self) -> u64 {
        OFFERED
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let log = self.log.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        for (to, from) in data.iter_mut().zip(log.config.iter().skip(from)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut log = self.log.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        for (to, from) in log.config.iter_mut().skip(from).zip(data) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut log = self.log.lock().unwrap();
        assert!(log.active.is_none(), "activated twice");
        if log.fail {
            return Err(ActivateError::MissingQueue { got: 0, missing: 1 });
        }
        log.activations += 1;
        log.active = Some(activation);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<ActiveQueue> {
        let active = self.log.lock().unwrap().active.take();
        active.map(|a| a.queues).unwrap_or_default()
    }

    fn reset(&mut self) {
        let mut log = self.log.lock().unwrap();
        assert!(log.active.is_none(), "reset while active");
        log.resets += 1;
    }

    fn state(&self) -> DeviceState {
        DeviceState::Test(7)
    }
}

/// A machine with one device in slot 0, and the guest's view of it.
struct Rig {
    memory: GuestRam,
    lines: FakeMsi,
    doorbells: Arc<FakeDoorbells>,
    log: Arc<Mutex<Log>>,
    function: Arc<VirtioPci>,
    root: PciRoot,
    ecam: Arc<dyn BusDevice>,
    bar: Arc<dyn BusDevice>,
}

fn root() -> PciRoot {
    PciRoot::new(PciWindows {
        io: 0..0,
        mmio32: BAR..BAR + 0x10_0000,
        mmio64: 0x40_0000_0000..0x41_0000_0000,
    })
}

fn ram() -> GuestRam {
    crate::ram::anonymous(&[(GuestAddress(0), usize::try_from(RAM).unwrap())]).unwrap()
}

impl Rig {
    fn new() -> Self {
        Self::with_queues(&[16, 8])
    }

    fn with_queues(sizes: &[u16]) -> Self {
        Self::build(sizes, ram(), None)
    }

    /// A machine on `memory`, fresh or from `state`.
    fn build(sizes: &[u16], memory: GuestRam, state: Option<&VirtioPciState>) -> Self {
        let (lines, doorbells) = (FakeMsi::default(), Arc::new(FakeDoorbells::default()));
        let log = Arc::new(Mutex::new(Log {
            config: (0..16).collect(),
            ..Log::default()
        }));
        let model = Box::new(Model {
            log: log.clone(),
            sizes: sizes.to_vec(),
        });
        let platform = Platform {
            memory: memory.clone(),
            interrupts: &lines,
            doorbells: doorbells.clone(),
        };
        let function = match state {
            Some(state) => VirtioPci::from_state(model, platform, state).unwrap(),
            None => VirtioPci::new(model, platform).unwrap(),
        };
        let root = root();
        root.add(function.clone()).unwrap();
        Self {
            ecam: root.ecam(),
            bar: root.window(Window::Mmio32),
            memory,
            lines,
            doorbells,
            log,
            function,
            root,
        }
    }

    /// Turns memory space on.
    fn enable(&self) {
        self.ecam.write(4, &6u16.to_le_bytes());
    }

    fn disable(&self) {
        self.ecam.write(4, &0u16.to_le_bytes());
    }

    fn config(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.ecam.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xEE; N];
        self.bar.read(offset, &mut data);
        data
    }

    fn get8(&self, offset: u64) -> u8 {
        self.read::<1>(offset)[0]
    }

    fn get16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn get32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn put8(&self, offset: u64, value: u8) {
        self.bar.write(offset, &[value]);
    }

    fn put16(&self, offset: u64, value: u16) {
        self.bar.write(offset, &value.to_le_bytes());
    }

    fn put32(&self, offset: u64, value: u32) {
        self.bar.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u8 {
        self.get8(0x14)
    }

    fn accept(&self, features: u64) {
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.put32(0x08, select);
            self.put32(0x0C, u32::try_from(half & 0xFFFF_FFFF).unwrap());
        }
    }

    /// Up to and including FEATURES_OK.
    fn negotiate(&self, features: u64) -> u8 {
        self.put8(0x14, ACKNOWLEDGE);
        self.put8(0x14, ACKNOWLEDGE | DRIVER);
        self.accept(features);
        self.put8(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status()
    }

    fn address(&self, register: u64, value: u64) {
        self.put32(register, u32::try_from(value & 0xFFFF_FFFF).unwrap());
        self.put32(register + 4, u32::try_from(value >> 32).unwrap());
    }

    /// Sets queue `index` up at `mock`'s rings, with vector `index` + 1, and enables it.
    fn queue(&self, index: u16, size: u16, mock: &MockSplitQueue<'_, GuestRam>) {
        self.put16(0x16, index);
        self.put16(0x18, size);
        self.put16(0x1A, index + 1);
        self.address(0x20, mock.desc_table_addr().0);
        self.address(0x28, mock.avail_addr().0);
        self.address(0x30, mock.used_addr().0);
        self.put16(0x1C, 1);
    }

    fn driver_ok(&self) -> u8 {
        let status = self.status();
        self.put8(0x14, status | DRIVER_OK);
        self.status()
    }

    /// MSI-X on and all vectors unmasked.
    fn unmask(&self, vectors: u64) {
        for vector in 0..vectors {
            let entry = 0x3000 + 16 * vector;
            self.bar.write(entry, &0xFEE0_0000u64.to_le_bytes());
            self.put32(entry + 8, 0x40 + u32::try_from(vector).unwrap());
            self.put32(entry + 12, 0);
        }
        let at = u64::from(self.function.capabilities.msix);
        self.ecam.write(at + 2, &0x8000u16.to_le_bytes());
    }

    /// Everything a driver does to get a working device with two queues.
    fn start<'a>(&self, memory: &'a GuestRam) -> [MockSplitQueue<'a, GuestRam>; 2] {
        let queues = mocks(memory);
        self.enable();
        assert_eq!(
            self.negotiate(VERSION_1 | EVENT_IDX) & FEATURES_OK,
            FEATURES_OK
        );
        self.put16(0x10, 0);
        self.queue(0, 16, &queues[0]);
        self.queue(1, 8, &queues[1]);
        self.unmask(3);
        let expected = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        assert_eq!(self.driver_ok(), expected);
        queues
    }

    /// Serves every available chain of the queue at `position` among the enabled ones, as a worker would.
    fn serve(&self, position: usize) -> usize {
        let mut log = self.log.lock().unwrap();
        let active = log.active.as_mut().unwrap();
        let queue = &mut active.queues[position];
        let mut served = 0;
        while let Some(chain) =
            virtio_queue::QueueT::pop_descriptor_chain(&mut queue.queue, &self.memory)
        {
            virtio_queue::QueueT::add_used(&mut queue.queue, &self.memory, chain.head_index(), 0)
                .unwrap();
            served += 1;
        }
        if virtio_queue::QueueT::needs_notification(&mut queue.queue, &self.memory).unwrap() {
            active.interrupt.queue(queue.index);
        }
        served
    }

    /// Kicks that the worker of the queue at `position` would find.
    fn kicks(&self, position: usize) -> u64 {
        let log = self.log.lock().unwrap();
        log.active.as_ref().unwrap().queues[position]
            .kick
            .read()
            .unwrap_or(0)
    }

    fn triggers(&self, vector: usize) -> usize {
        self.lines.vector(vector).triggers()
    }
}

fn mocks(memory: &GuestRam) -> [MockSplitQueue<'_, GuestRam>; 2] {
    [
        MockSplitQueue::create(memory, GuestAddress(0x1_0000), 16),
        MockSplitQueue::create(memory, GuestAddress(0x2_0000), 8),
    ]
}
