//! A request of 4 KiB asks for its tokens.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use fief_devices::limiter::{Limit, Limiter, Limits};

/// More than is asked for, which is 4 KiB each microsecond.
const ENOUGH: Limit = Limit {
    size: 8 << 20,
    one_time_burst: 0,
    refill_time: 1, // Millisecond.
};

/// Nothing is left after the first, for a day.
const SCARCE: Limit = Limit {
    size: 4096,
    one_time_burst: 0,
    refill_time: 86_400_000,
};

const MICROSECOND: Duration = Duration::from_micros(1);

pub fn benchmark(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("limiter");
    group.throughput(Throughput::Elements(1));
    let both = |limit| Limits {
        bandwidth: Some(limit),
        ops: Some(limit),
    };
    let bandwidth = |limit| Limits {
        bandwidth: Some(limit),
        ops: None,
    };
    for (name, limits, granted) in [
        ("no limit", Limits::default(), true),
        ("bytes", bandwidth(ENOUGH), true),
        ("bytes and requests", both(ENOUGH), true),
        ("refused", bandwidth(SCARCE), false),
    ] {
        let mut now = Instant::now();
        let mut limiter = Limiter::new(limits, now).unwrap();
        assert!(limiter.take(4096, now));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                now += MICROSECOND;
                assert_eq!(limiter.take(black_box(4096), now), granted);
            });
        });
    }
    group.finish();
}
