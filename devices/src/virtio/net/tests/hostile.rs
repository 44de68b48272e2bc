use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::super::*;
use super::rig::*;
use crate::fakes::Random;
use crate::virtio::mock::{HOLE, Part};

#[test]
fn frames_that_are_none_go_back_unsent_and_are_counted() {
    let cases: [&[Part]; 12] = [
        &[],
        &[(TX_AREA, 1, false)],
        &[(TX_AREA, HEADER, false)],
        &[(TX_AREA, HEADER + 13, false)],
        &[(TX_AREA, HEADER + 65_563, false)],
        &[(TX_AREA, 0x10_0000, false), (TX_AREA, 0x10_0000, false)],
        &[(TX_AREA, 100, true)],
        &[(TX_AREA, 100, false), (TX_AREA, 100, true)],
        &[(HOLE, 100, false)],
        &[(HOLE - 50, 100, false)],
        &[(TX_AREA, HEADER, false), (u64::MAX - 50, 100, false)],
        &[(TX_AREA, 100, false), (TX_AREA, u32::MAX, false)],
    ];
    let mut rig = Rig::started(MERGED);
    for (i, parts) in cases.into_iter().enumerate() {
        let parts = if parts.is_empty() {
            // A descriptor without bytes.
            &[(TX_AREA, 0, false)]
        } else {
            parts
        };
        rig.guest_runs(parts);
        assert_eq!(rig.net.metrics().malformed, i as u64 + 1, "case {i}");
    }
    assert!(rig.host_reads().is_err());
    assert_eq!(rig.net.metrics().tx_frames, 0);
    rig.assert_serves();
}

#[test]
fn buffers_that_are_none_go_back_empty_and_the_frame_comes_into_the_next() {
    for features in [0, MERGED] {
        let mut rig = Rig::started(features);
        let bad: [&[Part]; 7] = [
            &[(RX_AREA, 11, true)],
            &[(RX_AREA, 0, true)],
            &[(RX_AREA, 2048, false)],
            &[(RX_AREA, 20, false), (RX_AREA, 2048, true)],
            &[(HOLE, 2048, true)],
            &[(HOLE - 50, 100, true)],
            &[(RX_AREA, 12, true), (u64::MAX - 50, 100, true)],
        ];
        let mut expected = Vec::new();
        for parts in bad {
            let head = rig.rx.chain(parts);
            rig.rx.offer(head);
            expected.push((head, 0));
        }
        let good = rig.rx.chain(&[(RX_AREA, 2048, true)]);
        rig.rx.offer(good);
        rig.rx.kick();
        rig.host_sends(&frame(1, 500));
        expected.push((good, HEADER + 500));
        assert_eq!(rig.rx.wait(8), expected);
        assert_eq!(rig.rx.read(RX_AREA + 12, 500), frame(1, 500));
        let metrics = rig.net.metrics();
        assert_eq!((metrics.malformed, metrics.rx_dropped), (7, 0));
        rig.assert_serves();
    }
}

#[test]
fn a_malformed_buffer_between_others_does_not_come_between_those_of_one_frame() {
    let mut rig = Rig::new(MERGED);
    let mut good = Vec::new();
    for index in 0..60 {
        good.push((rig.offer_buffer(index * 2, 1536), 1536));
        let bad = rig.rx.chain(&[(RX_AREA, 5, true)]);
        rig.rx.offer(bad);
    }
    rig.activate();
    // 40 whole buffers.
    rig.host_sends(&frame(1, 40 * 1536 - 12));
    rig.interrupt.wait(|_| rig.rx.used_index() > 0);
    rig.wait_for(1, |metrics| metrics.rx_frames);
    let mut used = rig.rx.collect();
    while used.iter().filter(|entry| entry.1 > 0).count() < 40 {
        used.extend(rig.rx.wait(1));
    }
    let first = used.iter().position(|entry| entry.1 > 0).unwrap();
    assert_eq!(used[first..first + 40], good[..40]);
    let contents = rig.contents(&good[..40], 1536);
    assert_eq!(contents[10..12], [40, 0]);
    assert_eq!(contents[12..], frame(1, 40 * 1536 - 12));
    for index in 120..160 {
        rig.offer_buffer(index, 1536);
    }
    rig.rx.kick();
    rig.host_sends(&frame(2, 100));
    while !rig.rx.wait(1).contains(&(good[40].0, 112)) {}
}

