use std::sync::atomic::AtomicBool;

use super::*;
use crate::fakes::Random;
use crate::pci::{BarKind, ECAM_SIZE, HostBridge, Identity};

/// A function that remembers what happens to it; its BARs hold bytes that say which BAR they are in.
#[derive(Default)]
struct Probe {
    bars: Vec<(u8, Bar)>,
    moves: Mutex<Vec<(u8, Option<u64>)>>,
    written: Mutex<Vec<(u8, u64, Vec<u8>)>>,
    hooked: Mutex<Vec<u16>>,
}

impl PciFunction for Probe {
    fn config_space(&self) -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1AF4,
            device: 0x1042,
            class: 0x01_80_00,
            revision: 1,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        for &(index, bar) in &self.bars {
            space.add_bar(index, bar).unwrap();
        }
        space.add_capability(0x09, &[0; 6], &[0xFF; 6]).unwrap();
        space
    }

    fn config_read(&self, _space: &ConfigSpace, offset: u16, data: &mut [u8]) {
        assert!(usize::from(offset % 4) + data.len() <= 4);
        match offset {
            0x44 => data.fill(0x77),
            // Its interrupt is pending.
            0x06 => data.iter_mut().take(1).for_each(|low| *low |= 1 << 3),
            0x04..0x06 | 0x10..0x28 | 0x30..0x34 => panic!("asked for {offset:#x}"),
            _ => {}
        }
    }

    fn config_write(&self, _space: &ConfigSpace, offset: u16, data: &[u8]) {
        assert!(usize::from(offset % 4) + data.len() <= 4);
        self.hooked.lock().unwrap().push(offset);
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let size = self.bars.iter().find(|(i, _)| *i == bar).unwrap().1.size;
        assert!(offset + data.len() as u64 <= size);
        data.fill(bar + 1);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.written
            .lock()
            .unwrap()
            .push((bar, offset, data.to_vec()));
    }

    fn bar_moved(&self, bar: u8, address: Option<u64>) {
        self.moves.lock().unwrap().push((bar, address));
    }
}

fn memory(kind: BarKind, size: u64) -> Bar {
    Bar {
        kind,
        size,
        prefetchable: false,
    }
}

fn probe(bars: &[(u8, Bar)]) -> Arc<Probe> {
    Arc::new(Probe {
        bars: bars.to_vec(),
        ..Probe::default()
    })
}

const LOW: u64 = 0xC000_0000;
const HIGH: u64 = 0x40_0000_0000;

fn root() -> PciRoot {
    PciRoot::new(PciWindows {
        io: 0x1000..0x2000,
        mmio32: LOW..LOW + 0x10_0000,
        mmio64: HIGH..HIGH + (1 << 36),
    })
}

