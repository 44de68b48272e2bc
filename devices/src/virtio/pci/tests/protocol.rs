//! A well-behaved driver, and the rules it relies on.

use super::*;

/// A capability of type `kind`: BAR, offset, length and its own offset.
fn capability(rig: &Rig, kind: u8) -> Option<(u8, u32, u32, u64)> {
    let mut at = u64::from(rig.config(0x34) & 0xFF);
    while at != 0 {
        let [id, next, _, cfg_type] = rig.config(at).to_le_bytes();
        if id == 9 && cfg_type == kind {
            let [bar, ..] = rig.config(at + 4).to_le_bytes();
            return Some((bar, rig.config(at + 8), rig.config(at + 12), at));
        }
        at = u64::from(next);
    }
    None
}

#[test]
fn the_function_presents_itself_as_a_modern_virtio_device() {
    let rig = Rig::new();
    assert_eq!(rig.config(0), 0x1042_1AF4);
    assert_eq!(rig.config(8) & 0xFF, 1);
    assert_eq!(rig.config(0x10), 0xC000_0004);
    assert_eq!(
        capability(&rig, 1),
        Some((0, 0, 0x38, capability(&rig, 1).unwrap().3))
    );
    let (_, notify, length, at) = capability(&rig, 2).unwrap();
    assert_eq!((notify, length >= 8), (NOTIFY_OFFSET, true));
    assert_eq!(rig.config(at + 16), 4, "notify_off_multiplier");
    assert_eq!(capability(&rig, 3).unwrap().1, ISR_OFFSET);
    assert_eq!(capability(&rig, 4).unwrap().1, DEVICE_OFFSET);
    assert!(capability(&rig, 5).is_some());
    rig.enable();
    assert_eq!(rig.get16(0x12), 2, "num_queues");
    rig.put32(0, 0);
    let low = rig.get32(4);
    rig.put32(0, 1);
    let high = rig.get32(4);
    assert_eq!(u64::from(low), OFFERED | EVENT_IDX | 1 << 28);
    assert_eq!(high, 1);
    rig.put32(0, 2);
    assert_eq!(rig.get32(4), 0);
}

#[test]
fn a_request_goes_through_doorbell_used_ring_and_interrupt() {
    let rig = Rig::new();
    let [mut first, second] = rig.start(&rig.memory);
    first.add_chain(3).unwrap();
    assert!(rig.doorbells.ring(BAR + u64::from(NOTIFY_OFFSET)));
    assert_eq!(rig.kicks(0), 1);
    assert_eq!(rig.serve(0), 1);
    assert_eq!(first.used().idx().load(), 1);
    assert_eq!(
        [rig.triggers(0), rig.triggers(1), rig.triggers(2)],
        [0, 1, 0]
    );
    assert!(rig.doorbells.ring(BAR + u64::from(NOTIFY_OFFSET) + 4));
    assert_eq!((rig.kicks(0), rig.kicks(1)), (0, 1));
    assert_eq!(second.used().idx().load(), 0);
    assert_eq!(
        rig.get8(u64::from(ISR_OFFSET)),
        0,
        "MSI-X leaves the ISR alone"
    );
}

