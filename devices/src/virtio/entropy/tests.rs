use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::*;
use crate::limiter::Limit;
use crate::virtio::mock::{DATA, Driver, HOLE, Part, SEAM, TestInterrupt, ram};
use crate::worker::ThreadKind;

struct Rig {
    entropy: Entropy,
    driver: Driver,
}

impl Rig {
    fn new(event_idx: bool) -> Self {
        Self::limited(event_idx, Limits::default())
    }

    fn limited(event_idx: bool, limits: Limits) -> Self {
        let worker = SharedWorker::spawn(ThreadKind::Slow, "test").unwrap();
        let driver = Driver::new(
            ram(),
            &Arc::new(TestInterrupt::default()),
            0,
            QUEUE_SIZE,
            event_idx,
        );
        let mut rig = Self {
            entropy: Entropy::new(worker, limits).unwrap(),
            driver,
        };
        let queues = vec![rig.driver.active()];
        rig.activate(queues).unwrap();
        rig
    }

    fn activate(&mut self, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        self.entropy.activate(Activation {
            memory: self.driver.memory.clone(),
            features: 0,
            queues,
            interrupt: self.driver.interrupt.clone(),
        })
    }

    fn request(&mut self, parts: &[Part]) -> u32 {
        let head = self.driver.chain(parts);
        self.driver.run(head)
    }

    fn assert_serves(&mut self) {
        self.driver.write(DATA, &[0; 32]);
        assert_eq!(self.request(&[(DATA, 32, true)]), 32);
        // Wrong once in 2^256 times.
        assert_ne!(self.driver.read(DATA, 32), [0; 32]);
    }
}

#[test]
fn a_buffer_is_filled_and_nothing_around_it() {
    for event_idx in [false, true] {
        let mut rig = Rig::new(event_idx);
        rig.driver.write(DATA, &[0; 4096]);
        assert_eq!(
            rig.request(&[(DATA + 512, 1000, true), (DATA + 2048, 500, true)]),
            1500
        );
        let bytes = rig.driver.read(DATA, 4096);
        assert!(bytes[..512].iter().all(|&byte| byte == 0));
        assert!(bytes[1512..2048].iter().all(|&byte| byte == 0));
        assert!(bytes[2548..].iter().all(|&byte| byte == 0));
        // A byte is zero once in 256 times: 1500 bytes with more than 100 zeroes do not happen.
        let zeroes = bytes[512..1512]
            .iter()
            .chain(&bytes[2048..2548])
            .filter(|&&byte| byte == 0)
            .count();
        assert!(zeroes < 100, "{zeroes}");
        assert_eq!(
            rig.entropy.metrics(),
            EntropyMetrics {
                bytes: 1500,
                malformed: 0
            }
        );
    }
}

#[test]
fn two_requests_get_different_bytes() {
    let mut rig = Rig::new(true);
    assert_eq!(rig.request(&[(DATA, 64, true)]), 64);
    assert_eq!(rig.request(&[(DATA + 64, 64, true)]), 64);
    assert_ne!(rig.driver.read(DATA, 64), rig.driver.read(DATA + 64, 64));
}

#[test]
fn a_request_gets_at_most_64_kib() {
    let mut rig = Rig::new(true);
    for parts in [
        &[(DATA, 65_537, true)][..],
        &[(DATA, 0xE0_0000, true)],
        &[(DATA, 40_000, true), (DATA + 40_000, 40_000, true)],
        &[(DATA, 65_536, true), (DATA + 65_536, 1, true)],
        &[(DATA, 65_535, true), (DATA + 65_535, 2, true)],
    ] {
        rig.driver.write(DATA, &[0; 0x2_0000]);
        assert_eq!(rig.request(parts), 65_536);
        assert_ne!(rig.driver.read(DATA + 65_504, 32), [0; 32]);
        assert_eq!(rig.driver.read(DATA + 65_536, 0x1_0000), [0; 0x1_0000]);
    }
}