fn get(device: &dyn BusDevice, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn put(device: &dyn BusDevice, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}

/// ECAM offset of a register of device `slot`.
fn at(slot: u64, register: u64) -> u64 {
    slot << 15 | register
}

#[test]
fn functions_that_do_not_exist_read_all_ones() {
    let root = root();
    root.add(Arc::new(HostBridge)).unwrap();
    let ecam = root.ecam();
    assert_eq!(get(&*ecam, 0), 0x0008_1B36);
    assert_eq!(get(&*ecam, at(1, 0)), u32::MAX);
    assert_eq!(get(&*ecam, 1 << 12), u32::MAX, "function 1 of device 0");
    assert_eq!(get(&*ecam, at(31, 0xFFC)), u32::MAX);
    assert_eq!(get(&*ecam, 0x100), u32::MAX, "no extended space");
    assert_eq!(get(&*ecam, ECAM_SIZE), u32::MAX);
    assert_eq!(get(&*ecam, u64::MAX), u32::MAX);
}

#[test]
fn the_ports_reach_the_same_registers_as_ecam_in_every_width() {
    let root = root();
    root.add(Arc::new(HostBridge)).unwrap();
    root.add(probe(&[])).unwrap();
    let ports = root.config_ports(&[]);
    put(&*ports, 0, 0x8000_0800);
    assert_eq!(get(&*ports, 0), 0x8000_0800);
    assert_eq!(get(&*ports, 4), 0x1042_1AF4);
    let mut word = [0; 2];
    ports.read(6, &mut word);
    assert_eq!(word, [0x42, 0x10]);
    let mut byte = [0];
    ports.read(5, &mut byte);
    assert_eq!(byte, [0x1A]);
    // Linux writes a byte to 0xCFB before it looks for this mechanism.
    ports.write(3, &[1]);
    assert_eq!(get(&*ports, 0), 0x8000_0800);
    put(&*ports, 0, 0x8000_0804);
    ports.write(4, &[4, 0]);
    assert_eq!(get(&*root.ecam(), at(1, 4)) & 0xFFFF, 4);
    for address in [0x0000_0800, 0x8001_0800, 0x8000_0900] {
        put(&*ports, 0, address);
        assert_eq!(
            get(&*ports, 4),
            u32::MAX,
            "{address:#x}: off, bus 1, function 1"
        );
    }
}

#[test]
fn bars_are_placed_by_size_without_overlap_and_decode_nothing_at_start() {
    let root = root();
    let function = probe(&[
        (0, memory(BarKind::Memory64, 0x4000)),
        (2, memory(BarKind::Memory64, 1 << 30)),
        (4, memory(BarKind::Io, 0x20)),
        (5, memory(BarKind::Memory32, 0x10)),
    ]);
    root.add(function.clone()).unwrap();
    root.add(probe(&[
        (0, memory(BarKind::Memory64, 0x4000)),
        (2, memory(BarKind::Memory64, 1 << 30)),
    ]))
    .unwrap();
    let ecam = root.ecam();
    let bar = |slot, index: u64| get(&*ecam, at(slot, 0x10 + 4 * index));
    assert_eq!([bar(0, 0), bar(0, 1)], [0xC000_0004, 0]);
    assert_eq!([bar(0, 2), bar(0, 3)], [4, 0x40]);
    assert_eq!(bar(0, 4), 0x1001);
    assert_eq!(bar(0, 5), 0xC000_4000);
    assert_eq!([bar(1, 0), bar(1, 1)], [0xC000_8004, 0]);
    assert_eq!([bar(1, 2), bar(1, 3)], [0x4000_0004, 0x40]);
    assert_eq!(get(&*ecam, at(0, 4)) & 7, 0);
    assert!(function.moves.lock().unwrap().is_empty());
    assert_eq!(get(&*root.window(Window::Mmio32), 0), u32::MAX);
}

#[test]
fn an_enabled_bar_answers_in_its_window_only_and_as_a_whole() {
    let root = root();
    let function = probe(&[
        (0, memory(BarKind::Memory64, 0x1000)),
        (2, memory(BarKind::Memory64, 1 << 21)),
        (4, memory(BarKind::Io, 0x20)),
    ]);
    root.add(function.clone()).unwrap();
    put(&*root.ecam(), at(0, 4), 0b10);
    let (io, low, high) = (
        root.window(Window::Io),
        root.window(Window::Mmio32),
        root.window(Window::Mmio64),
    );
    assert_eq!(get(&*low, 0xFFC), 0x0101_0101);
    assert_eq!(get(&*low, 0xFFE), u32::MAX, "crosses the end");
    assert_eq!(get(&*high, 0), 0x0303_0303);
    assert_eq!(get(&*io, 0), u32::MAX, "I/O space is off");
    put(&*root.ecam(), at(0, 4), 0b01);
    assert_eq!(get(&*io, 0), 0x0505_0505);
    assert_eq!(get(&*low, 0), u32::MAX);
    io.write(4, &[9]);
    assert_eq!(*function.written.lock().unwrap(), [(4, 4, vec![9])]);
    let moves = function.moves.lock().unwrap().clone();
    let expected = [
        (0, Some(LOW)),
        (2, Some(HIGH)),
        (0, None),
        (2, None),
        (4, Some(0x1000)),
    ];
    assert_eq!(moves, expected);
}

#[test]
fn a_bar_moves_when_its_register_is_written_and_leaves_when_outside_the_windows() {
    let root = root();
    let function = probe(&[(0, memory(BarKind::Memory64, 0x1000))]);
    root.add(function.clone()).unwrap();
    let (ecam, low, high) = (
        root.ecam(),
        root.window(Window::Mmio32),
        root.window(Window::Mmio64),
    );
    put(&*ecam, at(0, 4), 0b110);
    put(&*ecam, at(0, 0x10), 0xC005_0000);
    assert_eq!(get(&*low, 0), u32::MAX);
    assert_eq!(get(&*low, 0x5_0000), 0x0101_0101);
    put(&*ecam, at(0, 0x14), 0x40);
    assert_eq!(get(&*low, 0x5_0000), u32::MAX);
    assert_eq!(get(&*high, 0xC005_0000), 0x0101_0101);
    put(&*ecam, at(0, 0x14), 0x1);
    assert_eq!(get(&*high, 0xC005_0000), u32::MAX);
    put(&*ecam, at(0, 0x10), u32::MAX);
    put(&*ecam, at(0, 0x14), u32::MAX);
    assert_eq!(
        get(&*ecam, at(0, 0x10)),
        0xFFFF_F004,
        "sizing while enabled"
    );
    let moves = function.moves.lock().unwrap().clone();
    let expected = [
        (0, Some(LOW)),
        (0, Some(0xC005_0000)),
        (0, Some(0x40_C005_0000)),
        (0, None),
    ];
    assert_eq!(moves, expected);
}

#[test]
fn hooks_see_their_registers_but_never_replace_bars_or_command() {
    let root = root();
    let function = probe(&[(0, memory(BarKind::Memory32, 0x1000))]);
    root.add(function.clone()).unwrap();
    let ecam = root.ecam();
    assert_eq!(get(&*ecam, at(0, 0x44)), 0x7777_7777);
    let mut data = [0; 8];
    ecam.read(at(0, 0x42), &mut data);
    assert_eq!(data, [0, 0, 0x77, 0x77, 0x77, 0x77, 0, 0], "cut at dwords");
    assert_eq!(get(&*ecam, at(0, 4)), 0x18_0000, "the status");
    let mut status = [0; 2];
    ecam.read(at(0, 5), &mut status);
    assert_eq!(status, [0, 0x18]);
    assert_eq!(get(&*ecam, at(0, 0x10)), 0xC000_0000);
    ecam.write(at(0, 0x41), &[1; 4]);
    assert_eq!(*function.hooked.lock().unwrap(), [0x41, 0x44]);
}

#[test]
fn slots_and_windows_run_out_with_an_error() {
    let root = root();
    for slot in 0..32 {
        assert_eq!(root.add(Arc::new(HostBridge)), Ok(slot));
    }
    assert_eq!(root.add(Arc::new(HostBridge)), Err(PciError::NoFreeSlot));
    assert_eq!(
        root.add_device(3, vec![(0, Arc::new(HostBridge))]),
        Err(PciError::SlotTaken(3))
    );
    assert_eq!(
        root.add_device(32, vec![(0, Arc::new(HostBridge))]),
        Err(PciError::SlotTaken(32))
    );
    let small = PciRoot::new(PciWindows {
        io: 0..0,
        mmio32: 0x800..0x3000,
        mmio64: 0..0,
    });
    let bar = memory(BarKind::Memory32, 0x1000);
    small.add(probe(&[(0, bar)])).unwrap();
    small.add(probe(&[(0, bar)])).unwrap();
    assert!(matches!(
        small.add(probe(&[(0, bar)])),
        Err(PciError::NoRoom { bar: 0, .. })
    ));
    let io = memory(BarKind::Io, 4);
    assert!(matches!(
        small.add(probe(&[(1, io)])),
        Err(PciError::NoRoom { bar: 1, .. })
    ));
}

#[test]
fn an_access_that_races_a_move_reaches_the_function_or_nothing() {
    let root = root();
    let function = probe(&[(0, memory(BarKind::Memory32, 0x1000))]);
    root.add(function).unwrap();
    let (ecam, low) = (root.ecam(), root.window(Window::Mmio32));
    put(&*ecam, at(0, 4), 2);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..5000u32 {
                put(&*ecam, at(0, 0x10), 0xC000_0000 | (round % 16) << 12);
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            for page in 0..16 {
                let value = get(&*low, page << 12);
                assert!(matches!(value, 0x0101_0101 | u32::MAX));
            }
        }
    });
}

