use super::super::*;
use super::rig::*;

#[test]
fn a_pause_keeps_frames_buffers_and_order() {
    for features in [0, MERGED] {
        let mut rig = Rig::with(features, config(), true);
        for index in 0..100 {
            rig.offer_buffer(index, 2048);
        }
        rig.activate();
        for round in 0..5_u8 {
            for number in 0..10 {
                rig.host_sends(&frame(round * 10 + number, 200));
            }
            let used = rig.rx.wait(10);
            for (number, entry) in (0..).zip(&used) {
                let expected = frame(round * 10 + number, 200);
                assert_eq!(rig.contents(&[*entry], 2048)[12..], expected);
                assert_eq!(entry.0, u16::from(round * 10 + number), "no buffer is lost");
            }
            let queues = rig.net.suspend();
            assert_eq!(queues.iter().map(|q| q.index).collect::<Vec<_>>(), [0, 1]);
            assert!(rig.net.suspend().is_empty());
            // What comes meanwhile waits: a frame of the host, one of the guest whose kick is lost.
            rig.guest_sends(TX_AREA, &frame(200, 100));
            rig.tx.kick.read().unwrap();
            rig.activate_with(queues);
            assert_eq!(rig.host_receives()[12..], frame(200, 100));
            assert_eq!(rig.tx.wait(1).len(), 1);
        }
        let metrics = rig.net.metrics();
        assert_eq!((metrics.rx_frames, metrics.rx_dropped), (50, 0));
    }
}

#[test]
fn a_reset_forgets_the_queues_and_the_device_serves_the_next_driver() {
    let mut rig = Rig::new(MERGED);
    for index in 0..100 {
        rig.offer_buffer(index, 2048);
    }
    rig.activate();
    // Frames wait for room at the tap, buffers wait for frames.
    for number in 0..=255_u8 {
        let head = rig.tx_chain(TX_AREA + u64::from(number) * 2048, &frame(number, 2000));
        rig.tx.offer(head);
    }
    rig.tx.kick();
    rig.wait_for(1, |metrics| metrics.tx_frames);
    drop(rig.net.suspend());
    rig.net.reset();
    let (net, host) = (rig.net, rig.host);
    // Nothing of the old driver goes on.
    let mut rig = Rig {
        net,
        host,
        ..Rig::new(MERGED)
    };
    while rig.host_reads().is_ok() {}
    rig.activate();
    rig.assert_serves();
    assert!(rig.host_reads().is_err());
}

#[test]
fn a_device_without_one_of_its_queues_is_refused_and_works_afterwards() {
    for missing in [0, 1] {
        let mut rig = Rig::new(MERGED);
        let mut queues = vec![rig.rx.active(), rig.tx.active()];
        queues.remove(usize::from(missing));
        let refused = rig.net.activate(Activation {
            memory: rig.rx.memory.clone(),
            features: MERGED,
            queues,
            interrupt: rig.interrupt.clone(),
        });
        let expected = |error| matches!(error, ActivateError::MissingQueue { got: 1, missing: m } if m == missing);
        assert!(expected(refused.unwrap_err()));
        rig.activate();
        rig.assert_serves();
    }
}

#[test]
fn the_state_makes_the_same_interface_at_another_tap() {
    let mut config = config();
    config.mtu = Some(1400);
    config.tx_limits.ops = Some(crate::limiter::Limit {
        size: 1,
        one_time_burst: 2,
        refill_time: 3,
    });
    let rig = Rig::with(MERGED, config, true);
    let state = rig.net.state();
    let DeviceState::Net(net) = state.clone() else {
        panic!("{state:?}");
    };
    let tap = |udp| Tap::socket(socket_pair().0, udp);
    let restored = Net::from_state(net.clone(), tap(true)).unwrap();
    assert_eq!(restored.state(), state);
    assert_eq!(restored.features(), rig.net.features());
    let refused = Net::from_state(net.clone(), tap(false)).err();
    assert!(matches!(refused, Some(NetError::Segmentation { .. })));
    // One that did not segment UDP does not begin to under a driver that runs.
    let old = NetState {
        features: net.features & !feature::UDP,
        ..net
    };
    let restored = Net::from_state(old.clone(), tap(true)).unwrap();
    assert_eq!(restored.state(), DeviceState::Net(old));
}

#[test]
fn limits_can_be_set_while_the_device_is_not_served() {
    let mut rig = Rig::new(MERGED);
    let none = Limits::default();
    let one = Limits {
        ops: Some(crate::limiter::Limit {
            size: 1,
            one_time_burst: 0,
            refill_time: u64::MAX,
        }),
        ..none
    };
    rig.net.set_limits(none, one).unwrap();
    rig.activate();
    rig.assert_sends();
    let queues = rig.net.suspend();
    rig.net.set_limits(none, one).unwrap();
    rig.guest_sends(TX_AREA, &frame(1, 60));
    rig.activate_with(queues);
    rig.offer_buffer(0, 2048);
    rig.rx.kick();
    rig.host_sends(&frame(1, 60));
    rig.rx.wait(1);
    assert_eq!(rig.net.metrics().tx_frames, 1);
    rig.net.set_limits(none, none).unwrap();
    rig.tx.wait(1);
}
