use std::os::fd::AsRawFd;

use fief_devices::bus::BusDevice;
use fief_devices::irq::MsiMessage;
use fief_devices::pci::{PciRoot, PciWindows, Window};

use super::*;
use crate::fake::{FakeFunction, FakeMachine, Random};
use crate::remote::Interrupt;

const LOW: u64 = 0xC000_0000;
const HIGH: u64 = 0x40_0000_0000;
const EXPRESS: usize = 0x80;
const MSI: usize = 0x50;
const MSIX: usize = 0x70;
const POWER: usize = 0x40;

/// A function with about everything: BAR 0 1 MiB with MSI-X's table unaligned in the middle, BAR 2 256 bytes, BAR 3 I/O,
/// an expansion ROM; PM, MSI (4 vectors, maskable), MSI-X (3), PCIe with FLR; SR-IOV.
fn everything() -> FakeFunction {
    let mut config = vec![0; 4096];
    config[..4].copy_from_slice(&[0x36, 0x1B, 0x10, 0x00]);
    config[6] = 0x10;
    config[0x10] = 0x0C;
    config[0x1C] = 0x01;
    config[0x34] = POWER as u8;
    config[0x3D] = 1;
    config[POWER..POWER + 8].copy_from_slice(&[1, MSI as u8, 3, 0, 0, 0, 0, 0]);
    config[MSI..MSI + 4].copy_from_slice(&[5, MSIX as u8, 0x84, 0x01]);
    let msix = [
        0x11,
        EXPRESS as u8,
        2,
        0,
        0x00,
        0x2F,
        0,
        0,
        0x00,
        0x30,
        0,
        0,
    ];
    config[MSIX..MSIX + 12].copy_from_slice(&msix);
    config[EXPRESS..EXPRESS + 4].copy_from_slice(&[0x10, 0, 2, 0]);
    config[EXPRESS + 0x30] = 0x77;
    config[0x100..0x104].copy_from_slice(&[0x10, 0, 1, 0]);
    config[0x108] = 0x55;
    let sizes = [
        (Region::Bar(0), 1 << 20),
        (Region::Bar(2), 256),
        (Region::Bar(3), 16),
        (Region::Rom, 0x1000),
    ];
    FakeFunction::new(config, &sizes)
}

/// A function on a bus.
struct Rig {
    machine: FakeMachine,
    remote: Arc<FakeFunction>,
    function: Arc<Passthrough>,
    root: PciRoot,
    ecam: Arc<dyn BusDevice>,
    slot: u64,
}

impl Rig {
    fn new(remote: FakeFunction) -> Self {
        let machine = FakeMachine::default();
        let remote = Arc::new(remote);
        let function = Passthrough::new("test".into(), remote.clone(), machine.platform());
        let function = function.unwrap();
        let root = PciRoot::new(PciWindows {
            io: 0x1000..0x2000,
            mmio32: LOW..LOW + (1 << 24),
            mmio64: HIGH..HIGH + (1 << 32),
        });
        let slot = root.add(function.clone()).unwrap();
        let rig = Self {
            machine,
            remote,
            function,
            ecam: root.ecam(),
            root,
            slot: slot.into(),
        };
        assert_eq!(rig.enabled(), None, "the guest has not begun");
        rig.put16(4, 0);
        rig
    }

    fn get(&self, register: usize) -> u32 {
        let mut data = [0; 4];
        self.ecam.read(self.slot << 15 | register as u64, &mut data);
        u32::from_le_bytes(data)
    }

    fn put<const N: usize>(&self, register: usize, value: [u8; N]) {
        self.ecam.write(self.slot << 15 | register as u64, &value);
    }

    fn put32(&self, register: usize, value: u32) {
        self.put(register, value.to_le_bytes());
    }

    fn put16(&self, register: usize, value: u16) {
        self.put(register, value.to_le_bytes());
    }

    /// The guest-physical address of BAR 0.
    fn bar0(&self) -> u64 {
        u64::from(self.get(0x10) & !0xF) | u64::from(self.get(0x14)) << 32
    }

