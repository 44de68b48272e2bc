//! Requests that no driver should send.

use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_NEXT;

use super::*;
use crate::fakes::Random;
use crate::virtio::mock::HOLE;

/// The piece of RAM behind the hole, in pages.
const LAST: u32 = 0x300_0000 >> 12;

#[test]
fn numbers_of_pages_that_are_not_there_are_skipped_and_counted() {
    let mut rig = Rig::new(ALL);
    let hole = (HOLE / 4096) as u32;
    let outside = [hole, LAST - 1, LAST + 256, u32::MAX, 1 << 20];
    rig.inflate(&[&outside[..], &[hole - 1, LAST, LAST + 255]].concat());
    let (hole, last) = (u64::from(hole), u64::from(LAST));
    assert_eq!(rig.released(), [(hole - 1, 1), (last, 1), (last + 255, 1)]);
    assert_eq!(rig.metrics().malformed, 5);
    rig.assert_serves();
}

#[test]
fn malformed_requests_to_inflate_take_nothing() {
    let mut rig = Rig::new(ALL);
    let numbers: Vec<u8> = (0x200_u32..0x200 + 1025)
        .flat_map(u32::to_le_bytes)
        .collect();
    rig.drivers[INFLATE].write(DATA, &numbers);
    let chains: &[&[Part]] = &[
        &[(DATA, 4, true)],
        &[(DATA, 4, false), (DATA, 4, true)],
        &[(DATA, 0, false)],
        &[(DATA, 3, false)],
        &[(DATA, 7, false)],
        &[(DATA, 4100, false)],
        &[(DATA, 4096, false), (DATA, 4, false)],
        &[(DATA, u32::MAX, false)],
        &[(DATA, 0xFFFF_FFFC, false)],
        &[(HOLE, 4, false)],
        &[(DATA, 4, false), (HOLE - 4, 8, false)],
        &[(u64::MAX - 3, 8, false)],
    ];
    for (i, parts) in chains.iter().enumerate() {
        rig.request(INFLATE, parts);
        assert_eq!(rig.released(), [], "chain {i}");
        assert_eq!(rig.metrics().malformed, i as u64 + 1, "chain {i}");
    }
    rig.assert_serves();
}

#[test]
fn malformed_reports_take_nothing() {
    let mut rig = Rig::new(ALL);
    let good = (0x20_0000, 0x1000, true);
    let chains: &[&[Part]] = &[
        &[(0x20_0000, 0x1000, false)],
        &[(0x20_0000, 0x1000, false), good],
        &[(0x20_0001, 0x1000, true)],
        &[(0x20_0800, 0x800, true)],
        &[(0x20_0000, 0x1001, true)],
        &[(0x20_0000, 0, true)],
        &[good, (HOLE, 0x1000, true)],
        &[good, (HOLE - 0x1000, 0x2000, true)],
        &[(0, 0xFFFF_F000, true)],
        &[(u64::MAX - 0xFFF, 0x1000, true)],
        &[(u64::MAX << 12, 0xFFFF_F000, true)],
    ];
    for (i, parts) in chains.iter().enumerate() {
        rig.request(REPORTING, parts);
        assert_eq!(rig.released(), [], "chain {i}");
        assert_eq!(rig.metrics().malformed, i as u64 + 1, "chain {i}");
    }
    rig.request(REPORTING, &[good]);
    assert_eq!(rig.released(), [(0x200, 1)]);
}

#[test]
fn chains_that_cannot_be_followed_are_returned_on_every_queue() {
    let mut rig = Rig::new(ALL);
    for queue in [INFLATE, DEFLATE, STATISTICS, REPORTING] {
        let driver = &mut rig.drivers[queue];
        driver.descriptor(50, DATA, 16, VRING_DESC_F_NEXT, 51);
        driver.descriptor(51, DATA, 16, VRING_DESC_F_NEXT, 50);
        driver.descriptor(52, DATA, 16, VRING_DESC_F_NEXT, 64);
        assert_eq!(driver.run(50), 0);
        assert_eq!(driver.run(52), 0);
        let parts = vec![(DATA, 4, false); 65];
        let head = driver.indirect_chain(DATA + 0x1000, &parts);
        assert_eq!(driver.run(head), 0);
    }
    assert_eq!(rig.metrics().malformed, 4 * 3);
    assert_eq!(rig.released(), []);
    rig.assert_serves();
}

