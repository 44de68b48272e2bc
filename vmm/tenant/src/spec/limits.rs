//! How much of the host a tenant may use, beyond its vCPUs and memory.

use fief_api::{RateLimiter, TokenBucket};
use serde::{Deserialize, Serialize};

use super::{Bytes, SpecError};

/// Weight of a tenant that says nothing, of 1 to 10000 (Linux, Documentation/admin-guide/cgroup-v2.rst, "Weights").
pub const DEFAULT_WEIGHT: u16 = 100;
const WEIGHTS: std::ops::RangeInclusive<u16> = 1..=10_000;
/// How long an empty token bucket takes to fill, in milliseconds: a rate is met on average over this.
const REFILL_MS: u64 = 1000;

/// Shares and rates. What is left out is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Share of the processors when they are short, against 100 of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u16>,
    /// Share of the host's disks when they are short, against 100 of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_weight: Option<u16>,
    /// Bytes a second read from and written to the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_rate: Option<Bytes>,
    /// Requests a second to the disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_ops: Option<u64>,
    /// Bytes a second in each direction of the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<Bytes>,
}

impl Limits {
    /// # Errors
    /// A weight out of bounds.
    pub fn check(&self) -> Result<(), SpecError> {
        for (flag, weight) in [
            ("--cpu-weight", self.cpu_weight),
            ("--io-weight", self.io_weight),
        ] {
            if let Some(weight) = weight.filter(|weight| !WEIGHTS.contains(weight)) {
                return Err(SpecError::Weight { flag, weight });
            }
        }
        Ok(())
    }

    /// The flags of the disk's rates that there are.
    pub fn of_disk(&self) -> Vec<&'static str> {
        let flags = [
            ("--disk-rate", self.disk_rate.is_some()),
            ("--disk-ops", self.disk_ops.is_some()),
        ];
        let asked = flags.into_iter().filter(|(_, asked)| *asked);
        asked.map(|(flag, _)| flag).collect()
    }

    /// The disk's limiter; buckets of size 0 where there is no limit, which also takes back one that was set.
    pub fn disk_limiter(&self) -> RateLimiter {
        RateLimiter {
            bandwidth: Some(bucket(self.disk_rate.map(|rate| rate.0))),
            ops: Some(bucket(self.disk_ops)),
        }
    }

    /// The limiter of each direction of the network, as [`Limits::disk_limiter`].
    pub fn net_limiter(&self) -> RateLimiter {
        RateLimiter {
            bandwidth: Some(bucket(self.net_rate.map(|rate| rate.0))),
            ops: Some(bucket(None)),
        }
    }
}

fn bucket(rate: Option<u64>) -> TokenBucket {
    TokenBucket {
        size: rate.unwrap_or(0),
        one_time_burst: None,
        refill_time: if rate.is_some() { REFILL_MS } else { 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_fills_its_bucket_once_a_second_and_none_switches_the_limit_off() {
        let limits = Limits {
            disk_rate: Some(Bytes::from_mib(10)),
            ..Limits::default()
        };
        let limiter = limits.disk_limiter();
        let bandwidth = limiter.bandwidth.unwrap();
        assert_eq!((bandwidth.size, bandwidth.refill_time), (10 << 20, 1000));
        assert!(bandwidth.limits() && !limiter.ops.unwrap().limits());
        assert!(!limits.net_limiter().limits());
    }

    #[test]
    fn a_weight_out_of_bounds_is_refused_with_its_flag() {
        for weight in [0, 10_001] {
            let limits = Limits {
                io_weight: Some(weight),
                ..Limits::default()
            };
            let error = limits.check().unwrap_err().to_string();
            assert!(
                error.contains("--io-weight") && error.contains("10000"),
                "{error}"
            );
        }
        let least = Limits {
            cpu_weight: Some(1),
            io_weight: Some(10_000),
            ..Limits::default()
        };
        assert_eq!(least.check(), Ok(()));
    }
}
