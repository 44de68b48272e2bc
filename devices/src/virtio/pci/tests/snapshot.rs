//! Pause, resume, and state.

use super::*;

#[test]
fn pause_and_resume_keep_the_queues_progress_and_repeat_kicks_and_interrupts() {
    let rig = Rig::new();
    let [mut first, _] = rig.start(&rig.memory);
    first.add_chain(1).unwrap();
    assert_eq!(rig.serve(0), 1);
    assert!(rig.function.state().is_err(), "not while it runs");
    rig.function.pause();
    assert!(rig.log.lock().unwrap().active.is_none());
    first.add_chain(1).unwrap();
    assert!(rig.doorbells.ring(BAR + 0x2000), "doorbells stay");
    let calls = rig.doorbells.calls();
    rig.function.resume().unwrap();
    assert_eq!(rig.doorbells.calls(), calls);
    assert_eq!((rig.kicks(0), rig.kicks(1)), (2, 1));
    assert_eq!(rig.triggers(1), 2);
    assert_eq!(rig.serve(0), 1);
    assert_eq!(first.used().idx().load(), 2);
    assert_eq!(rig.log.lock().unwrap().resets, 0);
}

#[test]
fn pausing_a_device_without_a_driver_does_nothing() {
    let rig = Rig::new();
    rig.function.pause();
    let state = rig.function.state().unwrap();
    assert!(!state.active);
    rig.function.resume().unwrap();
    assert_eq!(rig.log.lock().unwrap().activations, 0);
    rig.start(&rig.memory);
    rig.function.resume().unwrap();
    assert_eq!(
        rig.log.lock().unwrap().activations,
        1,
        "resume without pause"
    );
}

#[test]
fn a_device_goes_on_in_another_machine_where_it_stood() {
    let rig = Rig::new();
    let [mut first, _] = rig.start(&rig.memory);
    for _ in 0..3 {
        first.add_chain(1).unwrap();
    }
    assert_eq!(rig.serve(0), 3);
    first.add_chain(1).unwrap();
    rig.function.pause();
    let (state, bus) = (rig.function.state().unwrap(), rig.root.state());

    let other = Rig::build(&[16, 8], rig.memory.clone(), Some(&state));
    assert_eq!(other.function.state().unwrap(), state);
    other.root.restore(&bus).unwrap();
    assert!(
        other.log.lock().unwrap().active.is_none(),
        "not before resume"
    );
    other.function.resume().unwrap();
    assert_eq!(other.doorbells.addresses(), [BAR + 0x2000, BAR + 0x2004]);
    assert_eq!(
        other.kicks(0),
        1,
        "the kick of the fourth request is not lost"
    );
    assert_eq!(other.serve(0), 1);
    assert_eq!(first.used().idx().load(), 4);
    assert!(other.triggers(1) >= 1);
    assert_eq!(other.status(), rig.status());
    other.put8(0x14, 0);
    other.start(&other.memory);
}

#[test]
fn a_half_set_up_device_survives_a_round_trip() {
    let rig = Rig::new();
    let queues = mocks(&rig.memory);
    rig.enable();
    rig.put16(0x10, 2);
    rig.negotiate(VERSION_1 | 4);
    rig.queue(1, 4, &queues[1]);
    rig.put32(0, 1);
    rig.function.pause();
    let state = rig.function.state().unwrap();
    let other = Rig::build(&[16, 8], rig.memory.clone(), Some(&state));
    other.root.restore(&rig.root.state()).unwrap();
    other.function.resume().unwrap();
    assert_eq!(other.function.state().unwrap(), state);
    assert_eq!(other.read::<8>(0), rig.read::<8>(0));
    assert_eq!(other.get16(0x10), 2);
    other.driver_ok();
    assert_eq!(
        other.log.lock().unwrap().active.as_ref().unwrap().queues[0].index,
        1
    );
    assert_eq!(other.doorbells.addresses(), [BAR + 0x2004]);
}

#[test]
fn a_device_that_cannot_resume_tells_the_driver() {
    let rig = Rig::new();
    rig.start(&rig.memory);
    rig.function.pause();
    rig.log.lock().unwrap().fail = true;
    assert!(matches!(
        rig.function.resume(),
        Err(TransportError::Resume(_))
    ));
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    assert!(rig.doorbells.addresses().is_empty());
    rig.log.lock().unwrap().fail = false;
    rig.put8(0x14, 0);
    rig.start(&rig.memory);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let rig = Rig::new();
    rig.start(&rig.memory);
    rig.function.pause();
    let good = rig.function.state().unwrap();
    let spoil: [fn(&mut VirtioPciState); 11] = [
        |s| s.id = DeviceId::Vsock,
        |s| s.queues.truncate(1),
        |s| s.queues[0].size = 3,
        |s| s.queues[0].size = 0,
        |s| s.queues[1].size = 16,
        |s| s.queues[0].desc_table = RAM,
        |s| s.queues[0].avail_ring |= 1,
        |s| s.queues[0].used_ring = u64::MAX - 3,
        |s| s.driver_features |= 1 << 40,
        |s| s.status = 0,
        |s| s.msix.entries.truncate(2),
    ];
    for (number, spoil) in spoil.into_iter().enumerate() {
        let mut bad = good.clone();
        spoil(&mut bad);
        let model = Box::new(Model {
            log: Arc::default(),
            sizes: vec![16, 8],
        });
        let platform = Platform {
            memory: rig.memory.clone(),
            interrupts: &FakeMsi::default(),
            doorbells: Arc::new(FakeDoorbells::default()),
        };
        assert!(
            VirtioPci::from_state(model, platform, &bad).is_err(),
            "variant {number}"
        );
    }
}

#[test]
fn a_machine_reset_brings_device_and_bus_back_to_power_on() {
    for paused in [false, true] {
        let rig = Rig::new();
        let (bus, fresh) = (rig.root.state(), rig.function.state().unwrap());
        rig.start(&rig.memory);
        rig.ecam.write(0x10, &0xC008_0000u32.to_le_bytes());
        if paused {
            rig.function.pause();
        }
        rig.root.reset();
        assert_eq!(rig.root.state(), bus);
        assert_eq!(rig.function.state().unwrap(), fresh);
        assert!(rig.doorbells.addresses().is_empty());
        rig.function.resume().unwrap();
        assert_eq!(
            rig.log.lock().unwrap().activations,
            1,
            "nothing starts by itself"
        );
        rig.start(&rig.memory);
    }
}