#[test]
fn an_untrustworthy_queue_rests_until_reset_and_the_others_do_not() {
    for queue in [INFLATE, DEFLATE, STATISTICS, REPORTING] {
        for break_it in [
            (|driver: &mut Driver| driver.set_avail_index(65)) as fn(&mut Driver),
            |driver| driver.set_avail_index(u16::MAX),
            |driver| driver.offer(64),
            |driver| driver.offer(u16::MAX),
        ] {
            let mut rig = Rig::new(ALL);
            break_it(&mut rig.drivers[queue]);
            rig.drivers[queue].kick();
            rig.interrupt().wait(|told| told.needs_reset == 1);
            rig.drivers[queue].kick();
            if queue == INFLATE {
                rig.request(REPORTING, &[(0x20_0000, 0x1000, true)]);
                assert_eq!(rig.released(), [(0x200, 1)]);
            } else {
                rig.assert_serves();
            }
            // Whoever wants statistics of a queue that rests gets what is known.
            rig.balloon.control().refresh(Box::new(drop));
            rig.balloon.suspend();
            rig.balloon.reset();
            assert_eq!(rig.interrupt().told().needs_reset, 1);
            rig.load_driver_again();
            rig.assert_serves();
        }
    }
}

#[test]
fn the_same_statistics_buffer_offered_for_ever_costs_nothing_but_turns() {
    let mut rig = Rig::new(ALL);
    let driver = &mut rig.drivers[STATISTICS];
    let head = driver.chain(&[(DATA, 10, false)]);
    driver.offer(head);
    for _ in 0..1000 {
        driver.offer(head);
        driver.kick();
        assert_eq!(driver.wait(1), [(head, 0)]);
    }
    rig.assert_serves();
}

#[test]
fn accesses_to_the_configuration_of_any_width_and_offset_do_no_harm() {
    let mut rig = Rig::new(ALL);
    rig.balloon.control().set_target(1);
    for offset in [0, 1, 3, 4, 7, 8, 100, 4095, u64::MAX] {
        for length in [1, 2, 3, 4, 8] {
            let mut data = vec![0xAA; length];
            rig.balloon.read_config(offset, &mut data);
            rig.balloon.write_config(offset, &data);
        }
    }
    let mut rest = [0xAA; 8];
    rig.balloon.read_config(6, &mut rest);
    assert_eq!(rest[2..], [0; 6]);
    // What the host wants is not the driver's to change.
    rig.balloon.write_config(0, &[0xFF; 8]);
    assert_eq!(rig.balloon.control().report().target_pages, 256);
    assert_eq!(rig.balloon.control().report().actual_pages, u32::MAX);
}

#[test]
fn noise_releases_nothing_but_ram_and_every_chain_comes_back() {
    let mut random = Random::new(19);
    let mut rig = Rig::new(ALL);
    for _ in 0..3000 {
        let queue = [INFLATE, DEFLATE, REPORTING][random.below(3) as usize];
        let mut noise = [0; 256];
        for bytes in noise.chunks_mut(8) {
            // Half of the numbers are near RAM.
            let mask = [u64::MAX, 0x0000_7FFF_0000_7FFF][random.below(2) as usize];
            bytes.copy_from_slice(&(random.next() & mask).to_le_bytes());
        }
        rig.drivers[queue].write(DATA, &noise);
        let part = |random: &mut Random| {
            let address = match random.below(4) {
                0 => random.next(),
                1 => random.below(0x400) << 16,
                _ => DATA,
            };
            let length = match random.below(4) {
                0 => random.next() as u32,
                1 => (random.below(0x100) as u32) << 12,
                _ => random.below(200) as u32,
            };
            (address, length, random.below(2) == 0)
        };
        let count = 1 + random.below(4);
        let parts: Vec<Part> = (0..count).map(|_| part(&mut random)).collect();
        // The notes check every range.
        rig.request(queue, &parts);
    }
    rig.released();
    rig.assert_serves();
}
