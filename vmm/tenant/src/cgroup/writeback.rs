//! How much of what a container has written may wait for a throttled disk (Linux, Documentation/ABI/testing/sysfs-class-bdi).
//!
//! sync(2) waits for all disks of the machine, whoever calls it, and cannot be ended meanwhile: without this, one tenant could
//! hold up its neighbours for as long as its disk takes for all that fits into its memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::spec::Limits;

const DEVICES: &str = "/sys/class/bdi";
/// What may wait whatever the rate, in bytes: with less, the kernel would have its writers wait for single pages.
const LEAST: u64 = 256 << 10;
/// A request may be as small as one page, in bytes.
const PAGE: u64 = 4096;

/// How much may wait: that of one second, in bytes.
fn most(limits: &Limits) -> u64 {
    let rate = limits.disk_rate.map(|rate| rate.0);
    let ops = limits.disk_ops.map(|ops| ops.saturating_mul(PAGE));
    let second = rate.into_iter().chain(ops).min();
    second.unwrap_or(u64::MAX).max(LEAST)
}

/// Limits it for a device, `MAJOR:MINOR`. Linux before 6.2 cannot, which is no reason to do without the rest.
pub fn limit(device: &str, limits: &Limits) {
    limit_in(Path::new(DEVICES), device, limits);
}

fn limit_in(devices: &Path, device: &str, limits: &Limits) {
    free_in(devices, device);
    // More than the machine has memory for is refused, and no limit.
    if set(devices, device, "max_bytes", &most(limits).to_string()).is_ok() {
        let _ = set(devices, device, "strict_limit", "1");
    }
}

/// Takes the limit of a device away: loop devices stay when they are made of nothing any more, and their next file is
/// somebody else's.
pub fn free(device: &str) {
    free_in(Path::new(DEVICES), device);
}

fn free_in(devices: &Path, device: &str) {
    for (name, usual) in [("strict_limit", "0"), ("max_ratio", "100")] {
        let _ = set(devices, device, name, usual);
    }
}

fn set(devices: &Path, device: &str, name: &str, value: &str) -> io::Result<()> {
    let file: PathBuf = devices.join(device).join(name);
    if !file.exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    fs::write(file, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Bytes;

    fn limits(rate: Option<u64>, ops: Option<u64>) -> Limits {
        Limits {
            disk_rate: rate.map(Bytes),
            disk_ops: ops,
            ..Limits::default()
        }
    }

    #[test]
    fn what_may_wait_is_that_of_a_second_by_the_narrower_limit() {
        assert_eq!(most(&limits(Some(5 << 20), None)), 5 << 20);
        assert_eq!(most(&limits(Some(5 << 20), Some(256))), 1 << 20);
        assert_eq!(most(&limits(Some(1), Some(u64::MAX))), LEAST);
    }

    #[test]
    fn a_device_is_limited_and_then_as_any_other() {
        let directory = tempfile::tempdir().unwrap();
        let device = directory.path().join("7:1");
        let read = |name: &str| fs::read_to_string(device.join(name)).unwrap();
        // An older kernel, or a device that is gone.
        limit_in(directory.path(), "7:1", &limits(Some(1 << 20), None));
        fs::create_dir(&device).unwrap();
        for name in ["max_bytes", "max_ratio", "strict_limit"] {
            fs::write(device.join(name), "?").unwrap();
        }
        limit_in(directory.path(), "7:1", &limits(Some(1 << 20), None));
        assert_eq!([read("max_bytes"), read("strict_limit")], ["1048576", "1"]);
        free_in(directory.path(), "7:1");
        assert_eq!([read("max_ratio"), read("strict_limit")], ["100", "0"]);
    }
}