#[test]
fn chains_without_an_end_go_back() {
    let mut rig = Rig::started(MERGED);
    let next = VRING_DESC_F_NEXT;
    // A cycle, and one that points behind the table.
    rig.tx.descriptor(0, TX_AREA, 100, next, 1);
    rig.tx.descriptor(1, TX_AREA, 100, next, 0);
    assert_eq!(rig.tx.run(0), 0);
    rig.tx.descriptor(0, TX_AREA, 100, next, 256);
    assert_eq!(rig.tx.run(0), 0);
    let next = next | VRING_DESC_F_WRITE;
    rig.rx.descriptor(0, RX_AREA, 2048, next, 1);
    rig.rx.descriptor(1, RX_AREA, 2048, next, 0);
    rig.rx.descriptor(2, RX_AREA, 2048, next, 9999);
    rig.rx.offer(0);
    rig.rx.offer(2);
    rig.rx.kick();
    assert_eq!(rig.rx.wait(2), [(0, 0), (2, 0)]);
    assert_eq!(rig.net.metrics().malformed, 4);
    assert_eq!(rig.interrupt.told().needs_reset, 0);
    rig.assert_sends();
}

#[test]
fn buffers_of_single_bytes_in_any_number_take_what_fits() {
    let mut rig = Rig::started(MERGED);
    // 256 descriptors a chain in indirect tables, eight chains: twice what one system call takes.
    let mut heads = Vec::new();
    for chain in 0..8 {
        let at = RX_AREA + chain * 256;
        let parts: Vec<Part> = (0..256).map(|i| (at + i, 1, true)).collect();
        heads.push(rig.rx.indirect_chain(TX_AREA + chain * 4096, &parts));
    }
    heads.iter().for_each(|&head| rig.rx.offer(head));
    rig.rx.kick();
    for number in 0..24 {
        rig.host_sends(&frame(number, 200));
        let place = number % 8;
        let head = heads[usize::from(place)];
        assert_eq!(rig.rx.wait(1), [(head, 212)]);
        let at = RX_AREA + u64::from(place) * 256 + 12;
        assert_eq!(rig.rx.read(at, 200), frame(number, 200));
        rig.rx.offer(head);
        rig.rx.kick();
    }
    assert_eq!(rig.net.metrics().malformed, 0);
    rig.assert_sends();
}

#[test]
fn a_queue_that_lies_rests_until_reset_and_the_other_one_serves() {
    for queue in [0, 1] {
        for lie in ["index", "head"] {
            let mut rig = Rig::started(MERGED);
            let driver = if queue == 0 { &mut rig.rx } else { &mut rig.tx };
            match lie {
                "index" => driver.set_avail_index(0x8000),
                _ => driver.offer(256),
            }
            driver.kick();
            rig.interrupt.wait(|told| told.needs_reset == 1);
            if queue == 0 {
                rig.assert_sends();
            } else {
                rig.offer_buffer(0, 2048);
                rig.rx.kick();
                rig.host_sends(&frame(1, 60));
                assert_eq!(rig.rx.wait(1), [(0, 72)]);
            }
            let before = rig.turns();
            let driver = if queue == 0 { &rig.rx } else { &rig.tx };
            driver.kick();
            rig.wait_for_turn(before);
            assert_eq!(rig.interrupt.told().needs_reset, 1);
            assert_eq!(rig.net.suspend().len(), 2);
            rig.net.reset();
            let (net, host) = (rig.net, rig.host);
            let mut rig = Rig {
                net,
                host,
                ..Rig::new(MERGED)
            };
            rig.activate();
            rig.assert_serves();
        }
    }
}

/// Descriptors at random, in both queues, with frames coming: whatever happens, the device stops when it is told to, and
/// serves the next driver.
#[test]
fn random_rings_do_no_harm() {
    let mut random = Random::new(7);
    for _ in 0..30 {
        let features = [0, MERGED][random.below(2) as usize];
        let mut rig = Rig::with(features, config(), random.below(2) == 0);
        rig.activate();
        for _ in 0..20 {
            for driver in [&mut rig.rx, &mut rig.tx] {
                for at in 0..256 {
                    let address = match random.below(8) {
                        0 => random.next(),
                        1 => HOLE - random.below(4096),
                        _ => RX_AREA + random.below(0x1_0000),
                    };
                    let length = match random.below(8) {
                        0 => random.next() as u32,
                        _ => random.below(4096) as u32,
                    };
                    let flags = random.below(8) as u32;
                    let next = random.below(258) as u16;
                    driver.descriptor(at, address, length, flags, next);
                }
                for _ in 0..random.below(64) {
                    driver.offer(random.below(256) as u16);
                }
                driver.kick();
            }
            for _ in 0..10 {
                let length = random.below(9000) as usize;
                // The socket may be full.
                let _ = rig.host_writes(&vec![1; length]);
            }
            while rig.host_reads().is_ok() {}
        }
        assert_eq!(rig.net.suspend().len(), 2);
        rig.net.reset();
        let (net, host) = (rig.net, rig.host);
        let mut rig = Rig {
            net,
            host,
            ..Rig::new(features)
        };
        // What waits in the socket is from the old days.
        rig.drain_device();
        while rig.host_reads().is_ok() {}
        rig.activate();
        rig.assert_serves();
    }
}