#[test]
fn a_buffer_may_cross_from_one_region_of_ram_into_the_next() {
    let mut rig = Rig::new(true);
    rig.driver.write(SEAM - 32, &[0; 64]);
    assert_eq!(rig.request(&[(SEAM - 32, 64, true)]), 64);
    assert_ne!(rig.driver.read(SEAM - 32, 32), [0; 32]);
    assert_ne!(rig.driver.read(SEAM, 32), [0; 32]);
}

#[test]
fn malformed_requests_are_returned_with_length_0_and_counted() {
    let mut rig = Rig::new(true);
    rig.driver.write(DATA, &[0; 64]);
    let chains: &[&[Part]] = &[
        &[(DATA, 64, false)],
        &[(DATA, 16, false), (DATA, 64, true)],
        &[(DATA, 64, true), (DATA, 16, false)],
        &[(DATA, 0, true)],
        &[(HOLE, 64, true)],
        &[(DATA, 64, true), (HOLE - 8, 64, true)],
        &[(u64::MAX - 3, 64, true)],
        &[(DATA, u32::MAX, true)],
    ];
    for (i, parts) in chains.iter().enumerate() {
        assert_eq!(rig.request(parts), 0, "chain {i}");
        assert_eq!(rig.entropy.metrics().malformed, i as u64 + 1);
    }
    // A cycle, and a next descriptor outside the table.
    let flags = VRING_DESC_F_NEXT | VRING_DESC_F_WRITE;
    rig.driver.descriptor(50, DATA, 16, flags, 51);
    rig.driver.descriptor(51, DATA, 16, flags, 50);
    rig.driver.descriptor(52, DATA, 16, flags, 64);
    assert_eq!(rig.driver.run(50), 0);
    assert_eq!(rig.driver.run(52), 0);
    // More descriptors than the queue has.
    let parts = vec![(DATA, 1, true); 65];
    let head = rig.driver.indirect_chain(DATA + 0x1000, &parts);
    assert_eq!(rig.driver.run(head), 0);
    assert_eq!(rig.driver.read(DATA, 64), [0; 64]);
    assert_eq!(
        rig.entropy.metrics(),
        EntropyMetrics {
            bytes: 0,
            malformed: chains.len() as u64 + 3
        }
    );
    rig.assert_serves();
}

#[test]
fn a_full_queue_is_served_in_several_turns() {
    let mut rig = Rig::new(true);
    for i in 0..64 {
        let head = rig.driver.chain(&[(DATA + i * 1024, 1024, true)]);
        rig.driver.offer(head);
    }
    rig.driver.kick();
    let used = rig.driver.wait(64);
    let expected: Vec<_> = (0..64).map(|head| (head, 1024)).collect();
    assert_eq!(used, expected);
}

#[test]
fn an_untrustworthy_queue_stops_until_reset_and_its_neighbour_does_not() {
    for break_it in [
        (|driver: &mut Driver| driver.set_avail_index(65)) as fn(&mut Driver),
        |driver| driver.set_avail_index(u16::MAX),
        |driver| driver.offer(64),
        |driver| driver.offer(u16::MAX),
    ] {
        let mut rig = Rig::new(true);
        let mut neighbour = Rig {
            entropy: Entropy::new(rig.entropy.worker.clone(), Limits::default()).unwrap(),
            driver: Driver::new(
                ram(),
                &Arc::new(TestInterrupt::default()),
                0,
                QUEUE_SIZE,
                true,
            ),
        };
        let queues = vec![neighbour.driver.active()];
        neighbour.activate(queues).unwrap();
        break_it(&mut rig.driver);
        rig.driver.kick();
        rig.driver.interrupt.wait(|told| told.needs_reset == 1);
        rig.driver.kick();
        neighbour.assert_serves();
        rig.entropy.suspend();
        rig.entropy.reset();
        assert_eq!(rig.driver.interrupt.told().needs_reset, 1);
        rig.driver = Driver::new(
            rig.driver.memory,
            &rig.driver.interrupt,
            0,
            QUEUE_SIZE,
            true,
        );
        let queues = vec![rig.driver.active()];
        rig.activate(queues).unwrap();
        rig.assert_serves();
    }
}

