use std::io;

use super::super::*;
use super::rig::*;
use crate::virtio::mock::SEAM;

#[test]
fn a_frame_goes_out_as_it_is_with_its_header() {
    for event_idx in [false, true] {
        let mut rig = Rig::with(MERGED, config(), event_idx);
        rig.activate();
        let header = [1, 1, 66, 0, 0xAA, 5, 34, 0, 16, 0, 9, 9];
        for length in [14, 60, 1514, 65_562] {
            let frame = frame(1, length);
            rig.tx.write(TX_AREA, &header);
            rig.tx.write(TX_AREA + 12, &frame);
            rig.guest_runs(&[(TX_AREA, 12 + length as u32, false)]);
            let got = rig.host_receives();
            assert_eq!(got[..12], header);
            assert_eq!(got[12..], frame);
        }
        let metrics = rig.net.metrics();
        assert_eq!(metrics.tx_frames, 4);
        assert_eq!(metrics.tx_bytes, 14 + 60 + 1514 + 65_562);
    }
}

#[test]
fn header_and_frame_may_be_cut_anywhere() {
    let mut rig = Rig::started(MERGED);
    let frame = frame(5, 60);
    for cut in [1, 11, 12, 13, 40, 71] {
        rig.tx.write(SEAM - 10, &[0; 12]);
        rig.tx.write(SEAM + 2, &frame);
        let rest = (SEAM - 10 + u64::from(cut), 72 - cut, false);
        rig.guest_runs(&[(SEAM - 10, cut, false), rest]);
        assert_eq!(rig.host_receives()[12..], frame);
    }
    // Every byte a descriptor of its own, in an indirect table.
    let parts: Vec<_> = (0..72).map(|i| (SEAM - 10 + i, 1, false)).collect();
    let head = rig.tx.indirect_chain(TX_AREA, &parts);
    assert_eq!(rig.tx.run(head), 0);
    assert_eq!(rig.host_receives()[12..], frame);
}

#[test]
fn a_full_queue_goes_out_in_order() {
    let mut rig = Rig::started(MERGED);
    for number in 0..=255_u8 {
        let head = rig.tx_chain(TX_AREA + u64::from(number) * 256, &frame(number, 100));
        rig.tx.offer(head);
    }
    rig.tx.kick();
    for number in 0..=255_u8 {
        assert_eq!(rig.host_receives()[12..], frame(number, 100));
    }
    assert_eq!(rig.tx.wait(256).len(), 256);
}

#[test]
fn a_tap_that_takes_nothing_is_waited_for_without_work_and_loses_nothing() {
    let mut rig = Rig::started(MERGED);
    for number in 0..=255_u8 {
        let head = rig.tx_chain(TX_AREA + u64::from(number) * 2048, &frame(number, 2000));
        rig.tx.offer(head);
    }
    rig.tx.kick();
    // The host takes none: the socket fills.
    let full = |rig: &Rig| rig.net.metrics().tx_frames;
    rig.wait_for(1, |metrics| metrics.tx_frames);
    // The other direction works, and shows by its turns that the worker does not spin.
    let receive = |rig: &mut Rig| {
        rig.offer_buffer(0, 2048);
        rig.rx.kick();
        rig.host_sends(&frame(1, 60));
        rig.rx.wait(1);
    };
    receive(&mut rig);
    receive(&mut rig);
    let (before, sent) = (rig.turns(), full(&rig));
    receive(&mut rig);
    assert!(rig.turns() - before <= 4, "the worker spins");
    assert!(sent < 256 && sent == full(&rig), "{sent}");
    for number in 0..=255_u8 {
        assert_eq!(rig.host_receives()[12..], frame(number, 2000));
    }
    assert_eq!(rig.tx.wait(256).len(), 256);
    let error = rig.host_reads().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(rig.net.metrics().tx_dropped, 0);
}

#[test]
fn a_tap_that_is_gone_costs_frames_and_nothing_else() {
    let mut rig = Rig::started(MERGED);
    for number in 0..100_u8 {
        let head = rig.tx_chain(TX_AREA + u64::from(number) * 2048, &frame(number, 2000));
        rig.tx.offer(head);
    }
    rig.tx.kick();
    rig.wait_for(1, |metrics| metrics.tx_frames);
    // Gone while frames wait for room.
    let (end, _) = socket_pair();
    drop(std::mem::replace(&mut rig.host, end));
    assert_eq!(rig.tx.wait(100).len(), 100);
    rig.guest_sends(TX_AREA, &frame(1, 60));
    assert_eq!(rig.tx.wait(1).len(), 1);
    let before = rig.turns();
    rig.guest_sends(TX_AREA, &frame(1, 60));
    rig.tx.wait(1);
    assert!(rig.turns() - before <= 2, "the worker spins");
    let metrics = rig.net.metrics();
    assert_eq!(metrics.tx_frames + metrics.tx_dropped, 102);
    assert!(metrics.tx_dropped >= 2, "{metrics:?}");
    assert_eq!(rig.net.suspend().len(), 2);
}
