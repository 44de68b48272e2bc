use super::super::*;
use super::rig::*;
use crate::limiter::Limit;

/// So slow that a test never sees a token come back.
const NEVER: u64 = 1 << 40;

fn ops(size: u64, refill_time: u64) -> Limits {
    Limits {
        bandwidth: None,
        ops: Some(Limit {
            size,
            one_time_burst: 0,
            refill_time,
        }),
    }
}

fn bytes(size: u64, refill_time: u64) -> Limits {
    Limits {
        bandwidth: ops(size, refill_time).ops,
        ops: None,
    }
}

fn limited(rx: Limits, tx: Limits) -> Rig {
    let config = NetConfig {
        rx_limits: rx,
        tx_limits: tx,
        ..config()
    };
    let mut rig = Rig::with(MERGED, config, true);
    for index in 0..64 {
        rig.offer_buffer(index, 2048);
    }
    rig.activate();
    rig
}

#[test]
fn what_is_sent_waits_for_tokens_and_goes_on_with_other_limits() {
    for limits in [ops(3, NEVER), bytes(300, NEVER)] {
        let mut rig = limited(Limits::default(), limits);
        for number in 0..10 {
            rig.guest_sends(TX_AREA + u64::from(number) * 256, &frame(number, 100));
        }
        for number in 0..3 {
            assert_eq!(rig.host_receives()[12..], frame(number, 100));
        }
        assert_eq!(rig.tx.wait(3).len(), 3);
        // The other direction has no limit, and shows that the worker has had its turns.
        let before = rig.turns();
        for _ in 0..20 {
            rig.host_sends(&frame(1, 60));
            rig.rx.wait(1);
        }
        assert!(rig.turns() - before <= 60, "the worker spins");
        assert_eq!(rig.net.metrics().tx_frames, 3);
        assert!(rig.host_reads().is_err());
        // The same again gives nothing; a wider one does.
        rig.net.set_limits(Limits::default(), limits).unwrap();
        let wider = match limits.ops {
            Some(_) => ops(5, NEVER),
            None => bytes(500, NEVER),
        };
        rig.net.set_limits(Limits::default(), wider).unwrap();
        for number in 3..5 {
            assert_eq!(rig.host_receives()[12..], frame(number, 100));
        }
        rig.net
            .set_limits(Limits::default(), Limits::default())
            .unwrap();
        for number in 5..10 {
            assert_eq!(rig.host_receives()[12..], frame(number, 100));
        }
        assert_eq!(rig.tx.wait(7).len(), 7);
    }
}

#[test]
fn what_is_received_waits_for_tokens_and_goes_on_with_other_limits() {
    for (limits, come) in [(ops(3, NEVER), 3), (bytes(250, NEVER), 3)] {
        let mut rig = limited(limits, Limits::default());
        for number in 0..10 {
            rig.host_sends(&frame(number, 100));
        }
        assert_eq!(rig.rx.wait(come).len(), 3);
        let before = rig.turns();
        for _ in 0..20 {
            rig.assert_sends();
        }
        assert!(rig.turns() - before <= 60, "the worker spins");
        assert_eq!(rig.net.metrics().rx_frames, 3);
        rig.net
            .set_limits(Limits::default(), Limits::default())
            .unwrap();
        let used = rig.rx.wait(7);
        assert_eq!(rig.contents(&used[6..], 2048)[12..], frame(9, 100));
    }
}

#[test]
fn tokens_that_come_back_wake_the_worker() {
    // Ten frames, then one each hundredth of a second.
    let limits = ops(10, 100);
    let mut rig = limited(limits, limits);
    for number in 0..20 {
        rig.host_sends(&frame(number, 100));
        rig.guest_sends(TX_AREA + u64::from(number) * 256, &frame(number, 100));
    }
    let used = rig.rx.wait(20);
    for number in 0..20 {
        let got = rig.contents(&used[usize::from(number)..][..1], 2048);
        assert_eq!(got[12..], frame(number, 100));
        assert_eq!(rig.host_receives()[12..], frame(number, 100));
    }
}

#[test]
fn a_frame_larger_than_the_bucket_goes_when_that_is_full() {
    let mut rig = limited(bytes(50, NEVER), bytes(50, NEVER));
    rig.assert_sends();
    rig.host_sends(&frame(1, 1000));
    assert_eq!(rig.rx.wait(1), [(0, 1012)]);
    rig.guest_sends(TX_AREA, &frame(2, 14));
    rig.host_sends(&frame(3, 14));
    rig.net
        .set_limits(Limits::default(), bytes(50, NEVER))
        .unwrap();
    assert_eq!(rig.rx.wait(1), [(1, 26)]);
    assert_eq!(rig.net.metrics().tx_frames, 1);
}