#[test]
fn accesses_of_every_width_at_every_offset_are_harmless() {
    let root = root();
    root.add(Arc::new(HostBridge)).unwrap();
    root.add(probe(&[
        (0, memory(BarKind::Memory64, 0x1000)),
        (2, memory(BarKind::Io, 4)),
    ]))
    .unwrap();
    let (ecam, ports) = (root.ecam(), root.config_ports(&[]));
    let mut random = Random::new(7);
    for slot in 0..2 {
        for offset in (0..0x110).chain(0xFF0..0x1008) {
            for size in 1..=8 {
                let mut data = random.next().to_le_bytes()[..size].to_vec();
                ecam.write(at(slot, offset), &data);
                ecam.read(at(slot, offset), &mut data);
            }
        }
    }
    for _ in 0..20_000 {
        let size = 1 + usize::try_from(random.below(8)).unwrap();
        let mut data = random.next().to_le_bytes()[..size].to_vec();
        let offset = random.below(9);
        ports.write(offset, &data);
        ports.read(offset, &mut data);
        put(
            &*ports,
            0,
            0x8000_0000 | u32::try_from(random.below(0x1000)).unwrap(),
        );
    }
    assert_eq!(get(&*ecam, 0), 0x0008_1B36);
    assert_eq!(get(&*ecam, at(1, 0)), 0x1042_1AF4);
}

