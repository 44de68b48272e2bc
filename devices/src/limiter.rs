//! Rate limits: two token buckets, one of bytes and one of operations.
//!
//! [`Buckets`] is arithmetic on a clock that the caller passes in. [`Limiter`] adds a descriptor that wakes a worker when
//! there are tokens again.
//!
//! A bucket is kept as its debt, in tokens times nanoseconds: whole numbers, so that nothing is lost to rounding however
//! often it is asked.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use crate::timer::Timer;

/// After this a bucket is asked again: no clock ends as soon.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);

/// A limit. One with a `size` or a `refill_time` of 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limit {
    /// Tokens that the bucket holds. It begins full.
    pub size: u64,
    /// Tokens that are spent before those of the bucket, and never come back.
    pub one_time_burst: u64,
    /// How long an empty bucket takes to fill, in milliseconds.
    pub refill_time: u64,
}

impl Limit {
    fn limits(&self) -> bool {
        self.size > 0 && self.refill_time > 0
    }
}

/// Limits of bytes and of operations, independent of each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    pub bandwidth: Option<Limit>,
    pub ops: Option<Limit>,
}

/// A limit that is none has no bucket, so both numbers of a bucket are at least 1.
#[derive(Debug)]
struct Bucket {
    size: u64,
    /// Nanoseconds in which `size` tokens come.
    refill: u128,
    burst: u64,
    /// Of the burst, also of those that earlier limits gave.
    burst_spent: u64,
    /// Tokens that are missing to a full bucket, times `refill`. More than `size` if an operation was larger than that.
    debt: u128,
}

impl Bucket {
    /// A bucket for `limit`, with what was spent of `old`.
    fn new(limit: Option<Limit>, old: Option<&Self>) -> Option<Self> {
        let limit = limit.filter(Limit::limits)?;
        // At most 584 years, so that a bucket's debt fits.
        let refill = Duration::from_millis(limit.refill_time).as_nanos();
        let refill = refill.min(u128::from(u64::MAX));
        let spent = old.map_or(0, Self::spent).min(u128::from(limit.size));
        Some(Self {
            size: limit.size,
            refill,
            burst: limit.one_time_burst,
            burst_spent: old.map_or(0, |old| old.burst_spent),
            debt: spent.saturating_mul(refill),
        })
    }

    /// Tokens that are missing to a full bucket.
    fn spent(&self) -> u128 {
        self.debt.div_ceil(self.refill.max(1))
    }

    fn refill(&mut self, passed: Duration) {
        let earned = passed.as_nanos().saturating_mul(u128::from(self.size));
        self.debt = self.debt.saturating_sub(earned);
    }

    /// How long until `tokens` may be spent. What is more than the bucket holds waits for a full one.
    fn wait(&self, tokens: u64) -> Option<Duration> {
        let burst = self.burst.saturating_sub(self.burst_spent);
        let needed = tokens.saturating_sub(burst).min(self.size);
        if tokens > 0 && needed == 0 {
            return None;
        }
        let room = u128::from(self.size.saturating_sub(needed)).saturating_mul(self.refill);
        let missing = self.debt.saturating_sub(room);
        let nanoseconds = missing.div_ceil(u128::from(self.size.max(1)));
        let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
    }

    fn spend(&mut self, tokens: u64) {
        let burst = self.burst.saturating_sub(self.burst_spent).min(tokens);
        self.burst_spent = self.burst_spent.saturating_add(burst);
        let tokens = u128::from(tokens.saturating_sub(burst));
        self.debt = (self.debt).saturating_add(tokens.saturating_mul(self.refill));
    }
}

/// The two buckets of a device or a queue.
#[derive(Debug)]
pub struct Buckets {
    bandwidth: Option<Bucket>,
    ops: Option<Bucket>,
    /// Up to when tokens have been filled in.
    filled: Instant,
}

