//! Drivers that follow no rules.

use super::*;
use crate::fakes::Random;

#[test]
fn accesses_of_every_width_at_every_offset_of_bar_and_config_space_are_harmless() {
    let rig = Rig::new();
    rig.start(&rig.memory);
    let mut random = Random::new(11);
    for offset in 0..BAR_SIZE + 8 {
        for size in 1..=8 {
            let mut data = random.next().to_le_bytes()[..size].to_vec();
            rig.bar.read(offset, &mut data);
            rig.bar.write(offset, &data);
        }
    }
    for offset in 0..0x1000 {
        for size in 1..=8 {
            let mut data = random.next().to_le_bytes()[..size].to_vec();
            rig.ecam.read(offset, &mut data);
            rig.ecam.write(offset, &data);
        }
    }
    works_after_reset(&rig);
}

/// Whatever has happened, a driver that starts over gets a working device.
fn works_after_reset(rig: &Rig) {
    rig.disable();
    rig.ecam.write(0x10, &0xC000_0000u32.to_le_bytes());
    rig.ecam.write(0x14, &0u32.to_le_bytes());
    rig.enable();
    rig.put8(0x14, 0);
    assert_eq!(rig.status(), 0);
    for vector in 0..3 {
        rig.put32(0x300C + 16 * vector, 1);
    }
    let before = rig.triggers(1);
    let [mut first, _] = rig.start(&rig.memory);
    let pended = rig.triggers(1) - before;
    first.add_chain(1).unwrap();
    assert!(rig.doorbells.ring(BAR + 0x2000));
    assert_eq!(rig.kicks(0), 1);
    assert_eq!(rig.serve(0), 1);
    assert_eq!(rig.triggers(1), before + pended + 1);
}

/// One random access, mostly to registers that do something.
fn poke(rig: &Rig, random: &mut Random) {
    let value = match random.below(6) {
        0 => 0,
        1 => 1,
        2 => random.below(256),
        3 => random.below(RAM) & !0xF,
        4 => 1 << random.below(64),
        _ => random.next(),
    };
    let size = [1, 2, 4, 4, 8, 3][usize::try_from(random.below(6)).unwrap()];
    let mut data = value.to_le_bytes()[..size].to_vec();
    let offset = match random.below(10) {
        0..=5 => random.below(0x38),
        6 => 0x2000 + random.below(0x10),
        7 => 0x3000 + random.below(0x40) / 4 * 4,
        8 => random.below(BAR_SIZE),
        _ => 0x14,
    };
    match random.below(12) {
        0 => rig.ecam.write(random.below(0x100), &data),
        1 => rig.enable(),
        2 => rig.ecam.write(0x10, &0xC000_0000u32.to_le_bytes()),
        3 => rig.accept(VERSION_1 | EVENT_IDX),
        4..=6 => rig.bar.read(offset, &mut data),
        7 => {
            let log = rig.log.lock().unwrap();
            if let Some(active) = &log.active {
                match random.below(3) {
                    0 => active.interrupt.config(),
                    1 => active
                        .interrupt
                        .queue(u16::try_from(random.below(4)).unwrap()),
                    _ => active.interrupt.needs_reset(),
                }
            }
        }
        _ => rig.bar.write(offset, &data),
    }
}

/// What must hold after every access.
fn check(rig: &Rig) {
    let log = rig.log.lock().unwrap();
    let control = rig.function.lock();
    let status = rig.function.interrupt.status();
    let active = log.active.as_ref();
    assert_eq!(active.is_some(), matches!(control.phase, Phase::Active));
    if let Some(active) = active {
        assert_eq!(status & (DRIVER_OK | FEATURES_OK), DRIVER_OK | FEATURES_OK);
        assert_eq!(active.features & VERSION_1, VERSION_1);
        assert_eq!(active.features & !control.offered, 0);
        for queue in &active.queues {
            assert!(virtio_queue::QueueT::is_valid(&queue.queue, &rig.memory));
            let registers = &control.common.queues[usize::from(queue.index)];
            assert!(registers.enabled);
            assert_eq!(virtio_queue::QueueT::size(&queue.queue), registers.size);
            assert_eq!(
                virtio_queue::QueueT::desc_table(&queue.queue),
                registers.desc_table
            );
        }
        let serving = control.bar.is_some();
        let connected = if serving { active.queues.len() } else { 0 };
        assert_eq!(rig.doorbells.addresses().len(), connected);
    } else {
        assert!(rig.doorbells.addresses().is_empty());
    }
}

#[test]
fn no_sequence_of_register_writes_breaks_the_rules() {
    for seed in 0..60 {
        let rig = Rig::new();
        let mut random = Random::new(seed);
        if seed % 2 == 0 {
            rig.start(&rig.memory);
        }
        for _ in 0..1500 {
            poke(&rig, &mut random);
            check(&rig);
        }
        if seed % 4 == 1 {
            rig.function.pause();
            rig.function.state().unwrap();
            rig.function.resume().unwrap();
            check(&rig);
        }
        works_after_reset(&rig);
    }
}

#[test]
fn a_driver_on_several_vcpus_at_once_is_harmless() {
    let rig = Rig::new();
    rig.start(&rig.memory);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let rig = &rig;
            scope.spawn(move || {
                let mut random = Random::new(100 + seed);
                for _ in 0..3000 {
                    poke(rig, &mut random);
                }
            });
        }
    });
    check(&rig);
    works_after_reset(&rig);
}
