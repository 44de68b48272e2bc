//! Pause, reset, snapshot, another file, the end.

use super::*;

on_both_engines!(
    suspend_completes_what_was_taken_and_resume_serves_the_rest,
    suspend_without_activation_gives_no_queues,
    a_reset_device_serves_a_new_driver,
    state_round_trips,
    another_file_takes_the_place_of_the_first,
    another_file_that_cannot_be_a_drive_changes_nothing,
    dropping_the_device_leaves_no_thread,
);

fn suspend_completes_what_was_taken_and_resume_serves_the_rest(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    let mut done = 0;
    for round in 0..200_u64 {
        for i in 0..8 {
            let at = BUFFER + i * 0x1000;
            rig.driver.header(at, kind::OUT, (round * 8 + i) % 2048);
            rig.driver.write(at + 0x200, &[round as u8; 512]);
            let head = rig.driver.chain(&[
                (at, 16, false),
                (at + 0x200, 512, false),
                (at + 0xFFF, 1, true),
            ]);
            rig.driver.offer(head);
        }
        rig.driver.kick();
        let queues = rig.block.suspend();
        assert_eq!(queues.len(), 1);
        let queue = &queues[0].queue;
        assert_eq!(queue.next_avail(), queue.next_used());
        assert_eq!(queue.next_used(), rig.driver.used_index());
        done += rig.driver.collect().len() as u64;
        rig.activate(rig.block.features(), queues).unwrap();
        let rest = (round + 1) * 8 - done;
        if rest > 0 {
            done += rig.driver.wait(rest as u16).len() as u64;
        }
        for i in 0..8 {
            assert_eq!(rig.on_disk((round * 8 + i) % 2048, 512), [round as u8; 512]);
        }
    }
    assert_eq!(rig.block.metrics().completed, 1600);
}

fn suspend_without_activation_gives_no_queues(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    assert_eq!(rig.block.suspend().len(), 1);
    assert_eq!(rig.block.suspend().len(), 0);
    rig.block.reset();
    assert_eq!(rig.block.suspend().len(), 0);
}

fn a_reset_device_serves_a_new_driver(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    for _ in 0..20 {
        rig.assert_serves();
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
    }
    rig.assert_serves();
}

fn state_round_trips(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    setup.config.queues = 2;
    setup.config.writeback = false;
    let mut rig = setup.start();
    rig.assert_serves();
    let queues = rig.block.suspend();
    let DeviceState::Block(state) = rig.block.state() else {
        panic!("not the state of a drive");
    };
    let other = if engine == EngineKind::Sync {
        EngineKind::IoUring
    } else {
        EngineKind::Sync
    };
    let restored = Block::from_state(state.clone(), open(&rig.file, false, false), other).unwrap();
    assert_eq!(restored.state(), DeviceState::Block(state.clone()));
    assert_eq!(restored.features(), rig.block.features());
    assert_eq!(restored.queue_sizes(), rig.block.queue_sizes());
    let (mut old, mut new) = ([0; 64], [0; 64]);
    rig.block.read_config(0, &mut old);
    restored.read_config(0, &mut new);
    assert_eq!(old, new);
    rig.block = restored;
    rig.activate(rig.block.features(), queues).unwrap();
    rig.assert_serves();

    let error = Block::from_state(state.clone(), open(&patterned(2047), false, false), engine)
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            BlockError::Resized {
                expected: 2048,
                found: 2047,
                ..
            }
        ),
        "{error}"
    );
    let mut bad = state;
    bad.geometry.queues = 0;
    let error = Block::from_state(bad, open(&rig.file, false, false), engine)
        .err()
        .unwrap();
    assert!(matches!(error, BlockError::Queues { queues: 0 }), "{error}");
}

fn another_file_takes_the_place_of_the_first(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.assert_serves();
    let other = NamedTempFile::new().unwrap();
    other
        .as_file()
        .write_all_at(&[0x42; 4096 * 512], 0)
        .unwrap();
    rig.block.replace_file(open(&other, false, false)).unwrap();
    let mut capacity = [0; 8];
    rig.block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 4096);
    assert_eq!(rig.read(4095, 512), [0x42; 512]);
    // A smaller one.
    let small = patterned(16);
    rig.block.replace_file(open(&small, false, false)).unwrap();
    assert_eq!(
        rig.request(kind::IN, 16, &[(BUFFER, 512, true)]),
        (IOERR, 1)
    );
    assert_eq!(rig.read(15, 512), pattern(15));
    // While it is not active.
    let queues = rig.block.suspend();
    rig.block.replace_file(open(&other, false, false)).unwrap();
    rig.activate(rig.block.features(), queues).unwrap();
    assert_eq!(rig.read(4095, 512), [0x42; 512]);
}

fn another_file_that_cannot_be_a_drive_changes_nothing(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    let empty = NamedTempFile::new().unwrap();
    assert!(rig.block.replace_file(open(&empty, false, false)).is_err());
    assert!(
        rig.block
            .replace_file(open(&patterned(8), true, false))
            .is_err()
    );
    rig.assert_serves();
}

fn dropping_the_device_leaves_no_thread(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    // Thread names are 15 bytes.
    setup.config.id = format!(
        "drop-{}",
        if engine == EngineKind::Sync { "s" } else { "u" }
    );
    let name = format!("blk0-{}", setup.config.id);
    let mut rig = setup.start();
    rig.assert_serves();
    assert_eq!(threads(&name), 1);
    let Rig { block, .. } = rig;
    drop(block);
    assert_eq!(threads(&name), 0);
}

fn threads(name: &str) -> usize {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|comm| comm.trim_end() == name)
        .count()
}
