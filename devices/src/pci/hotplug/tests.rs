use super::*;
use crate::fakes::Random;
use crate::legacy::tests::{Line, recorder};
use crate::pci::{Bar, ConfigSpace, ECAM_SIZE, HostBridge, Identity, PciWindows};

struct Rig {
    hot_plug: HotPlug,
    bus: Arc<PciRoot>,
    power: Arc<Power>,
    line: Arc<Line>,
    ejected: Arc<Mutex<Vec<u8>>>,
}

fn rig() -> Rig {
    let bus = Arc::new(PciRoot::new(PciWindows {
        io: 0..0,
        mmio32: 0xC000_0000..0xC002_0000,
        mmio64: 0..0,
    }));
    bus.add(Arc::new(HostBridge)).unwrap();
    let line = Arc::new(Line::default());
    let power = Arc::new(Power::new(recorder().0, line.clone()));
    let ejected = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&ejected);
    let on_ejected = Box::new(move |slot| told.lock().unwrap().push(slot));
    Rig {
        hot_plug: HotPlug::new(Arc::clone(&bus), Arc::clone(&power), on_ejected),
        bus,
        power,
        line,
        ejected,
    }
}

/// A function with a BAR of a page.
struct Plain;

impl PciFunction for Plain {
    fn config_space(&self) -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1AF4,
            device: 0x1042,
            class: 0x01_80_00,
            revision: 1,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        space.add_bar(0, Bar::memory64(0x1000)).unwrap();
        space
    }

    fn bar_read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0x5A);
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
}

impl Rig {
    fn add(&self) -> u8 {
        self.hot_plug.add(Arc::new(Plain)).unwrap()
    }

