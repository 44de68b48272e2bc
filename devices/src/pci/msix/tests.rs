use std::sync::atomic::AtomicUsize;

use super::*;
use crate::fakes::{FakeMsi, Random};
use crate::pci::Identity;

/// A function's MSI-X as the guest sees it.
struct Rig {
    lines: FakeMsi,
    msix: Msix,
    space: ConfigSpace,
    at: u16,
}

impl Rig {
    fn new(count: u16) -> Self {
        let lines = FakeMsi::default();
        let msix = Msix::new(&lines, count).unwrap();
        let mut space = ConfigSpace::new(Identity {
            vendor: 1,
            device: 1,
            class: 0,
            revision: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        let at = msix.add_capability(&mut space, 2, 0x1000, 0x1800).unwrap();
        Self {
            lines,
            msix,
            space,
            at,
        }
    }

    fn control(&mut self, control: u16) {
        self.space.write(self.at + 2, &control.to_le_bytes());
        self.msix.config_written(&self.space, self.at, self.at);
    }

    fn program(&self, index: u64, address: u64, data: u32) {
        self.msix.table_write(index * 16, &address.to_le_bytes());
        self.msix.table_write(index * 16 + 8, &data.to_le_bytes());
    }

    fn mask(&self, index: u64, masked: bool) {
        self.msix
            .table_write(index * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    fn pending(&self) -> u64 {
        let mut data = [0; 8];
        self.msix.pba_read(0, &mut data);
        u64::from_le_bytes(data)
    }
}

const ON: u16 = 0x8000;
const ON_MASKED: u16 = 0xC000;

#[test]
fn the_capability_says_how_many_vectors_and_where() {
    let mut rig = Rig::new(5);
    assert_eq!(rig.space.dword(rig.at), 0x0004_0011);
    assert_eq!(rig.space.dword(rig.at + 4), 0x1002);
    assert_eq!(rig.space.dword(rig.at + 8), 0x1802);
    rig.space.write(rig.at, &[0xFF; 12]);
    assert_eq!(
        rig.space.dword(rig.at),
        0xC004_0011,
        "only enable and function mask are writable"
    );
    assert_eq!(rig.space.dword(rig.at + 4), 0x1002);
}

#[test]
fn a_vector_is_delivered_once_enabled_routed_and_unmasked() {
    let mut rig = Rig::new(2);
    let line = rig.lines.vector(1);
    rig.msix.trigger(1);
    rig.control(ON_MASKED);
    rig.program(1, 0xFEE0_0000, 0x31);
    rig.mask(1, false);
    rig.control(ON);
    assert_eq!(line.triggers(), 0, "what came while MSI-X was off is gone");
    rig.msix.trigger(1);
    assert_eq!(line.triggers(), 1);
    let message = MsiMessage {
        address: 0xFEE0_0000,
        data: 0x31,
    };
    assert_eq!(*line.routes.lock().unwrap(), [Some(message)]);
    assert_eq!(rig.lines.vector(0).routes(), 0);
}

#[test]
fn a_masked_vector_pends_and_is_delivered_at_unmask_once() {
    let mut rig = Rig::new(3);
    rig.control(ON);
    for (masks_entry, bit) in [(true, 2u16), (false, 1)] {
        let index = u64::from(bit);
        rig.program(index, 0xFEE0_0000, 1);
        rig.mask(index, false);
        let line = rig.lines.vector(usize::from(bit));
        match masks_entry {
            true => rig.mask(index, true),
            false => rig.control(ON_MASKED),
        }
        rig.msix.trigger(bit);
        rig.msix.trigger(bit);
        assert_eq!(line.triggers(), 0);
        assert_eq!(rig.pending(), 1 << bit);
        match masks_entry {
            true => rig.mask(index, false),
            false => rig.control(ON),
        }
        assert_eq!(line.triggers(), 1);
        assert_eq!(rig.pending(), 0);
    }
}

#[test]
fn a_route_is_given_only_when_a_deliverable_message_is_new() {
    let mut rig = Rig::new(1);
    let line = rig.lines.vector(0);
    rig.control(ON_MASKED);
    rig.program(0, 0xFEE0_0000, 1);
    rig.program(0, 0xFEE0_0000, 2);
    rig.mask(0, false);
    assert_eq!(line.routes(), 0, "still masked");
    rig.control(ON);
    assert_eq!(line.routes(), 1);
    for _ in 0..10 {
        rig.mask(0, true);
        rig.mask(0, false);
        rig.control(ON_MASKED);
        rig.control(ON);
        rig.program(0, 0xFEE0_0000, 2);
    }
    assert_eq!(line.routes(), 1, "nothing changed");
    rig.mask(0, true);
    rig.program(0, 0xFEE0_1000, 3);
    rig.mask(0, false);
    assert_eq!(line.routes(), 2);
}

#[test]
fn a_vector_whose_route_is_refused_stays_masked_and_pends() {
    let mut rig = Rig::new(1);
    let line = rig.lines.vector(0);
    line.refuse.store(true, Ordering::SeqCst);
    rig.control(ON);
    rig.program(0, 0xFEE0_0000, 1);
    rig.mask(0, false);
    rig.msix.trigger(0);
    assert_eq!((line.triggers(), rig.pending()), (0, 1));
    line.refuse.store(false, Ordering::SeqCst);
    rig.mask(0, true);
    rig.mask(0, false);
    assert_eq!((line.triggers(), rig.pending()), (1, 0));
}

#[test]
fn the_table_reads_back_and_takes_only_aligned_dwords_and_qwords() {
    let rig = Rig::new(2);
    let read = |offset| {
        let mut data = [0; 4];
        rig.msix.table_read(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!(read(12), 1, "masked after reset");
    rig.program(1, 0x1_FEE0_0000, 0x55);
    rig.msix
        .table_write(16 + 8, &0x1_0000_0077u64.to_le_bytes());
    assert_eq!(
        [read(16), read(20), read(24), read(28)],
        [0xFEE0_0000, 1, 0x77, 1]
    );
    let before = rig.msix.state();
    for (offset, size) in [
        (16, 1),
        (16, 2),
        (18, 4),
        (20, 8),
        (16, 3),
        (28, 8),
        (32, 4),
    ] {
        rig.msix.table_write(offset, &vec![0; size]);
    }
    assert_eq!(rig.msix.state(), before);
    assert_eq!(read(32), u32::MAX, "beyond the table");
}

#[test]
fn accesses_of_every_width_at_every_offset_are_harmless() {
    let rig = Rig::new(65);
    let mut random = Random::new(1);
    for offset in (0..0x900).chain([u64::MAX - 3, u64::MAX]) {
        for size in 1..=8 {
            let mut data = random.next().to_le_bytes()[..size].to_vec();
            rig.msix.table_write(offset, &data);
            rig.msix.table_read(offset, &mut data);
            rig.msix.pba_read(offset, &mut data);
        }
    }
    rig.msix.trigger(64);
    rig.msix.trigger(65);
    rig.msix.trigger(u16::MAX);
}

#[test]
fn the_state_survives_a_round_trip_and_routes_what_is_deliverable() {
    let mut rig = Rig::new(3);
    rig.control(ON);
    rig.program(0, 0xFEE0_0000, 10);
    rig.mask(0, false);
    rig.program(1, 0xFEE0_0000, 11);
    rig.msix.trigger(1);
    let state = rig.msix.state();

    let restored = Rig::new(3);
    restored.msix.restore(&state).unwrap();
    assert_eq!(restored.msix.state(), state);
    assert_eq!(restored.lines.vector(0).routes(), 1);
    assert_eq!(restored.lines.vector(1).routes(), 0);
    restored.msix.trigger(0);
    assert_eq!(restored.lines.vector(0).triggers(), 1);
    restored.mask(1, false);
    assert_eq!(restored.lines.vector(1).triggers(), 1, "it was pending");
    assert!(Rig::new(4).msix.restore(&state).is_err());
}

#[test]
fn a_reset_leaves_nothing_enabled_or_pending_and_keeps_known_routes() {
    let mut rig = Rig::new(2);
    let fresh = rig.msix.state();
    rig.control(ON);
    rig.program(0, 0xFEE0_0000, 1);
    rig.mask(0, false);
    rig.msix.trigger(1);
    rig.msix.reset();
    assert_eq!(rig.msix.state(), fresh);
    rig.msix.trigger(0);
    assert_eq!(rig.lines.vector(0).triggers(), 0);
    rig.control(0);
    rig.control(ON);
    rig.program(0, 0xFEE0_0000, 1);
    rig.mask(0, false);
    assert_eq!(rig.lines.vector(0).routes(), 1);
    rig.msix.trigger(0);
    assert_eq!(rig.lines.vector(0).triggers(), 1);
}

#[test]
fn no_interrupt_is_lost_between_a_trigger_and_an_unmask() {
    const ROUNDS: usize = 10_000;
    let mut rig = Rig::new(1);
    rig.control(ON);
    rig.program(0, 0xFEE0_0000, 1);
    let line = rig.lines.vector(0);
    let (started, triggered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let wait = |counter: &AtomicUsize, value| {
        let mut spins = 0;
        while counter.load(Ordering::SeqCst) < value {
            spins += 1;
            if spins % 1000 == 0 {
                std::thread::yield_now();
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                wait(&started, round);
                rig.msix.trigger(0);
                triggered.store(round, Ordering::SeqCst);
            }
        });
        for round in 1..=ROUNDS {
            rig.mask(0, true);
            started.store(round, Ordering::SeqCst);
            // A different distance between the two each time.
            (0..round % 128).for_each(|_| std::hint::spin_loop());
            rig.mask(0, false);
            wait(&triggered, round);
            // Delivered exactly once, by whichever thread: nothing is left pending.
            assert_eq!((line.triggers(), rig.pending()), (round, 0));
        }
    });
}

#[test]
fn impossible_numbers_of_vectors_are_refused() {
    assert!(Msix::new(&FakeMsi::default(), 0).is_err());
    assert!(Msix::new(&FakeMsi::default(), 2049).is_err());
}
