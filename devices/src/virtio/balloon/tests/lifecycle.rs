//! Pause, resume, reset, snapshot.

use super::*;

#[test]
fn suspend_gives_every_queue_back_with_nothing_in_hand_and_activate_goes_on() {
    let mut rig = Rig::new(ALL);
    rig.assert_serves();
    let report = rig.ask();
    let driver = &mut rig.drivers[STATISTICS];
    let head = driver.chain(&[(DATA, 10, false)]);
    driver.set_used_event(0);
    driver.offer(head);
    driver.kick();
    report.get();
    let queues = rig.balloon.suspend();
    assert_eq!(queues.len(), 4);
    // The statistics buffer went back, and the driver knows.
    assert_eq!(rig.drivers[STATISTICS].collect(), [(head, 0)]);
    assert!(rig.interrupt().told().queues.contains(&2));
    assert_eq!(rig.balloon.suspend().len(), 0);
    // Offered while nobody looks; no kick afterwards.
    let driver = &mut rig.drivers[INFLATE];
    driver.write(DATA, &0x300_u32.to_le_bytes());
    let head = driver.chain(&[(DATA, 4, false)]);
    driver.offer(head);
    rig.activate(queues).unwrap();
    assert_eq!(rig.drivers[INFLATE].wait(1), [(head, 0)]);
    assert_eq!(rig.released(), [(0x300, 1)]);
}

#[test]
fn state_round_trips() {
    for config in [
        ALL,
        BalloonConfig {
            statistics: false,
            deflate_on_oom: false,
            ..ALL
        },
    ] {
        let mut rig = Rig::new(config);
        rig.balloon.control().set_target(5);
        rig.balloon.control().set_interval(60);
        rig.balloon.write_config(4, &7_u32.to_le_bytes());
        let queues = rig.balloon.suspend();
        let DeviceState::Balloon(state) = rig.balloon.state() else {
            panic!("not the state of a balloon");
        };
        assert_eq!((state.target_pages, state.actual_pages), (5 * 256, 7));
        assert_eq!((state.config, state.interval), (config, 60));
        let worker = Arc::clone(&rig.balloon.worker);
        rig.balloon = Balloon::from_state(&state, Arc::clone(&rig.notes) as _, worker).unwrap();
        assert_eq!(rig.balloon.state(), DeviceState::Balloon(state));
        rig.activate(queues).unwrap();
        rig.assert_serves();
    }
}

#[test]
fn a_target_that_was_set_during_a_pause_is_told_afterwards() {
    let mut rig = Rig::new(ALL);
    let queues = rig.balloon.suspend();
    rig.balloon.control().set_target(1);
    let before = rig.interrupt().told().config;
    rig.activate(queues).unwrap();
    assert_eq!(rig.interrupt().told().config, before + 1);
}

#[test]
fn a_reset_forgets_what_the_driver_said_and_not_what_the_host_wants() {
    let mut rig = Rig::new(ALL);
    let control = rig.balloon.control();
    control.set_target(2);
    rig.balloon.write_config(4, &512_u32.to_le_bytes());
    rig.balloon.suspend();
    rig.balloon.reset();
    let told = rig.interrupt().told().config;
    assert_eq!(control.report().actual_pages, 0);
    // Nobody to be told.
    control.set_target(3);
    assert_eq!(rig.interrupt().told().config, told);
    rig.load_driver_again();
    assert_eq!(control.report().target_pages, 3 * 256);
    rig.assert_serves();
}

#[test]
fn a_driver_may_do_without_all_but_the_first_two_queues() {
    let mut rig = Rig::idle(ALL);
    let queues = rig.drivers.iter().take(2).map(Driver::active).collect();
    rig.activate(queues).unwrap();
    rig.assert_serves();
    rig.balloon.suspend();
    for (missing, left) in [(0, DEFLATE), (1, INFLATE)] {
        let queues = vec![rig.drivers[left].active()];
        let error = rig.activate(queues).unwrap_err();
        assert!(
            matches!(error, ActivateError::MissingQueue { got: 1, missing: m } if m == missing),
            "{error}"
        );
    }
}