    fn get(&self, port: u64) -> u32 {
        let mut data = [0xAA; 4];
        self.hot_plug.read(port - HOT_PLUG_PORT, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, port: u64, value: u32) {
        let offset = port.wrapping_sub(HOT_PLUG_PORT);
        self.hot_plug.write(offset, &value.to_le_bytes());
    }

    /// What the event device's method reads.
    fn event(&self) -> u8 {
        let mut event = [0];
        self.power.read(3, &mut event);
        event[0]
    }

    fn vendor(&self, slot: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.ecam().read(slot << 15, &mut data);
        u32::from_le_bytes(data)
    }
}

#[test]
fn a_function_that_comes_is_on_the_bus_and_told_once() {
    let rig = rig();
    assert_eq!(rig.vendor(1), u32::MAX);
    assert_eq!(rig.add(), 1);
    assert_eq!(rig.vendor(1), 0x1042_1AF4);
    assert!(rig.line.is_active());
    assert_eq!(rig.event(), EVENT_PCI_HOT_PLUG);
    assert_eq!([rig.get(UP), rig.get(DOWN)], [1 << 1, 0]);
    assert_eq!([rig.get(UP), rig.get(DOWN)], [0, 0]);
}

#[test]
fn a_release_is_asked_for_and_done_when_the_guest_ejects() {
    let rig = rig();
    let slot = rig.add();
    rig.get(UP);
    rig.event();
    assert!(!rig.hot_plug.is_asked(slot));
    assert!(rig.hot_plug.ask_release(slot));
    assert_eq!(rig.event(), EVENT_PCI_HOT_PLUG);
    assert_eq!([rig.get(UP), rig.get(DOWN)], [0, 1 << slot]);
    // A guest that does nothing keeps it, and may be asked again.
    assert!(rig.hot_plug.is_asked(slot));
    assert_eq!(rig.vendor(1), 0x1042_1AF4);
    assert!(rig.hot_plug.ask_release(slot));
    assert_eq!(rig.get(DOWN), 1 << slot);
    rig.put(EJECT, 1 << slot);
    assert_eq!(*rig.ejected.lock().unwrap(), [slot]);
    assert_eq!(rig.vendor(1), u32::MAX);
    assert!(!rig.hot_plug.is_asked(slot));
    assert!(!rig.hot_plug.ask_release(slot), "there is nothing any more");
    rig.put(EJECT, 1 << slot);
    assert_eq!(*rig.ejected.lock().unwrap(), [slot], "only once");
}

#[test]
fn what_nobody_asked_for_cannot_be_ejected() {
    let rig = rig();
    let (kept, asked) = (rig.add(), rig.add());
    assert!(rig.hot_plug.ask_release(asked));
    rig.put(EJECT, u32::MAX);
    assert_eq!(*rig.ejected.lock().unwrap(), [asked]);
    assert_eq!(rig.vendor(0), 0x0008_1B36);
    assert_eq!(rig.vendor(kept.into()), 0x1042_1AF4);
}

#[test]
fn the_next_function_of_a_slot_is_not_asked_to_go() {
    let rig = rig();
    let slot = rig.add();
    rig.hot_plug.ask_release(slot);
    rig.put(EJECT, 1 << slot);
    assert_eq!(rig.add(), slot);
    assert_eq!([rig.get(UP), rig.get(DOWN)], [1 << slot, 0]);
    rig.put(EJECT, 1 << slot);
    assert_eq!(rig.vendor(slot.into()), 0x1042_1AF4);
}

#[test]
fn accesses_of_every_width_at_every_port_are_harmless() {
    let rig = rig();
    let (kept, asked) = (rig.add(), rig.add());
    rig.hot_plug.ask_release(asked);
    let before = rig.hot_plug.state();
    let mut random = Random::new(3);
    for offset in (0..HOT_PLUG_PORT_COUNT + 4).chain([u64::MAX - 8, u64::MAX]) {
        for size in 1..=8 {
            let whole = size == 4 && offset.is_multiple_of(4);
            if !(whole && offset == EJECT - HOT_PLUG_PORT) {
                let data = random.next().to_le_bytes();
                rig.hot_plug.write(offset, &data[..size]);
            }
            let mut data = [0xAA; 8];
            if !(whole && offset < EJECT - HOT_PLUG_PORT) {
                rig.hot_plug.read(offset, &mut data[..size]);
                assert_eq!(data[..size], vec![0; size]);
            }
        }
    }
    assert_eq!(rig.hot_plug.state(), before);
    assert_eq!(rig.vendor(kept.into()), 0x1042_1AF4);
    // The control: the right width at the right port.
    assert_eq!(rig.get(DOWN), 1 << asked);
    rig.put(EJECT, 1 << asked);
    assert_eq!(*rig.ejected.lock().unwrap(), [asked]);
}

#[test]
fn a_thousand_functions_come_and_go_and_nothing_grows() {
    let rig = rig();
    let first = rig.add();
    let address = |slot: u8| {
        let mut data = [0; 4];
        rig.bus.ecam().read(u64::from(slot) << 15 | 0x10, &mut data);
        u32::from_le_bytes(data)
    };
    let place = address(first);
    for _ in 0..1000 {
        // The guest switches it on, and does not switch it off before it lets go.
        (rig.bus.ecam()).write(u64::from(first) << 15 | 4, &[6, 0]);
        assert!(rig.hot_plug.ask_release(first));
        rig.put(EJECT, 1 << first);
        let mut data = [0; 4];
        rig.bus
            .window(crate::pci::Window::Mmio32)
            .read(0, &mut data);
        assert_eq!(data, [0xFF; 4], "its BAR answers nowhere");
        assert_eq!(rig.add(), first);
        assert_eq!(address(first), place);
    }
    // All other slots are still free, and no more than those.
    let more: Vec<u8> = std::iter::from_fn(|| rig.hot_plug.add(Arc::new(Plain)).ok()).collect();
    assert_eq!(more, (2..32).collect::<Vec<_>>());
    let full = rig.hot_plug.add(Arc::new(Plain));
    assert_eq!(full, Err(PciError::NoFreeSlot));
    assert!(!rig.hot_plug.ask_release(32) && !rig.hot_plug.ask_release(255));
}

#[test]
fn a_refused_function_leaves_no_trace() {
    let rig = rig();
    // 32 pages for 31 slots: the bus is full before the window is.
    for _ in 1..32 {
        rig.add();
    }
    rig.event();
    let before = rig.hot_plug.state();
    assert!(rig.hot_plug.add(Arc::new(Plain)).is_err());
    assert_eq!(rig.hot_plug.state(), before);
    assert!(!rig.line.is_active());
}

#[test]
fn a_reset_does_what_the_old_guest_was_asked_for() {
    let rig = rig();
    let (kept, asked) = (rig.add(), rig.add());
    rig.hot_plug.ask_release(asked);
    rig.hot_plug.reset();
    assert_eq!(*rig.ejected.lock().unwrap(), [asked]);
    assert_eq!(rig.hot_plug.state(), HotPlugState::default());
    assert_eq!(rig.vendor(kept.into()), 0x1042_1AF4);
    assert_eq!(rig.vendor(asked.into()), u32::MAX);
}

#[test]
fn the_state_survives_a_round_trip() {
    let saved = rig();
    let (_, asked) = (saved.add(), saved.add());
    saved.hot_plug.ask_release(asked);
    let restored = rig();
    restored
        .bus
        .add_device(1, vec![(0, Arc::new(Plain))])
        .unwrap();
    restored
        .bus
        .add_device(2, vec![(0, Arc::new(Plain))])
        .unwrap();
    restored.hot_plug.restore(saved.hot_plug.state());
    assert_eq!(restored.hot_plug.state(), saved.hot_plug.state());
    assert_eq!(restored.get(DOWN), 1 << asked);
    restored.put(EJECT, 1 << asked);
    assert_eq!(*restored.ejected.lock().unwrap(), [asked]);
}

#[test]
fn accesses_that_race_a_removal_reach_the_function_or_nothing() {
    let rig = rig();
    let slot = rig.add();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2000 {
                assert!(rig.hot_plug.ask_release(slot));
                rig.put(EJECT, 1 << slot);
                assert_eq!(rig.add(), slot);
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        let (ecam, window) = (rig.bus.ecam(), rig.bus.window(crate::pci::Window::Mmio32));
        while !done.load(std::sync::atomic::Ordering::SeqCst) {
            assert!(matches!(rig.vendor(slot.into()), 0x1042_1AF4 | u32::MAX));
            // Switching it on at the wrong moment does not leave a BAR behind.
            ecam.write(u64::from(slot) << 15 | 4, &[2, 0]);
            let mut data = [0; 4];
            window.read(0, &mut data);
            assert!(matches!(data, [0x5A, ..] | [0xFF, ..]), "{data:x?}");
        }
    });
    rig.hot_plug.ask_release(slot);
    rig.put(EJECT, 1 << slot);
    for page in 0..32 {
        let mut data = [0; 4];
        (rig.bus.window(crate::pci::Window::Mmio32)).read(page << 12, &mut data);
        assert_eq!(data, [0xFF; 4]);
    }
    assert_eq!(ECAM_SIZE, 32 << 15, "a slot has 32 KiB of it");
}
