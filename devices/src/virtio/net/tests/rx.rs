use super::super::*;
use super::rig::*;

#[test]
fn a_frame_comes_into_one_buffer_with_its_header() {
    for event_idx in [false, true] {
        for features in [0, MERGED] {
            let mut rig = Rig::with(features, config(), event_idx);
            rig.offer_buffer(0, 2048);
            rig.activate();
            let mut message = vec![1, 0, 34, 0, 0, 0, 0, 0, 16, 0, 0xAA, 0xAA];
            message.extend(frame(1, 1514));
            rig.host_writes(&message).unwrap();
            assert_eq!(rig.rx.wait(1), [(0, 1526)]);
            let got = rig.contents(&[(0, 1526)], 2048);
            // num_buffers is the device's.
            assert_eq!(got[..12], [1, 0, 34, 0, 0, 0, 0, 0, 16, 0, 1, 0]);
            assert_eq!(got[12..], message[12..]);
            assert_eq!(rig.rx.read(RX_AREA + 1526, 522), [0xEE; 522]);
            let metrics = rig.net.metrics();
            assert_eq!((metrics.rx_frames, metrics.rx_bytes), (1, 1514));
        }
    }
}

#[test]
fn a_large_frame_fills_many_buffers_which_come_together() {
    let mut rig = Rig::new(MERGED);
    for index in 0..256 {
        rig.offer_buffer(index, 1536);
    }
    rig.activate();
    let large = frame(3, 65_549);
    for round in 0..3_u16 {
        rig.host_sends(&large);
        // The used index goes from none to all of them at once: whoever sees the first sees the last.
        let buffers = 65_561_u32.div_ceil(1536) as u16;
        let mut looks = 0..10_000_000_000_u64;
        assert!(looks.any(|_| rig.rx.used_index() != buffers * round));
        assert_eq!(rig.rx.used_index(), buffers * (round + 1));
        let used = rig.rx.collect();
        let got = rig.contents(&used, 1536);
        assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, buffers as u8, 0]);
        assert_eq!(got[12..], large);
    }
}

#[test]
fn buffers_of_any_cut_take_frames_of_any_size() {
    for length in [1, 14, 60, 499, 500, 501, 1514, 4000] {
        let mut rig = Rig::started(MERGED);
        // One behind the other in guest RAM.
        let mut heads = vec![
            rig.rx
                .chain(&[(RX_AREA, 3, true), (RX_AREA + 3, 509, true)]),
        ];
        let mut at = RX_AREA + 512;
        for cut in [12, 13, 700, 4096] {
            heads.push(rig.rx.chain(&[(at, cut, true)]));
            at += u64::from(cut);
        }
        heads.iter().for_each(|&head| rig.rx.offer(head));
        rig.rx.kick();
        let frame = frame(length as u8, length);
        rig.host_sends(&frame);
        rig.wait_for(1, |metrics| metrics.rx_frames);
        rig.interrupt.wait(|_| rig.rx.used_index() > 0);
        assert_eq!(rig.rx.read(RX_AREA + 12, length), frame);
        let used = rig.rx.collect();
        let total: u32 = used.iter().map(|&(_, length)| length).sum();
        assert_eq!(total, HEADER + length as u32);
        let returned: Vec<u16> = used.iter().map(|&(head, _)| head).collect();
        assert_eq!(returned, heads[..used.len()]);
        assert_eq!(rig.rx.read(RX_AREA + 10, 2), [used.len() as u8, 0]);
    }
}