#[test]
fn suspend_gives_the_queue_back_and_activate_goes_on_with_it() {
    let mut rig = Rig::new(true);
    rig.assert_serves();
    let queues = rig.entropy.suspend();
    assert_eq!(queues[0].queue.next_avail(), 1);
    assert_eq!(queues[0].queue.next_used(), 1);
    assert_eq!(rig.entropy.suspend().len(), 0);
    // Offered while nobody looks; no kick afterwards.
    let head = rig.driver.chain(&[(DATA, 8, true)]);
    rig.driver.offer(head);
    rig.activate(queues).unwrap();
    assert_eq!(rig.driver.wait(1), [(head, 8)]);
}

/// So many bytes, and practically never any more.
fn bytes(size: u64) -> Limits {
    Limits {
        bandwidth: Some(Limit {
            size,
            one_time_burst: 0,
            refill_time: u64::MAX,
        }),
        ops: None,
    }
}

#[test]
fn a_request_beyond_the_limit_waits_in_the_ring() {
    for event_idx in [false, true] {
        let mut rig = Rig::limited(event_idx, bytes(100));
        let heads: Vec<_> = (0..5)
            .map(|i| rig.driver.chain(&[(DATA + 64 * i, 40, true)]))
            .collect();
        heads.iter().for_each(|&head| rig.driver.offer(head));
        rig.driver.kick();
        assert_eq!(rig.driver.wait(2), [(heads[0], 40), (heads[1], 40)]);
        let queues = rig.entropy.suspend();
        assert_eq!(queues[0].queue.next_avail(), 2);
        // What was spent stays spent over a pause; another kick changes nothing.
        rig.activate(queues).unwrap();
        rig.driver.kick();
        let queues = rig.entropy.suspend();
        assert_eq!(rig.driver.used_index(), 2);
        // A restored device begins with a full bucket.
        let DeviceState::Entropy(state) = rig.entropy.state() else {
            panic!("not the state of virtio-rng");
        };
        rig.entropy = Entropy::from_state(&state, rig.entropy.worker.clone()).unwrap();
        assert_eq!(rig.entropy.state(), DeviceState::Entropy(state));
        rig.activate(queues).unwrap();
        assert_eq!(rig.driver.wait(2), [(heads[2], 40), (heads[3], 40)]);
        assert_eq!(rig.entropy.suspend()[0].queue.next_avail(), 4);
    }
}

#[test]
fn tokens_that_come_serve_who_waits() {
    let quick = Limit {
        size: 1,
        one_time_burst: 0,
        refill_time: 1,
    };
    let limits = Limits {
        bandwidth: None,
        ops: Some(quick),
    };
    let mut rig = Rig::limited(true, limits);
    let heads: Vec<_> = (0..20)
        .map(|i| rig.driver.chain(&[(DATA + 64 * i, 8, true)]))
        .collect();
    heads.iter().for_each(|&head| rig.driver.offer(head));
    rig.driver.kick();
    let used = rig.driver.wait(20);
    assert_eq!(
        used,
        heads.iter().map(|&head| (head, 8)).collect::<Vec<_>>()
    );
}

#[test]
fn state_round_trips() {
    let mut rig = Rig::new(true);
    let queues = rig.entropy.suspend();
    let DeviceState::Entropy(state) = rig.entropy.state() else {
        panic!("not the state of virtio-rng");
    };
    rig.entropy = Entropy::from_state(&state, rig.entropy.worker.clone()).unwrap();
    assert_eq!(rig.entropy.state(), DeviceState::Entropy(state));
    rig.activate(queues).unwrap();
    rig.assert_serves();
}

#[test]
fn a_driver_without_a_queue_is_refused() {
    let mut rig = Rig::new(true);
    rig.entropy.suspend();
    let error = rig.activate(Vec::new()).unwrap_err();
    assert!(matches!(
        error,
        ActivateError::MissingQueue { got: 0, missing: 0 }
    ));
}