    fn table(&self, index: u64, address: u64, data: u32, masked: bool) {
        let at = 0x2F00 + 16 * index;
        self.function.bar_write(0, at, &address.to_le_bytes());
        self.function.bar_write(0, at + 8, &data.to_le_bytes());
        let control = u32::from(masked).to_le_bytes();
        self.function.bar_write(0, at + 12, &control);
    }

    fn enabled(&self) -> Option<(Interrupt, usize)> {
        *self.remote.enabled.lock().unwrap()
    }

    fn pending(&self) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(0, 0x3000, &mut data);
        u64::from_le_bytes(data)
    }
}

fn message(address: u64, data: u32) -> MsiMessage {
    MsiMessage { address, data }
}

#[test]
fn a_bar_is_mapped_where_it_is_but_for_the_pages_of_the_table() {
    let rig = Rig::new(everything());
    assert!(rig.machine.slots.ranges().is_empty(), "memory is off");
    rig.put16(4, 0x6);
    let base = rig.bar0();
    assert!(base >= HIGH);
    // The table is at 0x2F00-0x2F30, the pending bits at 0x3000: two pages.
    let around = |base| [(base, 0x2000), (base + 0x4000, 0x10_0000 - 0x4000)];
    assert_eq!(rig.machine.slots.ranges(), around(base));
    assert_eq!(
        *rig.machine.dma.0.lock().unwrap(),
        around(base),
        "and for other functions"
    );
    // The guest moves it.
    rig.put16(4, 0x0);
    assert!(rig.machine.slots.ranges().is_empty());
    assert!(rig.machine.dma.0.lock().unwrap().is_empty());
    rig.put32(0x14, ((base + (1 << 30)) >> 32) as u32);
    rig.put32(0x10, (base + (1 << 20)) as u32);
    rig.put16(4, 0x2);
    assert_eq!(rig.machine.slots.ranges(), around(rig.bar0()));
    assert_ne!(rig.bar0(), base);
    // Outside of the windows it answers nowhere.
    rig.put32(0x14, 0x1000);
    assert!(rig.machine.slots.ranges().is_empty());
    // What is mapped is the function's memory.
    rig.put32(0x14, (HIGH >> 32) as u32);
    let memory = rig.machine.slots.inserted.lock().unwrap()[0].2.address();
    // SAFETY: the test's own memory.
    unsafe { memory.add(0x10).write_volatile(9) };
    let mut byte = [0];
    rig.function.bar_read(0, 0x10, &mut byte);
    assert_eq!(byte, [9]);
    assert!(rig.root.remove(rig.slot as u8));
    assert!(rig.machine.slots.ranges().is_empty());
}