/// CVE-2020-16843: what comes while the guest has no buffers must not stop what comes after it has some.
#[test]
fn a_guest_without_buffers_waits_without_work_and_gets_its_frames_when_it_has_some() {
    for event_idx in [false, true] {
        for features in [0, MERGED] {
            let mut rig = Rig::with(features, config(), event_idx);
            rig.activate();
            // Until the socket takes no more, or for long enough.
            let message = |number| [&[0; 12][..], &frame(number, 100)].concat();
            let takes = |&number: &u8| rig.host_writes(&message(number)).is_ok();
            let sent = (0..200).take_while(takes).count() as u8;
            assert!(sent > 5, "{sent}");
            // The other direction works, and shows by its turns that the worker does not spin.
            rig.assert_sends();
            let before = rig.turns();
            rig.assert_sends();
            assert!(rig.turns() - before <= 2, "the worker spins");
            for number in 0..sent {
                let head = rig.offer_buffer(u64::from(number), 2048);
                rig.rx.kick();
                let used = rig.rx.wait(1);
                assert_eq!(used, [(head, HEADER + 100)]);
                assert_eq!(rig.contents(&used, 2048)[12..], frame(number, 100));
            }
            assert_eq!(rig.net.metrics().rx_dropped, 0);
            rig.assert_serves();
        }
    }
}

#[test]
fn a_large_frame_waits_for_buffers_that_the_guest_still_has() {
    let mut rig = Rig::new(MERGED);
    for index in 0..45 {
        rig.offer_buffer(index, 1536);
    }
    rig.activate();
    // Some of the buffers go: 42 are left, and 43 are needed.
    for _ in 0..3 {
        rig.host_sends(&frame(1, 60));
        rig.rx.wait(1);
    }
    rig.host_sends(&frame(2, 65_549));
    rig.assert_sends();
    assert_eq!(rig.net.metrics().rx_frames, 3);
    for index in 45..50 {
        rig.offer_buffer(index, 1536);
    }
    rig.rx.kick();
    let used = rig.rx.wait(43);
    assert_eq!(rig.contents(&used, 1536)[12..], frame(2, 65_549));
    assert_eq!(rig.net.metrics().rx_dropped, 0);
}

#[test]
fn a_frame_that_fits_no_buffers_is_dropped_and_the_next_one_comes() {
    for (features, buffers) in [(0, 1), (MERGED, 20)] {
        let mut rig = Rig::new(features);
        for index in 0..buffers {
            rig.offer_buffer(index, 1536);
        }
        rig.activate();
        // Exactly what there is room for, and a byte more.
        let room = buffers as usize * 1536 - 12;
        rig.host_sends(&frame(1, room + 1));
        rig.host_sends(&frame(2, room));
        let used = rig.rx.wait(buffers as u16);
        assert_eq!(rig.contents(&used, 1536)[12..], frame(2, room));
        let metrics = rig.net.metrics();
        assert_eq!((metrics.rx_frames, metrics.rx_dropped), (1, 1));
    }
}

#[test]
fn what_is_longer_than_the_mtu_comes_only_in_segments() {
    let mut config = config();
    config.mtu = Some(1000);
    let mut rig = Rig::with(MERGED | feature::MTU, config, true);
    for index in 0..45 {
        rig.offer_buffer(index, 1536);
    }
    rig.activate();
    // Too long; as long as may be, with a VLAN tag; long, but a TCP segment of many (VIRTIO_NET_HDR_GSO_TCPV4).
    rig.host_sends(&frame(1, 1019));
    rig.host_sends(&frame(2, 1018));
    let mut message = vec![0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend(frame(3, 30_000));
    rig.host_writes(&message).unwrap();
    let used = rig.rx.wait(21);
    assert_eq!(used[0].1, HEADER + 1018);
    assert_eq!(rig.contents(&used[1..], 1536)[12..], frame(3, 30_000));
    assert_eq!(rig.net.metrics().rx_dropped, 1);
    // A driver that does not know the MTU gets everything.
    let mut rig = Rig::started(MERGED);
    rig.offer_buffer(0, 1536);
    rig.rx.kick();
    rig.host_sends(&frame(1, 1500));
    assert_eq!(rig.rx.wait(1), [(0, 1512)]);
}

#[test]
fn messages_without_a_frame_are_dropped() {
    let mut rig = Rig::started(MERGED);
    rig.offer_buffer(0, 2048);
    rig.rx.kick();
    rig.host_writes(&[0; 5]).unwrap();
    rig.host_writes(&[0; 12]).unwrap();
    rig.host_sends(&[7]);
    assert_eq!(rig.rx.wait(1), [(0, 13)]);
    assert_eq!(rig.net.metrics().rx_dropped, 2);
}