impl Buckets {
    /// Full buckets.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            bandwidth: Bucket::new(limits.bandwidth, None),
            ops: Bucket::new(limits.ops, None),
            filled: now,
        }
    }

    /// Other limits from now on. Tokens that were spent stay spent (up to an empty bucket), as does the burst: to set the
    /// same limits again changes nothing but a debt. A limit where there was none begins with a full bucket.
    pub fn set(&mut self, limits: Limits, now: Instant) {
        self.refill(now);
        self.bandwidth = Bucket::new(limits.bandwidth, self.bandwidth.as_ref());
        self.ops = Bucket::new(limits.ops, self.ops.as_ref());
    }

    /// When an operation of `bytes` may begin, if not now. One that is larger than a bucket may begin when that is full;
    /// one of 0 bytes, for an operation whose size shows only afterwards, when there is no debt.
    pub fn wait(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        self.refill(now);
        let bandwidth = self.bandwidth.as_ref().and_then(|b| b.wait(bytes));
        let ops = self.ops.as_ref().and_then(|b| b.wait(1));
        let wait = bandwidth.max(ops)?;
        now.checked_add(wait.min(LONGEST_WAIT))
    }

    /// Takes the tokens of an operation of `bytes`, even if there are too few: what follows waits longer.
    pub fn spend(&mut self, bytes: u64, now: Instant) {
        self.refill(now);
        if let Some(bucket) = &mut self.bandwidth {
            bucket.spend(bytes);
        }
        if let Some(bucket) = &mut self.ops {
            bucket.spend(1);
        }
    }

    /// Whether anything is limited.
    pub fn limits(&self) -> bool {
        self.bandwidth.is_some() || self.ops.is_some()
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        for bucket in [&mut self.bandwidth, &mut self.ops].into_iter().flatten() {
            bucket.refill(passed);
        }
    }
}

/// Buckets with a descriptor that becomes readable when an operation that was refused may be tried again. Watch it
/// edge-triggered: it need not be read. A refusal may be forgotten, so try again only what is still to be done.
pub struct Limiter {
    buckets: Buckets,
    timer: Timer,
    wake: Option<Instant>,
}

impl Limiter {
    /// Full buckets.
    ///
    /// # Errors
    /// No descriptor is left for the timer.
    pub fn new(limits: Limits, now: Instant) -> io::Result<Self> {
        Ok(Self {
            buckets: Buckets::new(limits, now),
            timer: Timer::new()?,
            wake: None,
        })
    }

    /// See [`Buckets::set`]. Who waits is woken at once, for the wait may be shorter now.
    pub fn set(&mut self, limits: Limits, now: Instant) {
        self.buckets.set(limits, now);
        if self.wake.is_some() {
            self.wake_at(now);
        }
    }

    /// Whether an operation of `bytes` may begin (see [`Buckets::wait`]); nothing is spent yet. If not, the descriptor
    /// becomes readable when it may.
    pub fn may_take(&mut self, bytes: u64, now: Instant) -> bool {
        if !self.buckets.limits() {
            return true;
        }
        let Some(at) = self.buckets.wait(bytes, now) else {
            return true;
        };
        // One that is set and earlier than needed asks again when it goes off.
        if self.wake.is_none_or(|wake| wake <= now || at < wake) {
            self.wake_at(at);
        }
        false
    }

    /// See [`Buckets::spend`].
    pub fn spend(&mut self, bytes: u64, now: Instant) {
        if self.buckets.limits() {
            self.buckets.spend(bytes, now);
        }
    }

    /// Spends the tokens of an operation of `bytes` if it may begin; if not, see [`may_take`](Self::may_take).
    pub fn take(&mut self, bytes: u64, now: Instant) -> bool {
        let may = self.may_take(bytes, now);
        if may {
            self.spend(bytes, now);
        }
        may
    }

    fn wake_at(&mut self, at: Instant) {
        self.wake = Some(at);
        self.timer.set(Some(at));
    }
}

impl AsRawFd for Limiter {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
