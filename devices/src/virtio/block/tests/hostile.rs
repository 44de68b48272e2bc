//! What no driver should send.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

use super::*;

on_both_engines!(
    ranges_outside_the_drive_are_refused,
    data_that_is_no_whole_number_of_sectors_is_refused,
    a_read_only_drive_cannot_be_changed,
    data_in_the_wrong_direction_is_refused,
    a_chain_without_a_byte_for_the_status_is_returned_with_length_0,
    a_chain_without_a_whole_header_is_refused,
    a_chain_that_breaks_off_is_returned_with_length_0,
    a_chain_of_too_many_descriptors_is_returned_with_length_0,
    data_outside_ram_is_refused,
    malformed_discards_and_write_zeroes_are_refused,
    the_same_head_twice_at_once_harms_nobody,
    an_index_jump_stops_the_queue_until_reset,
    a_head_outside_the_queue_stops_the_queue_until_reset,
    a_file_that_became_shorter_gives_errors,
    malformed_requests_are_counted,
    a_queue_full_of_nonsense_is_returned_and_the_next_request_served,
);

fn ranges_outside_the_drive_are_refused(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    let before = rig.on_disk(0, 2048 * 512);
    for sector in [
        2047,
        2048,
        1 << 32,
        1 << 54,
        (1 << 55) - 1,
        1 << 55,
        u64::MAX - 1,
        u64::MAX,
    ] {
        for (kind, write) in [(kind::IN, true), (kind::OUT, false)] {
            let answer = rig.request(kind, sector, &[(BUFFER, 1024, write)]);
            assert_eq!(answer, (IOERR, 1), "sector {sector}");
        }
    }
    assert_eq!(rig.on_disk(0, 2048 * 512), before);
    assert_eq!(rig.file.as_file().metadata().unwrap().len(), 2048 * 512);
    rig.assert_serves();
}

fn data_that_is_no_whole_number_of_sectors_is_refused(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    for length in [1, 511, 513, 1023] {
        assert_eq!(
            rig.request(kind::IN, 0, &[(BUFFER, length, true)]),
            (IOERR, 1)
        );
        assert_eq!(
            rig.request(kind::OUT, 0, &[(BUFFER, length, false)]),
            (IOERR, 1)
        );
    }
    assert_eq!(rig.request(kind::IN, 0, &[]), (IOERR, 1));
    assert_eq!(rig.request(kind::OUT, 0, &[]), (IOERR, 1));
    assert_eq!(rig.on_disk(0, 512), pattern(0));
    rig.assert_serves();
}

fn a_read_only_drive_cannot_be_changed(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    setup.config.read_only = true;
    let mut rig = setup.start();
    let offered = rig.block.features();
    assert_ne!(offered & feature::RO, 0);
    assert_eq!(offered & (feature::DISCARD | feature::WRITE_ZEROES), 0);
    assert_eq!(
        rig.request(kind::OUT, 0, &[(BUFFER, 512, false)]),
        (IOERR, 1)
    );
    assert_eq!(rig.ranges(kind::DISCARD, &[range(0, 8, 0)]), (IOERR, 1));
    assert_eq!(
        rig.ranges(kind::WRITE_ZEROES, &[range(0, 8, 0)]),
        (IOERR, 1)
    );
    assert_eq!(rig.request(kind::FLUSH, 0, &[]), (OK, 1));
    assert_eq!(rig.on_disk(0, 512), pattern(0));
    rig.assert_serves();
}

