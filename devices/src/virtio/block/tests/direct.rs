//! O_DIRECT, and the bounce buffers it needs.

use super::super::bounce::BOUNCE_BYTES;
use super::*;

on_both_engines!(
    aligned_data_goes_straight_to_the_file,
    unaligned_data_is_bounced,
    a_request_longer_than_a_bounce_buffer_goes_in_steps,
    more_requests_than_bounce_buffers_all_end,
    requests_that_wait_for_a_bounce_buffer_end_before_suspend_returns,
    a_bounced_read_past_the_end_of_the_file_gives_an_error,
);

fn rig(engine: EngineKind) -> Rig {
    let mut setup = Setup::new(engine);
    setup.direct = true;
    setup.sectors = 16_384;
    let rig = setup.start();
    assert!(rig.block.backing.direct.is_some());
    rig
}

fn aligned_data_goes_straight_to_the_file(engine: EngineKind) {
    let mut rig = rig(engine);
    let at = BUFFER;
    assert!(at.is_multiple_of(4096));
    assert_eq!(rig.read(8, 8192), rig.on_disk(8, 8192));
    rig.write(16, &[9; 4096]);
    assert_eq!(rig.on_disk(16, 4096), [9; 4096]);
    assert_eq!(rig.request(kind::FLUSH, 0, &[]), (OK, 1));
}

fn unaligned_data_is_bounced(engine: EngineKind) {
    let mut rig = rig(engine);
    let parts = [
        (BUFFER + 1, 511, true),
        (BUFFER + 0x1003, 4096, true),
        (BUFFER + 0x3000, 3585, true),
    ];
    assert_eq!(rig.request(kind::IN, 80, &parts), (OK, 8193));
    let read: Vec<u8> = parts
        .iter()
        .flat_map(|&(at, length, _)| rig.driver.read(at, length as usize))
        .collect();
    assert_eq!(read, rig.on_disk(80, 8192));
    let parts = parts.map(|(at, length, _)| (at, length, false));
    assert_eq!(rig.request(kind::OUT, 400, &parts), (OK, 1));
    assert_eq!(rig.on_disk(400, 8192), read);
    assert_eq!(rig.on_disk(416, 512), pattern(416));
}

fn a_request_longer_than_a_bounce_buffer_goes_in_steps(engine: EngineKind) {
    let mut rig = rig(engine);
    let length = BOUNCE_BYTES as u32 * 3 + 4096;
    assert_eq!(
        rig.request(kind::IN, 8, &[(BUFFER + 2, length, true)]),
        (OK, length + 1)
    );
    let data = rig.driver.read(BUFFER + 2, length as usize);
    assert_eq!(data, rig.on_disk(8, length as usize));
    assert_eq!(
        rig.request(kind::OUT, 8000, &[(BUFFER + 2, length, false)]),
        (OK, 1)
    );
    assert_eq!(rig.on_disk(8000, length as usize), data);
    // In pieces that do not end where the steps do.
    let third = length / 3 + 77;
    let pieces = [
        (BUFFER + 3, third),
        (BUFFER + 0x4_0000, third),
        (BUFFER + 0x8_0001, length - 2 * third),
    ];
    let pieces = pieces.map(|(at, length)| (at, length, true));
    assert_eq!(rig.request(kind::IN, 8, &pieces), (OK, length + 1));
    let read: Vec<u8> = (pieces.iter())
        .flat_map(|&(at, length, _)| rig.driver.read(at, length as usize))
        .collect();
    assert_eq!(read, data);
}

/// 50 unaligned reads of 8 sectors each.
fn offer_many(rig: &mut Rig) {
    for i in 0..50 {
        let at = BUFFER + i * 0x2000;
        rig.driver.header(at, kind::IN, i * 8);
        let head = rig.driver.chain(&[
            (at, 16, false),
            (at + 17, 4096, true),
            (at + 0x1FFF, 1, true),
        ]);
        rig.driver.offer(head);
    }
}

fn assert_many(rig: &Rig) {
    for i in 0..50 {
        let at = BUFFER + i * 0x2000;
        assert_eq!(rig.driver.read(at + 0x1FFF, 1), [OK]);
        assert_eq!(rig.driver.read(at + 17, 4096), rig.on_disk(i * 8, 4096));
    }
}

fn more_requests_than_bounce_buffers_all_end(engine: EngineKind) {
    let mut rig = rig(engine);
    offer_many(&mut rig);
    rig.driver.kick();
    rig.driver.wait(50);
    assert_many(&rig);
}

fn requests_that_wait_for_a_bounce_buffer_end_before_suspend_returns(engine: EngineKind) {
    let mut rig = rig(engine);
    rig.driver.set_used_event(0);
    offer_many(&mut rig);
    rig.driver.kick();
    // One is back, so some or all have been taken.
    rig.driver.interrupt.wait(|told| !told.queues.is_empty());
    let queues = rig.block.suspend();
    assert_eq!(queues[0].queue.next_avail(), queues[0].queue.next_used());
    assert_eq!(queues[0].queue.next_used(), rig.driver.used_index());
    let rest = 50 - rig.driver.collect().len() as u16;
    rig.activate(rig.block.features(), queues).unwrap();
    if rest > 0 {
        rig.driver.wait(rest);
    }
    assert_many(&rig);
}

fn a_bounced_read_past_the_end_of_the_file_gives_an_error(engine: EngineKind) {
    let mut rig = rig(engine);
    rig.file.as_file().set_len(4096 * 3).unwrap();
    assert_eq!(
        rig.request(kind::IN, 16, &[(BUFFER + 1, 8192, true)]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.request(kind::IN, 80, &[(BUFFER + 1, 8192, true)]),
        (IOERR, 1)
    );
    assert_eq!(
        rig.request(kind::IN, 16, &[(BUFFER + 1, 4096, true)]),
        (OK, 4097)
    );
}
