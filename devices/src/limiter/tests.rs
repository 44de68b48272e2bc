use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// 1000 tokens a second.
const LIMIT: Limit = Limit {
    size: 1000,
    one_time_burst: 0,
    refill_time: 1000,
};

fn bytes(limit: Limit) -> Limits {
    Limits {
        bandwidth: Some(limit),
        ops: None,
    }
}

fn ops(limit: Limit) -> Limits {
    Limits {
        bandwidth: None,
        ops: Some(limit),
    }
}

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Spends if there are tokens; else says how long there are none.
fn take(buckets: &mut Buckets, bytes: u64, now: Instant) -> Result<(), Duration> {
    match buckets.wait(bytes, now) {
        Some(at) => Err(at - now),
        None => {
            buckets.spend(bytes, now);
            Ok(())
        }
    }
}

#[test]
fn a_full_bucket_is_spent_at_once_and_comes_back_at_its_rate() {
    let start = Instant::now();
    let mut buckets = Buckets::new(bytes(LIMIT), start);
    assert_eq!(take(&mut buckets, 600, start), Ok(()));
    assert_eq!(take(&mut buckets, 500, start), Err(milliseconds(100)));
    assert_eq!(take(&mut buckets, 400, start), Ok(()));
    assert_eq!(take(&mut buckets, 1, start), Err(milliseconds(1)));
    let later = start + milliseconds(250);
    assert_eq!(take(&mut buckets, 250, later), Ok(()));
    assert_eq!(take(&mut buckets, 1, later), Err(milliseconds(1)));
    // It never holds more than its size.
    let later = later + 100 * SECOND;
    assert_eq!(take(&mut buckets, 1000, later), Ok(()));
    assert_eq!(take(&mut buckets, 1, later), Err(milliseconds(1)));
}

#[test]
fn operations_have_a_bucket_of_their_own() {
    let start = Instant::now();
    let two = Limit { size: 2, ..LIMIT };
    let limits = Limits {
        ops: Some(two),
        ..bytes(LIMIT)
    };
    let mut buckets = Buckets::new(limits, start);
    assert_eq!(take(&mut buckets, 1, start), Ok(()));
    assert_eq!(take(&mut buckets, 0, start), Ok(()));
    assert_eq!(take(&mut buckets, 1, start), Err(milliseconds(500)));
    // What one bucket refuses costs nothing in the other.
    let later = start + milliseconds(500);
    assert_eq!(take(&mut buckets, 1000, later), Ok(()));
    let later = start + SECOND;
    assert_eq!(take(&mut buckets, 1000, later), Err(milliseconds(500)));
    assert_eq!(take(&mut buckets, 500, later), Ok(()));
}

#[test]
fn the_one_time_burst_is_spent_first_and_never_comes_back() {
    let start = Instant::now();
    let limit = Limit {
        one_time_burst: 5000,
        ..LIMIT
    };
    let mut buckets = Buckets::new(bytes(limit), start);
    assert_eq!(take(&mut buckets, 4000, start), Ok(()));
    assert_eq!(take(&mut buckets, 1500, start), Ok(()));
    assert_eq!(take(&mut buckets, 501, start), Err(milliseconds(1)));
    let later = start + 100 * SECOND;
    assert_eq!(take(&mut buckets, 1000, later), Ok(()));
    assert_eq!(take(&mut buckets, 1, later), Err(milliseconds(1)));
}

#[test]
fn what_is_larger_than_the_bucket_waits_for_a_full_one_and_is_paid_for_afterwards() {
    let start = Instant::now();
    let mut buckets = Buckets::new(bytes(LIMIT), start);
    assert_eq!(take(&mut buckets, 1, start), Ok(()));
    assert_eq!(take(&mut buckets, 5000, start), Err(milliseconds(1)));
    let later = start + milliseconds(1);
    assert_eq!(take(&mut buckets, 5000, later), Ok(()));
    assert_eq!(take(&mut buckets, 1, later), Err(milliseconds(4001)));
    assert_eq!(take(&mut buckets, 0, later), Err(4 * SECOND));
    assert_eq!(take(&mut buckets, 5000, later + 4 * SECOND), Err(SECOND));
    assert_eq!(take(&mut buckets, 5000, later + 5 * SECOND), Ok(()));
}

#[test]
fn an_operation_whose_size_shows_afterwards_begins_when_there_is_no_debt() {
    let start = Instant::now();
    let mut buckets = Buckets::new(bytes(LIMIT), start);
    assert_eq!(buckets.wait(0, start), None);
    buckets.spend(1000, start);
    assert_eq!(buckets.wait(0, start), None);
    buckets.spend(1, start);
    assert_eq!(buckets.wait(0, start), Some(start + milliseconds(1)));
}