#[test]
fn a_bar_that_cannot_be_mapped_is_reached_by_exits() {
    let rig = Rig::new(everything());
    rig.machine.slots.refuse.store(true, Ordering::SeqCst);
    rig.put16(4, 0x2);
    let window = rig.root.window(Window::Mmio64);
    let at = rig.bar0() - HIGH;
    window.write(at + 0x10, &[1, 2, 3, 4]);
    let mut data = [0; 4];
    window.read(at + 0x10, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
    assert_eq!(rig.remote.accesses.load(Ordering::SeqCst), 2);
}

#[test]
fn small_bars_ports_and_the_rom_are_reached_by_exits() {
    let rig = Rig::new(everything());
    rig.put16(4, 0x3);
    for (bar, register, window, start) in [
        (2, 0x18, Window::Mmio32, LOW),
        (3, 0x1C, Window::Io, 0x1000),
        (ROM_BAR, 0x30, Window::Mmio32, LOW),
    ] {
        if bar == ROM_BAR {
            rig.put32(register, rig.get(register) | 1);
        }
        let at = u64::from(rig.get(register) & !0xF) - start;
        let window = rig.root.window(window);
        window.write(at + 4, &[bar + 1; 4]);
        let mut data = [0xEE; 4];
        window.read(at + 4, &mut data);
        let expected = if bar == ROM_BAR { 0 } else { bar + 1 };
        assert_eq!(data, [expected; 4], "BAR {bar}");
    }
}

#[test]
fn registers_are_the_functions_own_but_for_those_that_place_it() {
    let rig = Rig::new(everything());
    assert_eq!(rig.get(EXPRESS + 0x30), 0x77, "an express register");
    rig.put16(EXPRESS + 0x30, 0x1234);
    assert_eq!(rig.remote.config.lock().unwrap()[EXPRESS + 0x30], 0x34);
    // What is in no capability is the function's.
    rig.put32(0xE0, 0xCAFE);
    assert_eq!(rig.get(0xE0), 0xCAFE);
    assert_eq!(rig.remote.config.lock().unwrap()[0xE0..0xE2], [0xFE, 0xCA]);
    // Ids are fixed.
    rig.put32(0, 0xFFFF_FFFF);
    assert_eq!(rig.get(0), 0x0010_1B36);
    assert_eq!(rig.remote.config.lock().unwrap()[0], 0x36);
    // SR-IOV reads as nothing, and takes nothing.
    rig.put32(0x108, 1);
    assert_eq!((rig.get(0x100) & 0xFFFF, rig.get(0x108)), (0, 0));
    assert_eq!(rig.remote.config.lock().unwrap()[0x108], 0x55);
    // The guest's sleep is its own affair: the function stays awake.
    rig.put16(POWER + 4, 3);
    assert_eq!(rig.get(POWER + 4) & 3, 3);
    assert_eq!(rig.remote.config.lock().unwrap()[POWER + 4], 0);
}

#[test]
fn the_functions_own_command_register_always_lets_it_answer() {
    let rig = Rig::new(everything());
    assert_eq!(
        rig.remote.command(),
        0x3,
        "no bus master before the guest says so"
    );
    rig.put16(4, 0x4 | 0x400);
    assert_eq!(rig.remote.command(), 0x407);
    assert_eq!(rig.get(4) & 0xFFFF, 0x404, "the guest's");
    rig.put16(4, 0);
    assert_eq!(rig.remote.command(), 0x3);
}

#[test]
fn a_pending_wired_interrupt_is_seen_in_the_status_register() {
    const PENDING: u32 = 1 << 19;
    let rig = Rig::new(everything());
    assert_eq!(rig.get(4) & PENDING, 0);
    rig.remote.config.lock().unwrap()[6] |= 1 << 3;
    assert_eq!(rig.get(4) & PENDING, PENDING);
    rig.put16(4, 0x400);
    assert_eq!(rig.get(4) & PENDING, PENDING, "masked is pending still");
    rig.put16(6, 0xFFFF);
    assert_eq!(
        rig.remote.config.lock().unwrap()[6..8],
        [0x18, 0],
        "it is not written"
    );
    rig.remote.config.lock().unwrap()[6] &= !(1 << 3);
    assert_eq!(rig.get(4) & PENDING, 0);
}

#[test]
fn msix_vectors_go_where_the_table_says_and_wait_while_masked() {
    let rig = Rig::new(everything());
    assert_eq!(rig.enabled(), Some((Interrupt::Intx, 1)));
    rig.table(0, 0xFEE0_0000, 0x41, false);
    rig.table(1, 0xFEE0_1000, 0x42, true);
    rig.put16(MSIX + 2, 0x8000);
    assert_eq!(
        rig.enabled(),
        Some((Interrupt::Msix, 3)),
        "all of them, and INTx off"
    );
    assert!(rig.machine.line.connected.lock().unwrap().is_none());
    let vector = |n| rig.machine.vector(n);
    rig.remote.raise(0);
    assert_eq!(vector(0).delivered(), Some(message(0xFEE0_0000, 0x41)));
    rig.remote.raise(1);
    assert_eq!(vector(1).delivered(), None);
    assert_eq!(rig.pending(), 0b10);
    rig.table(1, 0xFEE0_1000, 0x43, false);
    assert_eq!(vector(1).delivered(), Some(message(0xFEE0_1000, 0x43)));
    assert_eq!(rig.pending(), 0);
    // The function mask holds all of them.
    rig.put16(MSIX + 2, 0xC000);
    rig.remote.raise(0);
    assert_eq!((vector(0).delivered(), rig.pending()), (None, 0b01));
    rig.put16(MSIX + 2, 0x8000);
    assert!(vector(0).delivered().is_some());
    // Off: nothing stays, and the wired line is back.
    rig.put16(MSIX + 2, 0xC000);
    rig.remote.raise(1);
    rig.put16(MSIX + 2, 0);
    assert_eq!(rig.enabled(), Some((Interrupt::Intx, 1)));
    assert_eq!(rig.pending(), 0);
    rig.put16(MSIX + 2, 0x8000);
    assert_eq!((vector(1).delivered(), rig.pending()), (None, 0));
    // The function's own registers saw the enable bit after the events were there.
    assert_eq!(rig.remote.config.lock().unwrap()[MSIX + 3], 0x80);
}

#[test]
fn msi_has_as_many_vectors_as_the_guest_turned_on() {
    let rig = Rig::new(everything());
    rig.put32(MSI + 4, 0xFEE0_2000);
    rig.put32(MSI + 8, 0);
    rig.put16(MSI + 12, 0x60);
    // Two of four.
    rig.put16(MSI + 2, 0x0011);
    assert_eq!(rig.enabled(), Some((Interrupt::Msi, 2)));
    rig.remote.raise(1);
    let vector = |n| rig.machine.vector(n);
    assert_eq!(vector(1).delivered(), Some(message(0xFEE0_2000, 0x61)));
    rig.put32(MSI + 16, 0b01);
    rig.remote.raise(0);
    assert_eq!(vector(0).delivered(), None);
    assert_eq!(rig.get(MSI + 20), 0b01, "pending");
    rig.put32(MSI + 16, 0);
    assert_eq!(vector(0).delivered(), Some(message(0xFEE0_2000, 0x60)));
    assert_eq!(rig.get(MSI + 20), 0);
    // More than it has: all that it has.
    rig.put16(MSI + 2, 0);
    rig.put16(MSI + 2, 0x0051);
    assert_eq!(rig.enabled(), Some((Interrupt::Msi, 4)));
    rig.put16(MSI + 2, 0);
    assert_eq!(rig.enabled(), Some((Interrupt::Intx, 1)));
}

#[test]
fn the_wired_interrupt_is_served_again_and_again() {
    let rig = Rig::new(everything());
    assert_eq!(rig.function.gsi(), Some(16));
    let connected = rig.machine.line.connected.lock().unwrap();
    let (trigger, resample) = connected.as_ref().unwrap();
    for _ in 0..3 {
        rig.remote.raise(0);
        assert_eq!(trigger.read().unwrap(), 1);
        assert!(!rig.remote.unmasked());
        resample.write(1).unwrap();
        assert!(rig.remote.unmasked());
    }
    assert!(trigger.as_raw_fd() >= 0);
}

#[test]
fn the_guest_resets_it_by_the_bit_that_is_for_it() {
    let rig = Rig::new(everything());
    rig.put16(4, 0x4);
    rig.put16(EXPRESS + 8, 0x8010);
    assert_eq!(rig.remote.resets.load(Ordering::SeqCst), 1);
    assert_eq!(
        rig.remote.config.lock().unwrap()[EXPRESS + 8..EXPRESS + 10],
        [0x10, 0]
    );
    assert_eq!(rig.remote.command(), 0x7, "which the reset had cleared");
    // A byte alone does it too; the rest of the register does not.
    rig.put(EXPRESS + 9, [0x80]);
    assert_eq!(rig.remote.resets.load(Ordering::SeqCst), 2);
    rig.put16(EXPRESS + 8, 0x0010);
    rig.put16(EXPRESS + 10, 0x8000);
    assert_eq!(rig.remote.resets.load(Ordering::SeqCst), 2);
}

#[test]
fn a_machine_reset_resets_it_and_forgets_its_interrupts() {
    let rig = Rig::new(everything());
    rig.put16(4, 0x6);
    rig.table(0, 0xFEE0_0000, 0x41, false);
    rig.put16(MSIX + 2, 0x8000);
    rig.root.reset();
    assert!(rig.machine.slots.ranges().is_empty());
    // Its line is low while the machine's interrupt controllers are reset, until the new guest begins with it.
    assert_eq!(rig.enabled(), None);
    assert!(rig.machine.line.connected.lock().unwrap().is_none());
    rig.put16(4, 0);
    assert_eq!(rig.enabled(), Some((Interrupt::Intx, 1)));
    assert_eq!(rig.remote.resets.load(Ordering::SeqCst), 1);
    assert_eq!(rig.remote.command(), 0x3);
    let mut entry = [0; 4];
    rig.function.bar_read(0, 0x2F00, &mut entry);
    assert_eq!(entry, [0; 4]);
    // One that has no reset at least no longer writes to memory.
    let mut remote = everything();
    remote.resettable = false;
    let rig = Rig::new(remote);
    rig.put16(4, 0x6);
    rig.root.reset();
    assert_eq!(rig.remote.resets.load(Ordering::SeqCst), 0);
    assert_eq!(rig.remote.command(), 0x3);
}

#[test]
fn a_function_that_is_gone_reads_as_ones_and_hurts_nobody() {
    let rig = Rig::new(everything());
    rig.put16(4, 0x6);
    rig.put16(MSIX + 2, 0x8000);
    rig.remote.gone.store(true, Ordering::SeqCst);
    assert_eq!(rig.get(EXPRESS + 0x30), u32::MAX);
    assert_eq!(rig.get(0), 0x0010_1B36, "what is known is known");
    let mut data = [0; 8];
    rig.function.bar_read(2, 0, &mut data);
    assert_eq!(data, [0xFF; 8]);
    rig.function.bar_write(2, 0, &data);
    rig.put16(MSIX + 2, 0);
    rig.put16(EXPRESS + 8, 0x8000);
    rig.root.reset();
    assert!(rig.root.remove(rig.slot as u8));
}

#[test]
fn whatever_is_written_to_whichever_byte_nothing_panics_and_nothing_placed_moves() {
    let mut random = Random::new(6);
    for round in 0..20 {
        let rig = Rig::new(everything());
        for _ in 0..4000 {
            let width = [1, 2, 4, 8][random.next() as usize % 4];
            let value = match random.next() % 4 {
                0 => u64::MAX,
                1 => 0,
                _ => random.next(),
            };
            let data = &value.to_le_bytes()[..width];
            let offset = random.next() % 4096;
            match random.next() % 8 {
                0 => rig
                    .function
                    .bar_write(0, 0x2F00 + random.next() % 0x200, data),
                1 => rig
                    .function
                    .bar_read(0, random.next() % 0x10_0000, &mut [0; 8][..width]),
                2 => rig
                    .function
                    .bar_write(ROM_BAR, random.next() % 0x1000, data),
                3 => rig.ecam.read(rig.slot << 15 | offset, &mut [0; 8][..width]),
                // Every register of the header and the capabilities, often.
                4..6 => rig.ecam.write(rig.slot << 15 | (offset % 0xC0), data),
                _ => rig.ecam.write(rig.slot << 15 | offset, data),
            }
            if let Some((kind, count)) = rig.enabled() {
                let most = [1, 4, 3][kind.index() as usize];
                assert!(count <= most, "{kind:?}: {count}");
                rig.remote.raise(random.next() as usize % count);
            }
        }
        assert_eq!(rig.get(0), 0x0010_1B36, "round {round}");
        assert_eq!(rig.remote.command() & 0x3, 0x3);
        assert_eq!(rig.remote.config.lock().unwrap()[POWER + 4], 0);
        // Every one of 4096 bytes, each value's bits once.
        for offset in 0..4096 {
            for value in [0xFF, 0x00, 0x80, 0x01] {
                rig.put(offset, [value]);
            }
        }
    }
}