#[test]
fn the_state_survives_a_round_trip_and_moves_the_bars_back() {
    let build = || {
        let root = root();
        root.add(Arc::new(HostBridge)).unwrap();
        let function = probe(&[(0, memory(BarKind::Memory64, 0x1000))]);
        root.add(function.clone()).unwrap();
        (root, function)
    };
    let (saved, _) = build();
    put(&*saved.ecam(), at(1, 0x10), 0xC007_0000);
    put(&*saved.ecam(), at(1, 4), 6);
    put(&*saved.config_ports(&[]), 0, 0x8000_0804);
    let state = saved.state();

    let (restored, function) = build();
    restored.restore(&state).unwrap();
    assert_eq!(restored.state(), state);
    assert_eq!(*function.moves.lock().unwrap(), [(0, Some(0xC007_0000))]);
    assert_eq!(
        get(&*restored.window(Window::Mmio32), 0x7_0000),
        0x0101_0101
    );
}

#[test]
fn a_state_of_other_functions_is_refused_and_changes_nothing() {
    let build = || {
        let root = root();
        root.add(probe(&[(0, memory(BarKind::Memory64, 0x1000))]))
            .unwrap();
        root
    };
    let good = build().state();
    let mut variants = vec![good.clone(); 5];
    variants[0].functions[0].slot = 1;
    variants[1].functions[0].config[0] ^= 1;
    variants[2].functions[0].config.pop();
    variants[3].functions.clear();
    variants[4].functions.push(FunctionState {
        function: 0,
        slot: 200,
        config: vec![],
    });
    for bad in variants {
        let root = build();
        assert!(root.restore(&bad).is_err());
        assert_eq!(root.state(), good);
    }
}

#[test]
fn each_bus_has_its_own_functions_behind_the_same_ports() {
    let (first, second) = (root(), root());
    first.add(Arc::new(HostBridge)).unwrap();
    second.add_device(3, vec![(0, probe(&[]))]).unwrap();
    let ports = first.config_ports(&[&second]);
    for (address, expected) in [
        (0x8000_0000, 0x0008_1B36),
        (0x8001_0000, u32::MAX),
        (0x8000_1800, u32::MAX),
        (0x8001_1800, 0x1042_1AF4),
        (0x8002_0000, u32::MAX),
        (0x80FF_0000, u32::MAX),
    ] {
        put(&*ports, 0, address);
        assert_eq!(get(&*ports, 4), expected, "{address:#x}");
    }
    assert_eq!(get(&*second.ecam(), at(3, 0)), 0x1042_1AF4);
}

