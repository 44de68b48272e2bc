//! Load, memory and clock of the system.

use std::fs;
use std::io;

use fief_agent_proto::{DiskUse, SetClock, Stats};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::container;

/// Reads `/proc`.
///
/// # Errors
/// `/proc` is not mounted, or `/` cannot be asked.
pub fn stats() -> io::Result<Stats> {
    let uptime = fs::read_to_string("/proc/uptime")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let stat = fs::read_to_string("/proc/stat")?;
    let kib = |name: &str| -> u64 {
        let line = memory
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    let of_machine = (kib("MemTotal") * 1024, kib("MemAvailable") * 1024);
    let (total, available) = container::memory(of_machine).unwrap_or(of_machine);
    let mut loads = load.split(' ').map(|value| value.parse().unwrap_or(0.0));
    let mut next = || loads.next().unwrap_or(0.0);
    let disk = statvfs("/")?;
    let cpus = stat
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .count();
    let processes = fs::read_dir("/proc")?
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|byte| byte.is_ascii_digit())
        })
        .count();
    Ok(Stats {
        uptime_seconds: uptime
            .split(' ')
            .next()
            .and_then(|value| value.parse().ok())
            .unwrap_or(0.0),
        load: [next(), next(), next()],
        memory_total_bytes: total,
        memory_available_bytes: available,
        cpu_busy_seconds: busy_seconds(&stat),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        disk: DiskUse {
            total_bytes: disk.blocks() * disk.fragment_size(),
            available_bytes: disk.blocks_available() * disk.fragment_size(),
        },
        processes: u32::try_from(processes).unwrap_or(u32::MAX),
    })
}

/// user, nice, system, irq, softirq and steal of the first line, which counts in USER_HZ, always 100 for programs.
fn busy_seconds(stat: &str) -> f64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(|value| value.parse().unwrap_or(0))
        .collect();
    let busy: u64 = [0, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|index| ticks.get(*index))
        .sum();
    busy as f64 / 100.0
}

/// Sets the clock.
///
/// # Errors
/// The kernel's.
pub fn set_clock(clock: SetClock) -> io::Result<()> {
    let seconds = i64::try_from(clock.unix_nanoseconds / 1_000_000_000).unwrap_or(i64::MAX);
    let nanoseconds = (clock.unix_nanoseconds % 1_000_000_000).cast_signed();
    Ok(clock_settime(
        ClockId::CLOCK_REALTIME,
        TimeSpec::new(seconds, nanoseconds),
    )?)
}