#[test]
fn the_rate_is_exact_however_often_it_is_asked() {
    // 7 tokens in 3 ms: neither divides the other, nor the steps of the clock.
    let limit = Limit {
        size: 7,
        one_time_burst: 0,
        refill_time: 3,
    };
    let start = Instant::now();
    let mut buckets = Buckets::new(ops(limit), start);
    let mut taken = 0;
    for step in 0..=1_000_000 {
        if take(&mut buckets, 0, start + Duration::from_nanos(step * 301)).is_ok() {
            taken += 1;
        }
    }
    assert_eq!(taken, 7 + 301_000_000 * 7 / 3_000_000);
}

#[test]
fn a_limit_of_zero_is_none() {
    let start = Instant::now();
    let zero_size = Limit { size: 0, ..LIMIT };
    let zero_time = Limit {
        refill_time: 0,
        ..LIMIT
    };
    for limit in [zero_size, zero_time] {
        let mut buckets = Buckets::new(bytes(limit), start);
        assert!(!buckets.limits());
        assert_eq!(take(&mut buckets, u64::MAX, start), Ok(()));
        assert_eq!(take(&mut buckets, u64::MAX, start), Ok(()));
    }
}

#[test]
fn numbers_of_any_size_and_a_clock_that_goes_back_do_no_harm() {
    let start = Instant::now() + SECOND;
    let huge = Limit {
        size: u64::MAX,
        one_time_burst: u64::MAX,
        refill_time: u64::MAX,
    };
    for limit in [huge, Limit { size: 1, ..huge }] {
        let mut buckets = Buckets::new(bytes(limit), start);
        for bytes in [u64::MAX, u64::MAX, 0, 1, u64::MAX] {
            buckets.spend(bytes, start);
        }
        assert!(buckets.wait(u64::MAX, start).unwrap() > start);
        assert!(buckets.wait(1, start - SECOND).is_some());
    }
    let slow = Limit {
        size: 1,
        one_time_burst: 0,
        refill_time: u64::MAX,
    };
    let mut buckets = Buckets::new(ops(slow), start);
    assert_eq!(take(&mut buckets, 0, start), Ok(()));
    assert!(take(&mut buckets, 0, start).is_err());
}

#[test]
fn other_limits_keep_what_was_spent() {
    let start = Instant::now();
    let burst = Limit {
        one_time_burst: 300,
        ..LIMIT
    };
    let mut buckets = Buckets::new(bytes(burst), start);
    assert_eq!(take(&mut buckets, 1200, start), Ok(()));
    // The same again: neither bucket nor burst are new.
    buckets.set(bytes(burst), start);
    assert_eq!(take(&mut buckets, 101, start), Err(milliseconds(1)));
    // A larger one: what was spent is missing.
    let large = Limit {
        size: 2000,
        one_time_burst: 350,
        ..LIMIT
    };
    buckets.set(bytes(large), start);
    assert_eq!(take(&mut buckets, 1151, start), Err(milliseconds(1) / 2));
    assert_eq!(take(&mut buckets, 1150, start), Ok(()));
    // A small one: empty at most, so that the old rate's debt does not last for ever.
    buckets.set(bytes(Limit { size: 10, ..LIMIT }), start);
    assert_eq!(take(&mut buckets, 10, start), Err(SECOND));
    assert_eq!(take(&mut buckets, 10, start + SECOND), Ok(()));
    // None, and one again.
    buckets.set(Limits::default(), start + SECOND);
    assert_eq!(take(&mut buckets, u64::MAX, start + SECOND), Ok(()));
    buckets.set(bytes(LIMIT), start + SECOND);
    assert_eq!(take(&mut buckets, 1000, start + SECOND), Ok(()));
}

/// Waits for the descriptor; a limiter that never wakes anybody hangs here until the rig's limit.
fn wait_readable(limiter: &Limiter) {
    let mut entry = libc::pollfd {
        fd: limiter.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the pointer and the count describe `entry`.
    let ready = unsafe { libc::poll(&mut entry, 1, -1) };
    assert_eq!(ready, 1);
}

#[test]
fn the_descriptor_wakes_who_was_refused() {
    let start = Instant::now();
    let limit = Limit {
        size: 10,
        one_time_burst: 0,
        refill_time: 10,
    };
    let mut limiter = Limiter::new(bytes(limit), start).unwrap();
    assert!(limiter.take(10, start));
    assert!(!limiter.take(5, start));
    wait_readable(&limiter);
    assert!(limiter.take(5, Instant::now()));
}

#[test]
fn other_limits_wake_who_waits() {
    let start = Instant::now();
    let never = Limit {
        refill_time: u64::MAX,
        ..LIMIT
    };
    let mut limiter = Limiter::new(bytes(never), start).unwrap();
    assert!(limiter.take(1000, start));
    assert!(!limiter.take(1000, start));
    limiter.set(Limits::default(), Instant::now());
    wait_readable(&limiter);
    assert!(limiter.take(1000, Instant::now()));
}
