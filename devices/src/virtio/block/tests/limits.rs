//! Rate limits. A bucket that takes five hundred million years to fill stands for a clock that does not go on.

use super::*;
use crate::limiter::{Limit, Limits as RateLimits};

on_both_engines!(
    requests_beyond_the_limit_wait_in_the_ring,
    bytes_are_counted_of_reads_and_writes_only,
    other_limits_count_at_once,
    tokens_that_come_serve_who_waits,
    all_queues_of_a_drive_share_its_limit,
    the_state_keeps_the_limits,
);

/// So much, and practically never any more.
fn once(size: u64) -> Option<Limit> {
    Some(Limit {
        size,
        one_time_burst: 0,
        refill_time: u64::MAX,
    })
}

fn ops(size: u64) -> RateLimits {
    RateLimits {
        bandwidth: None,
        ops: once(size),
    }
}

fn limited(engine: EngineKind, limits: RateLimits) -> Rig {
    let mut setup = Setup::new(engine);
    setup.config.limits = limits;
    setup.start()
}

impl Rig {
    /// Offers a request of `length` bytes without waiting for it.
    fn offer(&mut self, kind: u32, slot: u64, length: u32) -> u16 {
        let at = BUFFER + slot * 0x1000;
        self.driver.header(at, kind, slot);
        self.driver.write(at + 0xFFF, &[NONE]);
        let mut parts = vec![(at, 16, false)];
        if length > 0 {
            parts.push((at + 0x200, length, kind == kind::IN));
        }
        parts.push((at + 0xFFF, 1, true));
        let head = self.driver.chain(&parts);
        self.driver.offer(head);
        head
    }

    /// The number of requests that the device has taken out of the ring so far, and its queues.
    fn stop(&mut self) -> (u16, Vec<ActiveQueue>) {
        let queues = self.block.suspend();
        (queues[0].queue.next_avail(), queues)
    }
}

fn requests_beyond_the_limit_wait_in_the_ring(engine: EngineKind) {
    let mut rig = limited(engine, ops(3));
    for slot in 0..8 {
        rig.offer(kind::IN, slot, 512);
    }
    rig.driver.kick();
    rig.driver.wait(3);
    let (taken, queues) = rig.stop();
    assert_eq!((taken, rig.driver.used_index()), (3, 3));
    // What was spent stays spent over a pause; another kick changes nothing.
    rig.activate(rig.block.features(), queues).unwrap();
    rig.driver.kick();
    let (taken, _) = rig.stop();
    assert_eq!((taken, rig.driver.used_index()), (3, 3));
    // A reset does not fill it either.
    rig.block.reset();
    let (memory, interrupt) = (rig.driver.memory, rig.driver.interrupt.clone());
    rig.driver = Driver::new(memory, &interrupt, 0, QUEUE_SIZE, true);
    rig.driver.start_at(0);
    let queues = vec![rig.driver.active()];
    rig.activate(rig.block.features(), queues).unwrap();
    rig.offer(kind::IN, 0, 512);
    rig.driver.kick();
    assert_eq!(rig.stop().0, 0);
}

fn bytes_are_counted_of_reads_and_writes_only(engine: EngineKind) {
    let limits = RateLimits {
        bandwidth: once(1024),
        ops: None,
    };
    let mut rig = limited(engine, limits);
    // Refused, so free.
    assert_eq!(
        rig.request(kind::IN, 1 << 40, &[(BUFFER, 512, true)]).0,
        IOERR
    );
    assert_eq!(rig.request(kind::FLUSH, 0, &[]).0, OK);
    assert_eq!(rig.read(0, 512), pattern(0));
    rig.write(1, &[7; 512]);
    assert_eq!(rig.request(kind::FLUSH, 0, &[]).0, OK);
    rig.offer(kind::IN, 0, 512);
    rig.driver.kick();
    assert_eq!(rig.stop().0, 5);
}