#[test]
fn a_device_has_up_to_eight_functions_that_come_and_go_together() {
    let root = root();
    let bar = memory(BarKind::Memory32, 0x1000);
    let functions: Vec<_> = [0, 1, 7].map(|number| (number, probe(&[(0, bar)]))).into();
    let as_device = |probes: &[(u8, Arc<Probe>)]| -> Vec<(u8, Arc<dyn PciFunction>)> {
        let one = |(n, f): &(u8, Arc<Probe>)| (*n, Arc::clone(f) as _);
        probes.iter().map(one).collect()
    };
    let slot = root.free_slot().unwrap();
    root.add_device(slot, as_device(&functions)).unwrap();
    let ecam = root.ecam();
    let at = |function: u64, register| at(slot.into(), function << 12 | register);
    for number in 0..8 {
        let there = functions.iter().any(|(n, _)| u64::from(*n) == number);
        let id = if there { 0x1042_1AF4 } else { u32::MAX };
        assert_eq!(get(&*ecam, at(number, 0)), id, "function {number}");
    }
    let header_type = get(&*ecam, at(0, 0x0C)) >> 16 & 0xFF;
    assert_eq!(header_type, 0x80, "more than one function");
    // Each has its own place, and answers there alone.
    let window = root.window(Window::Mmio32);
    put(&*ecam, at(1, 4), 2);
    let [_, (_, second), _] = &functions[..] else {
        panic!("three functions")
    };
    let address = u64::from(get(&*ecam, at(1, 0x10)));
    assert_ne!(address, u64::from(get(&*ecam, at(0, 0x10))));
    put(&*window, address - LOW, 5);
    assert_eq!(second.written.lock().unwrap().len(), 1);
    assert!(functions[0].1.written.lock().unwrap().is_empty());
    assert!(root.remove(slot));
    assert_eq!(get(&*ecam, at(0, 0)), u32::MAX);
    assert_eq!(get(&*ecam, at(7, 0)), u32::MAX);
    assert_eq!(get(&*window, address - LOW), u32::MAX);
    // A single function says so.
    let slot = root.add(probe(&[])).unwrap();
    let alone = get(&*ecam, u64::from(slot) << 15 | 0x0C) >> 16 & 0x80;
    assert_eq!(alone, 0);
}

#[test]
fn numbers_that_make_no_device_are_refused_and_leave_nothing_behind() {
    let root = root();
    let bar = memory(BarKind::Memory32, 0x8_0000);
    for numbers in [&[][..], &[1], &[0, 0], &[0, 8], &[1, 2]] {
        let functions = numbers.iter().map(|n| (*n, probe(&[(0, bar)]) as _));
        let error = root.add_device(3, functions.collect()).unwrap_err();
        assert!(matches!(error, PciError::Functions(_)), "{error}");
    }
    // The second function does not fit: the first one's room is free again.
    let functions = [0, 1, 2].map(|n| (n, probe(&[(0, bar)]) as _)).into();
    let error = root.add_device(3, functions).unwrap_err();
    assert!(matches!(error, PciError::NoRoom { .. }), "{error}");
    root.add_device(3, [0, 1].map(|n| (n, probe(&[(0, bar)]) as _)).into())
        .unwrap();
}

#[test]
fn an_expansion_rom_answers_when_memory_and_its_own_bit_are_on() {
    let root = root();
    let rom = memory(BarKind::Rom, 0x1_0000);
    let function = probe(&[(crate::pci::ROM_BAR, rom)]);
    let slot = root.add(Arc::clone(&function) as _).unwrap();
    let ecam = root.ecam();
    let register = at(slot.into(), 0x30);
    let placed = get(&*ecam, register);
    assert_eq!(u64::from(placed) % 0x1_0000, 0, "off, and aligned");
    // Sized as a BAR is, but the enable bit is kept apart (PCI 3.0 §6.2.5.2).
    put(&*ecam, register, 0xFFFF_F800);
    assert_eq!(get(&*ecam, register), 0xFFFF_0000);
    put(&*ecam, register, placed | 1);
    let moves = || std::mem::take(&mut *function.moves.lock().unwrap());
    assert!(moves().is_empty(), "memory is off");
    put(&*ecam, at(slot.into(), 4), 2);
    assert_eq!(moves(), [(6, Some(u64::from(placed)))]);
    let window = root.window(Window::Mmio32);
    assert_eq!(get(&*window, u64::from(placed) - LOW), 0x0707_0707);
    put(&*ecam, register, placed);
    assert_eq!(moves(), [(6, None)]);
    let mut space = function.config_space();
    let wrong = [
        (0, rom),
        (6, memory(BarKind::Memory32, 0x1000)),
        (6, memory(BarKind::Rom, 1024)),
    ];
    for (index, bar) in wrong {
        assert!(space.add_bar(index, bar).is_err(), "{index} {bar:?}");
    }
}
