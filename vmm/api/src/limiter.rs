//! Limits of bandwidth and operations.

use serde::{Deserialize, Serialize};

/// A bucket of tokens that fills at a constant rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens the bucket holds; 0 switches the limit off.
    pub size: u64,
    /// Extra tokens at the start, used up first and never refilled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds to fill an empty bucket; 0 switches the limit off.
    pub refill_time: u64,
}

impl TokenBucket {
    /// Whether this bucket limits anything.
    pub fn limits(&self) -> bool {
        self.size != 0 && self.refill_time != 0
    }
}

/// Independent limits of bytes and of operations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// Tokens are bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Tokens are operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

impl RateLimiter {
    /// These limits with the buckets of `update` in place of its own, where that has any.
    pub fn updated(self, update: Self) -> Self {
        Self {
            bandwidth: update.bandwidth.or(self.bandwidth),
            ops: update.ops.or(self.ops),
        }
    }

    /// Whether either bucket limits anything.
    pub fn limits(&self) -> bool {
        self.bandwidth.is_some_and(|b| b.limits()) || self.ops.is_some_and(|b| b.limits())
    }
}