fn other_limits_count_at_once(engine: EngineKind) {
    let mut rig = limited(engine, ops(2));
    for slot in 0..8 {
        rig.offer(kind::IN, slot, 512);
    }
    rig.driver.kick();
    rig.driver.wait(2);
    // What was spent of the first two is missing.
    rig.block.set_limits(ops(5)).unwrap();
    rig.driver.wait(3);
    rig.block.set_limits(RateLimits::default()).unwrap();
    rig.driver.wait(3);
    rig.assert_serves();
    // The first limit of a drive that had none, and while it is paused.
    let mut rig = Rig::new(engine);
    rig.assert_serves();
    rig.block.set_limits(ops(1)).unwrap();
    rig.assert_serves();
    rig.offer(kind::IN, 0, 512);
    rig.driver.kick();
    let (taken, queues) = rig.stop();
    assert_eq!(taken, 2);
    rig.block.set_limits(ops(2)).unwrap();
    rig.activate(rig.block.features(), queues).unwrap();
    rig.driver.wait(1);
}

fn tokens_that_come_serve_who_waits(engine: EngineKind) {
    let limits = RateLimits {
        bandwidth: None,
        ops: Some(Limit {
            size: 1,
            one_time_burst: 0,
            refill_time: 1,
        }),
    };
    let mut rig = limited(engine, limits);
    let heads: Vec<u16> = (0..20).map(|slot| rig.offer(kind::IN, slot, 512)).collect();
    rig.driver.kick();
    let mut used: Vec<u16> = rig.driver.wait(20).iter().map(|entry| entry.0).collect();
    used.sort_unstable();
    assert_eq!(used, heads);
}

fn all_queues_of_a_drive_share_its_limit(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    setup.config.queues = 2;
    setup.config.limits = ops(3);
    let mut rig = setup.start();
    rig.block.suspend();
    let (memory, interrupt) = (rig.driver.memory, rig.driver.interrupt.clone());
    // Without EVENT_IDX each turn of a worker is told.
    let mut drivers = [0, 1].map(|index| Driver::new(memory, &interrupt, index, QUEUE_SIZE, false));
    let queues = drivers.iter().map(Driver::active).collect();
    rig.activate(rig.block.features(), queues).unwrap();
    for (index, driver) in (0..).zip(&mut drivers) {
        for slot in 0..4_u64 {
            let at = BUFFER + (index * 4 + slot) * 0x1000;
            driver.header(at, kind::IN, slot);
            let parts = [
                (at, 16, false),
                (at + 0x200, 512, true),
                (at + 0xFFF, 1, true),
            ];
            let head = driver.chain(&parts);
            driver.offer(head);
        }
        driver.kick();
    }
    let done = || drivers.iter().map(Driver::used_index).sum::<u16>();
    interrupt.wait(|_| done() == 3);
    let queues = rig.block.suspend();
    let taken = queues.iter().map(|queue| queue.queue.next_avail());
    assert_eq!((taken.sum::<u16>(), done()), (3, 3));
    rig.activate(rig.block.features(), queues).unwrap();
    rig.block.set_limits(RateLimits::default()).unwrap();
    interrupt.wait(|_| done() == 8);
}

fn the_state_keeps_the_limits(engine: EngineKind) {
    let mut rig = limited(engine, ops(3));
    rig.assert_serves();
    let queues = rig.block.suspend();
    let DeviceState::Block(state) = rig.block.state() else {
        panic!("not the state of a drive");
    };
    assert_eq!(state.limits, ops(3));
    rig.block = Block::from_state(state, open(&rig.file, false, false), engine).unwrap();
    rig.activate(rig.block.features(), queues).unwrap();
    for slot in 0..5 {
        rig.offer(kind::IN, slot, 512);
    }
    rig.driver.kick();
    rig.driver.wait(3);
    assert_eq!(rig.stop().0, 4, "one before, three of a full bucket");
}