#[test]
fn features_beyond_the_offer_or_without_version_1_are_refused() {
    for features in [
        0,
        OFFERED,
        VERSION_1 | 1 << 1,
        VERSION_1 | 1 << 40,
        u64::MAX,
    ] {
        let rig = Rig::new();
        rig.enable();
        assert_eq!(
            rig.negotiate(features),
            ACKNOWLEDGE | DRIVER,
            "{features:#x}"
        );
        assert_eq!(
            rig.driver_ok(),
            ACKNOWLEDGE | DRIVER,
            "and the device does not start"
        );
        rig.accept(VERSION_1 | 1);
        rig.put8(0x14, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(
            rig.status() & FEATURES_OK,
            FEATURES_OK,
            "a better choice is taken"
        );
        assert_eq!(rig.log.lock().unwrap().activations, 0);
    }
}

#[test]
fn features_freeze_at_features_ok_and_reach_the_device() {
    let rig = Rig::new();
    rig.enable();
    rig.negotiate(VERSION_1 | 4);
    rig.accept(VERSION_1 | 1);
    rig.put32(0x08, 0);
    assert_eq!(rig.get32(0x0C), 4);
    rig.driver_ok();
    assert_eq!(
        rig.log.lock().unwrap().active.as_ref().unwrap().features,
        VERSION_1 | 4
    );
}

#[test]
fn status_bits_cannot_be_cleared_but_by_reset_and_failed_keeps_the_device_off() {
    let rig = Rig::new();
    rig.enable();
    rig.put8(0x14, ACKNOWLEDGE);
    rig.put8(0x14, DRIVER);
    assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER);
    rig.put8(0x14, NEEDS_RESET | 0x30);
    assert_eq!(
        rig.status(),
        ACKNOWLEDGE | DRIVER,
        "only the device sets these"
    );
    rig.accept(VERSION_1);
    rig.put8(0x14, FEATURES_OK);
    rig.put8(0x14, FAILED);
    rig.put8(0x14, DRIVER_OK);
    assert_eq!(rig.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
    assert_eq!(rig.log.lock().unwrap().activations, 0);
    rig.put8(0x14, 0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn a_driver_may_leave_queues_out() {
    let rig = Rig::new();
    let queues = mocks(&rig.memory);
    rig.enable();
    rig.negotiate(VERSION_1);
    rig.queue(1, 4, &queues[1]);
    rig.driver_ok();
    let log = rig.log.lock().unwrap();
    let active = log.active.as_ref().unwrap();
    assert_eq!(active.queues.len(), 1);
    assert_eq!(active.queues[0].index, 1);
    assert_eq!(virtio_queue::QueueT::size(&active.queues[0].queue), 4);
    assert!(!virtio_queue::QueueT::event_idx_enabled(
        &active.queues[0].queue
    ));
    assert_eq!(rig.doorbells.addresses(), [BAR + 0x2004]);
}

#[test]
fn invalid_queue_sizes_are_ignored() {
    let rig = Rig::new();
    rig.enable();
    assert_eq!(rig.get16(0x18), 16);
    for size in [0, 3, 15, 17, 32, 0x8000, 0xFFFF] {
        rig.put16(0x18, size);
        assert_eq!(rig.get16(0x18), 16, "{size}");
    }
    rig.put16(0x18, 4);
    assert_eq!(rig.get16(0x18), 4);
}

#[test]
fn a_queue_freezes_when_enabled_until_reset() {
    let rig = Rig::new();
    let queues = mocks(&rig.memory);
    rig.enable();
    rig.put16(0x1C, 1);
    assert_eq!(rig.get16(0x1C), 0, "not before FEATURES_OK");
    rig.negotiate(VERSION_1);
    rig.put16(0x1C, 2);
    assert_eq!(rig.get16(0x1C), 0, "only 1 enables");
    rig.queue(0, 8, &queues[0]);
    let image = |rig: &Rig| {
        rig.read::<8>(0x18)
            .into_iter()
            .chain(rig.read::<8>(0x20))
            .collect::<Vec<_>>()
    };
    let before = image(&rig);
    for when in 0..2 {
        rig.put16(0x18, 4);
        rig.put16(0x1A, 0);
        rig.put16(0x1C, 0);
        for register in (0x20..0x38).step_by(4) {
            rig.put32(register, 0x5000);
        }
        assert_eq!(image(&rig), before, "round {when}");
        rig.driver_ok();
    }
    rig.put16(0x16, 1);
    rig.put16(0x18, 4);
    rig.put16(0x1C, 1);
    assert_eq!(
        (rig.get16(0x18), rig.get16(0x1C)),
        (8, 0),
        "nor the others after DRIVER_OK"
    );
    rig.put16(0x16, 0);
    assert_eq!(rig.get16(0x16), 0, "queue_select stays writable");
    rig.put8(0x14, 0);
    assert_eq!((rig.get16(0x18), rig.get16(0x1C)), (16, 0));
    rig.put16(0x18, 2);
    assert_eq!(rig.get16(0x18), 2);
}

#[test]
fn a_queue_select_out_of_range_is_harmless() {
    let rig = Rig::new();
    rig.enable();
    rig.negotiate(VERSION_1);
    for select in [2, 64, 0x8000, 0xFFFF] {
        rig.put16(0x16, select);
        assert_eq!(rig.get16(0x16), select);
        rig.put16(0x18, 8);
        rig.put16(0x1A, 0);
        rig.put16(0x1C, 1);
        rig.address(0x20, 0x1000);
        assert_eq!((rig.get16(0x18), rig.get16(0x1C)), (0, 0));
        assert_eq!(rig.get16(0x1A), 0xFFFF);
        assert_eq!(rig.get32(0x20), 0);
    }
    rig.driver_ok();
    assert!(
        rig.log
            .lock()
            .unwrap()
            .active
            .as_ref()
            .unwrap()
            .queues
            .is_empty()
    );
}

#[test]
fn rings_outside_ram_or_unaligned_need_a_reset_and_then_work() {
    let bad = [
        (0x20, RAM),
        (0x20, RAM - 16),
        (0x28, RAM - 2),
        (0x30, RAM - 4),
        (0x20, u64::MAX - 15),
        (0x30, u64::MAX - 3),
        (0x20, 0x1_0008),
        (0x28, 0x1_0001),
        (0x30, 0x1_0002),
        (0x28, 0),
    ];
    for (register, address) in bad {
        let rig = Rig::new();
        let queues = mocks(&rig.memory);
        rig.enable();
        rig.unmask(3);
        rig.negotiate(VERSION_1);
        rig.put16(0x10, 0);
        rig.put16(0x16, 0);
        rig.address(0x20, queues[0].desc_table_addr().0);
        rig.address(0x28, queues[0].avail_addr().0);
        rig.address(0x30, queues[0].used_addr().0);
        rig.address(register, address);
        rig.put16(0x1C, 1);
        assert_eq!(
            rig.driver_ok() & (DRIVER_OK | NEEDS_RESET),
            DRIVER_OK | NEEDS_RESET,
            "{address:#x}"
        );
        assert_eq!(rig.triggers(0), 1, "the driver is told");
        assert_eq!(rig.log.lock().unwrap().activations, 0);
        assert!(rig.doorbells.addresses().is_empty());
        rig.put8(0x14, 0);
        rig.start(&rig.memory);
    }
}

#[test]
fn a_device_that_cannot_start_needs_a_reset() {
    let rig = Rig::new();
    rig.log.lock().unwrap().fail = true;
    rig.enable();
    rig.negotiate(VERSION_1);
    assert_eq!(rig.driver_ok() & NEEDS_RESET, NEEDS_RESET);
    assert!(rig.doorbells.addresses().is_empty());
    rig.log.lock().unwrap().fail = false;
    rig.put8(0x14, 0);
    rig.start(&rig.memory);
}

#[test]
fn a_reset_takes_everything_back() {
    let rig = Rig::new();
    rig.start(&rig.memory);
    rig.doorbells.ring(BAR + 0x2000);
    rig.put8(0x14, 0);
    assert_eq!(rig.status(), 0);
    assert!(rig.doorbells.addresses().is_empty());
    assert_eq!(rig.log.lock().unwrap().resets, 1);
    assert!(rig.log.lock().unwrap().active.is_none());
    assert_eq!(rig.get16(0x10), 0xFFFF);
    for queue in 0..2 {
        rig.put16(0x16, queue);
        assert_eq!(rig.get16(0x1A), 0xFFFF);
        assert_eq!(rig.get16(0x1C), 0);
        assert_eq!(rig.get32(0x20), 0);
    }
    rig.put32(0x08, 0);
    assert_eq!(rig.get32(0x0C), 0);
    rig.start(&rig.memory);
    assert_eq!(rig.kicks(0), 0, "an old kick is forgotten");
    assert_eq!(rig.log.lock().unwrap().activations, 2);
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let rig = Rig::new();
    rig.enable();
    for (vector, expected) in [(0, 0), (2, 2), (3, 0xFFFF), (0xFFFE, 0xFFFF)] {
        for register in [0x10, 0x1A] {
            rig.put16(register, vector);
            assert_eq!(rig.get16(register), expected);
        }
    }
}

#[test]
fn without_msix_the_isr_tells_and_reading_clears_it() {
    let rig = Rig::new();
    rig.enable();
    rig.negotiate(VERSION_1);
    rig.driver_ok();
    let interrupt = rig
        .log
        .lock()
        .unwrap()
        .active
        .as_ref()
        .unwrap()
        .interrupt
        .clone();
    interrupt.queue(0);
    assert_eq!(rig.get8(u64::from(ISR_OFFSET)), 1);
    assert_eq!(rig.get8(u64::from(ISR_OFFSET)), 0);
    interrupt.config();
    interrupt.queue(1);
    assert_eq!(rig.get8(u64::from(ISR_OFFSET)), 3);
}

#[test]
fn a_configuration_change_raises_its_vector_and_the_generation() {
    let rig = Rig::new();
    rig.start(&rig.memory);
    let interrupt = rig
        .log
        .lock()
        .unwrap()
        .active
        .as_ref()
        .unwrap()
        .interrupt
        .clone();
    let before = rig.get8(0x15);
    interrupt.config();
    assert_eq!(rig.triggers(0), 1);
    assert_eq!(rig.get8(0x15), before.wrapping_add(1));
    interrupt.needs_reset();
    interrupt.needs_reset();
    assert_eq!(rig.triggers(0), 2, "needs_reset tells once");
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn the_device_configuration_is_the_device_s() {
    let rig = Rig::new();
    rig.enable();
    assert_eq!(rig.read::<4>(0x1002), [2, 3, 4, 5]);
    assert_eq!(rig.read::<8>(0x100C), [12, 13, 14, 15, 0, 0, 0, 0]);
    assert_eq!(rig.read::<8>(0x1FF8), [0; 8]);
    rig.put16(0x1000, 0xBBAA);
    assert_eq!(rig.read::<3>(0x1000), [0xAA, 0xBB, 2]);
}

#[test]
fn the_pci_configuration_access_capability_reaches_the_bar() {
    let rig = Rig::new();
    let at = capability(&rig, 5).unwrap().3;
    // Memory space is off: this way works all the same.
    let select = |offset: u32, length: u32| {
        rig.ecam.write(at + 4, &[0]);
        rig.ecam.write(at + 8, &offset.to_le_bytes());
        rig.ecam.write(at + 12, &length.to_le_bytes());
    };
    select(0x12, 2);
    assert_eq!(rig.config(at + 16) & 0xFFFF, 2, "num_queues");
    select(0x14, 1);
    rig.ecam.write(at + 16, &[ACKNOWLEDGE, 0, 0, 0]);
    assert_eq!(rig.config(at + 16) & 0xFF, u32::from(ACKNOWLEDGE));
    for (bar, offset, length) in [
        (1, 0x14, 1),
        (0, 0x14, 3),
        (0, 0x15, 2),
        (0, 0x14, 0),
        (0, 0x14, 8),
        (0, u32::MAX, 1),
    ] {
        select(offset, length);
        rig.ecam.write(at + 4, &[bar]);
        rig.ecam.write(at + 16, &[0; 4]);
        rig.config(at + 16);
    }
    select(0x14, 1);
    assert_eq!(
        rig.config(at + 16) & 0xFF,
        u32::from(ACKNOWLEDGE),
        "nothing was reset by a bad access"
    );
}

#[test]
fn doorbells_cost_one_call_a_queue_in_a_normal_start() {
    let rig = Rig::new();
    rig.ecam.write(0x10, &u32::MAX.to_le_bytes());
    rig.ecam.write(0x10, &0xC000_0000u32.to_le_bytes());
    rig.start(&rig.memory);
    assert_eq!(rig.doorbells.calls(), 2);
    assert_eq!(rig.doorbells.addresses(), [BAR + 0x2000, BAR + 0x2004]);
    assert_eq!(rig.lines.vector(1).routes(), 1);
}

#[test]
fn doorbells_follow_the_bar_and_leave_when_it_is_disabled() {
    let rig = Rig::new();
    rig.start(&rig.memory);
    rig.ecam.write(0x10, &0xC008_0000u32.to_le_bytes());
    assert_eq!(rig.doorbells.addresses(), [0xC008_2000, 0xC008_2004]);
    rig.disable();
    assert!(rig.doorbells.addresses().is_empty());
    rig.ecam.write(0x10, &0xC000_0000u32.to_le_bytes());
    rig.enable();
    assert_eq!(rig.doorbells.addresses(), [BAR + 0x2000, BAR + 0x2004]);
    rig.doorbells.ring(BAR + 0x2004);
    assert_eq!(rig.kicks(1), 1);
}

#[test]
fn a_kick_that_arrives_as_an_access_works_too() {
    let rig = Rig::new();
    rig.doorbells
        .refuse
        .store(true, std::sync::atomic::Ordering::SeqCst);
    rig.start(&rig.memory);
    assert!(rig.doorbells.addresses().is_empty());
    rig.put16(0x2000, 0);
    rig.put32(0x2004, 1);
    rig.put8(0x2004, 1);
    assert_eq!((rig.kicks(0), rig.kicks(1)), (1, 2));
    rig.put16(0x2002, 0);
    rig.put16(0x2008, 2);
    rig.put16(0x20FE, 2);
    assert_eq!((rig.kicks(0), rig.kicks(1)), (0, 0));
}

#[test]
fn impossible_queues_are_refused_at_build() {
    for sizes in [vec![], vec![16; 65], vec![3], vec![0], vec![16, 0]] {
        let model = Box::new(Model {
            log: Arc::default(),
            sizes,
        });
        let platform = Platform {
            memory: ram(),
            interrupts: &FakeMsi::default(),
            doorbells: Arc::new(FakeDoorbells::default()),
        };
        assert!(matches!(
            VirtioPci::new(model, platform),
            Err(TransportError::Queues(_))
        ));
    }
}

#[test]
fn the_largest_device_fits_its_bar() {
    let rig = Rig::with_queues(&[256; 64]);
    rig.enable();
    rig.unmask(65);
    assert_eq!(rig.get32(0x3000 + 64 * 16 + 8), 0x40 + 64);
    assert_eq!(rig.read::<8>(0x3808), [0; 8]);
    rig.put16(0x20FC, 63);
}

#[test]
fn a_changed_configuration_is_told_to_a_driver_that_is_there() {
    let rig = Rig::new();
    rig.enable();
    let changed = rig.function.with_model(|model: &mut Model| {
        model.log.lock().unwrap().config[0] = 0x77;
    });
    assert_eq!(changed, Some(()));
    rig.function.config_changed();
    assert_eq!(rig.get8(DEVICE_OFFSET.into()), 0x77);
    assert_eq!((rig.get8(0x15), rig.triggers(0)), (1, 0), "no driver yet");
    rig.start(&rig.memory);
    rig.function.config_changed();
    assert_eq!((rig.get8(0x15), rig.triggers(0)), (2, 1));
    assert_eq!(rig.get8(ISR_OFFSET.into()), 2);
    let other = |_: &mut crate::virtio::entropy::Entropy| ();
    assert_eq!(rig.function.with_model(other), None, "another model");
}

#[test]
fn a_function_that_leaves_the_bus_lets_go_of_everything() {
    let rig = Rig::new();
    let [mut first, _] = rig.start(&rig.memory);
    first.add_chain(1).unwrap();
    assert!(!rig.doorbells.addresses().is_empty());
    assert!(rig.root.remove(0));
    assert!(rig.log.lock().unwrap().active.is_none(), "no worker");
    assert_eq!(rig.doorbells.addresses(), [0; 0]);
    assert_eq!(rig.config(0), u32::MAX);
    assert_eq!(rig.get32(0), u32::MAX);
    assert!(!rig.root.remove(0), "only once");
    let (
        weak,
        Rig {
            function, lines, ..
        },
    ) = (Arc::downgrade(&rig.function), rig);
    drop(function);
    assert!(weak.upgrade().is_none());
    let vectors = lines.0.into_inner().unwrap();
    assert!(vectors.iter().all(|vector| Arc::strong_count(vector) == 1));
}
