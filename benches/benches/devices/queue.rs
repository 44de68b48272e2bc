//! Chains are taken from the avail ring and put into the used ring, by nobody's device.

use std::sync::Arc;

use criterion::{Criterion, Throughput};
use fief_devices::virtio::mock::{DATA, Driver, Part, Taker, TestInterrupt, ram};

use crate::{Rounds, measure};

/// Chains a round.
const CHAINS: u16 = 32;

/// Bytes of a descriptor's buffer.
const BYTES: u32 = 512;

struct Queue {
    driver: Driver,
    taker: Taker,
    parts: Vec<Part>,
    /// The chains of a round are returned together.
    together: bool,
    heads: Vec<u16>,
    used: Vec<(u16, u32)>,
    taken_bytes: u64,
}

impl Queue {
    fn new(descriptors: u64, together: bool) -> Self {
        let interrupt = Arc::new(TestInterrupt::default());
        let driver = Driver::new(ram(), &interrupt, 0, 256, true);
        let part = |i| (DATA + i * u64::from(BYTES), BYTES, i > 0);
        Self {
            taker: Taker::new(&driver),
            driver,
            parts: (0..descriptors).map(part).collect(),
            together,
            heads: Vec::new(),
            used: Vec::new(),
            taken_bytes: 0,
        }
    }
}

impl Rounds for Queue {
    fn prepare(&mut self) {
        self.heads.clear();
        self.used.clear();
        for _ in 0..CHAINS {
            let head = self.driver.chain(&self.parts);
            self.driver.offer(head);
            self.heads.push(head);
        }
        self.taken_bytes = 0;
    }

    fn run(&mut self) {
        while let Some((head, bytes)) = self.taker.take() {
            self.taken_bytes += bytes;
            if self.together {
                self.used.push((head, BYTES));
            } else {
                self.taker.give_back(head, BYTES);
            }
        }
        self.taker.give_back_all(&self.used);
    }

    fn check(&mut self, _: bool) {
        let expected: Vec<_> = self.heads.iter().map(|&head| (head, BYTES)).collect();
        assert_eq!(self.driver.collect(), expected);
        let chain = self.parts.len() as u64 * u64::from(BYTES);
        assert_eq!(self.taken_bytes, u64::from(CHAINS) * chain);
    }
}

pub fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    let chains = || Throughput::Elements(u64::from(CHAINS));
    for (name, descriptors, together) in [
        ("chains of 1, returned one by one", 1, false),
        ("chains of 3, returned one by one", 3, false),
        ("chains of 1, 32 returned together", 1, true),
        ("chains of 3, 32 returned together", 3, true),
    ] {
        measure(
            &mut group,
            name,
            chains(),
            Queue::new(descriptors, together),
        );
    }
    group.finish();
}