fn data_in_the_wrong_direction_is_refused(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.write(BUFFER, &[NONE; 1024]);
    assert_eq!(
        rig.request(kind::IN, 0, &[(BUFFER, 512, false)]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.request(
            kind::IN,
            0,
            &[(BUFFER, 512, false), (BUFFER + 512, 512, true)]
        ),
        (IOERR, 1)
    );
    assert_eq!(
        rig.request(kind::OUT, 0, &[(BUFFER, 512, true)]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.request(
            kind::OUT,
            0,
            &[(BUFFER, 512, false), (BUFFER + 512, 512, true)]
        ),
        (IOERR, 1)
    );
    assert_eq!(
        rig.request(kind::GET_ID, 0, &[(BUFFER, 20, false)]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.request(kind::DISCARD, 0, &[(BUFFER, 16, true)]),
        (IOERR, 1)
    );
    // Writable before readable.
    rig.driver.header(HEADER, kind::IN, 0);
    let parts = [(BUFFER, 512, true), (HEADER, 16, false), (STATUS, 1, true)];
    assert_eq!(rig.send(&parts), (IOERR, 1));
    assert_eq!(rig.driver.read(BUFFER, 1024), [NONE; 1024]);
    assert_eq!(rig.on_disk(0, 512), pattern(0));
    rig.assert_serves();
}

fn a_chain_without_a_byte_for_the_status_is_returned_with_length_0(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.header(HEADER, kind::OUT, 0);
    let header = (HEADER, 16, false);
    let chains: &[&[Part]] = &[
        &[header],
        &[header, (BUFFER, 512, false)],
        &[header, (BUFFER, 512, false), (STATUS, 0, true)],
        &[header, (BUFFER, 512, false), (HOLE, 1, true)],
        &[header, (BUFFER, 512, false), (HOLE - 1, 2, true)],
        &[header, (BUFFER, 512, false), (u64::MAX, 1, true)],
        &[header, (BUFFER, 512, false), (u64::MAX, 2, true)],
        &[
            header,
            (BUFFER, 512, false),
            (u64::MAX - 7, u32::MAX - 600, true),
        ],
        &[(0, 0, false)],
    ];
    for (i, parts) in chains.iter().enumerate() {
        assert_eq!(rig.send(parts), (NONE, 0), "chain {i}");
    }
    assert_eq!(rig.on_disk(0, 512), pattern(0));
    assert_eq!(rig.block.metrics().malformed, chains.len() as u64);
    rig.assert_serves();
}

fn a_chain_without_a_whole_header_is_refused(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.header(HEADER, kind::FLUSH, 0);
    assert_eq!(rig.send(&[(STATUS, 1, true)]), (IOERR, 1));
    assert_eq!(
        rig.send(&[(HEADER, 15, false), (STATUS, 1, true)]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.send(&[
            (HEADER, 8, false),
            (HEADER + 8, 7, false),
            (STATUS, 1, true)
        ]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.send(&[(HOLE, 16, false), (STATUS, 1, true)]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.send(&[(HOLE - 8, 16, false), (STATUS, 1, true)]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.send(&[(u64::MAX - 3, 16, false), (STATUS, 1, true)]),
        (IOERR, 1)
    );
    rig.assert_serves();
}

fn a_chain_that_breaks_off_is_returned_with_length_0(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.header(HEADER, kind::IN, 0);
    let (next, write, indirect) = (VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_DESC_F_INDIRECT);
    // A cycle.
    let driver = &rig.driver;
    driver.descriptor(200, HEADER, 16, next, 201);
    driver.descriptor(201, BUFFER, 512, next | write, 202);
    driver.descriptor(202, STATUS, 1, next | write, 201);
    // To itself.
    driver.descriptor(203, STATUS, 1, next | write, 203);
    // Out of the table.
    driver.descriptor(204, HEADER, 16, next, 256);
    driver.descriptor(205, HEADER, 16, next, u16::MAX);
    // More than 2^32 bytes in all.
    driver.descriptor(206, HEADER, 16, next, 207);
    driver.descriptor(207, BUFFER, u32::MAX, next | write, 208);
    driver.descriptor(208, STATUS, 1, write, 0);
    // Indirect tables: outside RAM, of odd length, empty, at the end of the address space, with a table in it.
    driver.descriptor(209, HOLE, 64, indirect, 0);
    driver.descriptor(210, DATA + 0x8_0000, 63, indirect, 0);
    driver.descriptor(211, DATA + 0x8_0000, 0, indirect, 0);
    driver.descriptor(212, u64::MAX - 3, 64, indirect, 0);
    driver.descriptor(213, DATA + 0x8_0000, 16, indirect, 0);
    driver.descriptor(214, DATA + 0x8_0000, u32::MAX - 15, indirect, 0);
    let table = [DATA + 0x8_0000, 16 | (u64::from(indirect) << 32)];
    driver.write(DATA + 0x8_0000, &table.map(u64::to_le_bytes).concat());
    for head in [200, 203, 204, 205, 206, 209, 210, 211, 212, 213, 214] {
        assert_eq!(rig.finish(head), (NONE, 0), "head {head}");
    }
    assert_eq!(rig.block.metrics().malformed, 11);
    rig.assert_serves();
}

fn a_chain_of_too_many_descriptors_is_returned_with_length_0(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    for data in [255, 2000, 65_533] {
        rig.driver.header(HEADER, kind::IN, 0);
        let mut parts = vec![(HEADER, 16, false)];
        parts.extend((0..data).map(|_| (BUFFER, 512, true)));
        parts.push((STATUS, 1, true));
        let head = rig.driver.indirect_chain(DATA + 0x8_0000, &parts);
        assert_eq!(rig.finish(head), (NONE, 0), "{data} descriptors of data");
    }
    rig.assert_serves();
}

fn data_outside_ram_is_refused(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    let before = rig.on_disk(0, 4096);
    for at in [
        HOLE,
        HOLE - 512,
        HOLE - 1,
        1 << 40,
        u64::MAX - 511,
        u64::MAX - 512,
        u64::MAX,
    ] {
        let (read, write) = ((at, 1024, true), (at, 1024, false));
        assert_eq!(rig.request(kind::IN, 0, &[read]), (IOERR, 1), "{at:#x}");
        assert_eq!(rig.request(kind::OUT, 0, &[write]), (IOERR, 1), "{at:#x}");
        let answer = rig.request(
            kind::IN,
            0,
            &[(BUFFER, 512, true), read, (BUFFER, 512, true)],
        );
        assert_eq!(answer, (IOERR, 1), "{at:#x}");
        assert_eq!(
            rig.request(kind::DISCARD, 0, &[(at, 16, false)]).0,
            if at == HOLE - 512 { OK } else { IOERR }
        );
        assert_eq!(
            rig.request(kind::GET_ID, 0, &[(at, 20, true)]).0,
            if at == HOLE - 512 { OK } else { IOERR }
        );
        rig.driver.write(HOLE - 512, &range(2040, 8, 0));
    }
    assert_eq!(rig.on_disk(0, 4096), before);
    rig.assert_serves();
}

fn malformed_discards_and_write_zeroes_are_refused(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    let before = rig.on_disk(0, 2048 * 512);
    let good = range(0, 0, 0);
    for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
        for (sector, sectors) in [
            (0, 0),
            (0, 2049),
            (2048, 1),
            (2041, 8),
            (0, MAX_RANGE_SECTORS + 1),
            (0, u32::MAX),
            (1, u32::MAX),
            (u64::MAX, 1),
            (u64::MAX - 7, 8),
            (1 << 55, 8),
            ((1 << 55) - 8, 8),
        ] {
            assert_eq!(
                rig.ranges(kind, &[range(sector, sectors, 0)]),
                (IOERR, 1),
                "{sector} {sectors}"
            );
            // A good one before it is not carried out either.
            assert_eq!(
                rig.ranges(kind, &[range(0, 8, 0), range(sector, sectors, 0)]),
                (IOERR, 1)
            );
        }
        for flags in [2, 3, 4, 1 << 31, u32::MAX] {
            assert_eq!(
                rig.ranges(kind, &[range(0, 8, flags)]),
                (UNSUPP, 1),
                "flags {flags:#x}"
            );
        }
        for bytes in [0, 1, 15, 17, 31] {
            rig.driver.write(BUFFER, &range(0, 8, 0));
            assert_eq!(
                rig.request(kind, 0, &[(BUFFER, bytes, false)]),
                (IOERR, 1),
                "{bytes} bytes"
            );
        }
        assert_eq!(rig.ranges(kind, &[good; 33]), (IOERR, 1));
        assert_eq!(
            rig.request(kind, 0, &[(BUFFER, 0xFFFF_FFD0, false)]),
            (IOERR, 1)
        );
    }
    assert_eq!(rig.ranges(kind::DISCARD, &[range(0, 8, 1)]), (UNSUPP, 1));
    assert_eq!(rig.on_disk(0, 2048 * 512), before);
    assert_eq!(
        rig.ranges(kind::WRITE_ZEROES, &[range(0, 8, 1); 32]),
        (OK, 1)
    );
    rig.assert_serves();
}

fn the_same_head_twice_at_once_harms_nobody(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.header(HEADER, kind::IN, 8);
    let head = rig
        .driver
        .chain(&[(HEADER, 16, false), (BUFFER, 4096, true), (STATUS, 1, true)]);
    // Stopped, so that both are there when the worker looks.
    let queues = rig.block.suspend();
    rig.driver.offer(head);
    rig.driver.offer(head);
    rig.activate(rig.block.features(), queues).unwrap();
    let mut used = rig.driver.wait(2);
    used.sort_unstable();
    assert_eq!(used, [(head, 0), (head, 4097)]);
    assert_eq!(rig.driver.read(BUFFER, 4096), rig.on_disk(8, 4096));
    assert_eq!(rig.block.metrics().malformed, 1);
    rig.assert_serves();
}

fn revive(rig: &mut Rig) {
    rig.block.suspend();
    rig.block.reset();
    rig.driver = Driver::new(
        rig.driver.memory,
        &rig.driver.interrupt,
        0,
        QUEUE_SIZE,
        true,
    );
    let queues = vec![rig.driver.active()];
    rig.activate(rig.block.features(), queues).unwrap();
    rig.assert_serves();
}

fn an_index_jump_stops_the_queue_until_reset(engine: EngineKind) {
    for jump in [257, 300, 0x7FFF, 0xFFFF] {
        let mut rig = Rig::new(engine);
        rig.driver.set_avail_index(jump);
        rig.driver.kick();
        rig.driver.interrupt.wait(|told| told.needs_reset == 1);
        // It stays stopped, and does not tell again.
        rig.driver.set_avail_index(0);
        rig.driver.header(HEADER, kind::FLUSH, 0);
        let head = rig.driver.chain(&[(HEADER, 16, false), (STATUS, 1, true)]);
        rig.driver.offer(head);
        rig.driver.kick();
        rig.block.suspend();
        assert_eq!(rig.driver.used_index(), 0);
        assert_eq!(rig.driver.interrupt.told().needs_reset, 1);
        revive(&mut rig);
    }
}

fn a_head_outside_the_queue_stops_the_queue_until_reset(engine: EngineKind) {
    for head in [256, 1000, u16::MAX] {
        let mut rig = Rig::new(engine);
        rig.driver.offer(head);
        rig.driver.kick();
        rig.driver.interrupt.wait(|told| told.needs_reset == 1);
        revive(&mut rig);
    }
}

fn a_file_that_became_shorter_gives_errors(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.file.as_file().set_len(100 * 512).unwrap();
    assert_eq!(
        rig.request(kind::IN, 100, &[(BUFFER, 512, true)]),
        (IOERR, 1)
    );
    // Half of it is there.
    assert_eq!(
        rig.request(kind::IN, 99, &[(BUFFER, 1024, true)]),
        (IOERR, 1)
    );
    assert_eq!(rig.read(99, 512), pattern(99));
    let metrics = rig.block.metrics();
    assert_eq!((metrics.failed, metrics.malformed), (2, 0));
}

fn malformed_requests_are_counted(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    for count in 1..=20 {
        rig.request(kind::IN, u64::MAX, &[(BUFFER, 512, true)]);
        assert_eq!(rig.block.metrics().malformed, count);
    }
    assert_eq!(rig.block.metrics().completed, 0);
}

fn a_queue_full_of_nonsense_is_returned_and_the_next_request_served(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..40 {
        for at in 0..256 {
            let address = match random() % 4 {
                0 => random(),
                1 => HOLE - random() % 600,
                _ => DATA + random() % 0x10_0000,
            };
            let length = if random() % 3 == 0 {
                random() as u32
            } else {
                random() as u32 % 1025
            };
            rig.driver.descriptor(
                at,
                address,
                length,
                random() as u32 % 8,
                random() as u16 % 260,
            );
        }
        for _ in 0..256 {
            rig.driver.offer(random() as u16 % 256);
        }
        rig.driver.kick();
        rig.driver.wait(256);
        rig.assert_serves();
    }
    assert_eq!(rig.driver.interrupt.told().needs_reset, 0);
}
