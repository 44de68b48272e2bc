//! Rate limits: from the wire to a device.

use fief_api::{RateLimiter, TokenBucket};
use fief_devices::limiter::{Limit, Limits};

/// What a device does with `limiter`. A bucket that limits nothing is none.
pub fn limits(limiter: Option<RateLimiter>) -> Limits {
    let limiter = limiter.unwrap_or_default();
    Limits {
        bandwidth: limiter.bandwidth.and_then(limit),
        ops: limiter.ops.and_then(limit),
    }
}

fn limit(bucket: TokenBucket) -> Option<Limit> {
    bucket.limits().then(|| Limit {
        size: bucket.size,
        one_time_burst: bucket.one_time_burst.unwrap_or(0),
        refill_time: bucket.refill_time,
    })
}
