//! Micro-benchmarks of the devices, without KVM: a driver in mock guest RAM, the device in its own worker thread.
//!
//! What is measured is what the device does from the driver's kick to its interrupt. What leads up to that and what
//! follows it, the driver's part, is not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod block;
mod limiter;
mod net;
mod queue;
mod vsock;

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

/// What is measured round by round.
trait Rounds {
    /// Before a round: what the driver and the host do.
    fn prepare(&mut self);

    /// The round.
    fn run(&mut self);

    /// After a round: that everything has happened, and in the `first` round that every byte is right.
    fn check(&mut self, first: bool);
}

/// Measures rounds of `what`, each of which does `amount`.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    amount: Throughput,
    mut what: impl Rounds,
) {
    group.throughput(amount);
    let mut first = true;
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let mut measured = Duration::ZERO;
            for _ in 0..count {
                what.prepare();
                let start = Instant::now();
                what.run();
                measured += start.elapsed();
                what.check(std::mem::take(&mut first));
            }
            measured
        });
    });
}

/// Bytes that differ from those of other seeds, and from one another's neighbours.
fn pattern(seed: usize, length: usize) -> Vec<u8> {
    let byte = |i: usize| i.wrapping_mul(31).wrapping_add(seed).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

criterion_group! {
    name = devices;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .sample_size(50);
    targets = queue::benchmark, block::benchmark, net::benchmark, vsock::benchmark, limiter::benchmark
}
criterion_main!(devices);
