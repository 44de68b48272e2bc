//! Load, memory and clock of the system.

use std::fs;
use std::io;
use std::path::Path;

use fief_agent_proto::{DiskUse, SetClock, Stats};
use nix::sys::statvfs::statvfs;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

/// Where a container sees its own cgroup. The root group, a machine's, has no limits to read.
const CGROUP: &str = "/sys/fs/cgroup";
/// Clock ticks a second, for programs always (proc(5), USER_HZ).
const TICKS: f64 = 100.0;

/// Reads `/proc`, and what a container has of its host instead of all that the host has. The load averages are the host's
/// there: nobody counts a container's.
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
    let uptime = uptime.split(' ').next();
    let uptime: f64 = uptime.and_then(|value| value.parse().ok()).unwrap_or(0.0);
    let begun = begin_of(&fs::read_to_string("/proc/1/stat").unwrap_or_default());
    let mut stats = Stats {
        uptime_seconds: (uptime - begun).max(0.0),
        load: [next(), next(), next()],
        memory_total_bytes: kib("MemTotal") * 1024,
        memory_available_bytes: kib("MemAvailable") * 1024,
        cpu_busy_seconds: busy_seconds(&stat),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        disk: DiskUse {
            total_bytes: disk.blocks() * disk.fragment_size(),
            available_bytes: disk.blocks_available() * disk.fragment_size(),
        },
        processes: u32::try_from(processes).unwrap_or(u32::MAX),
    };
    limit_to_group(&mut stats, Path::new(CGROUP));
    Ok(stats)
}

/// When a process began, in seconds after its kernel did (proc_pid_stat(5), field 22): a container's PID 1 much later.
fn begin_of(stat: &str) -> f64 {
    // A name may have spaces and parentheses; after the last one comes field 3.
    let ticks = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(22 - 3));
    ticks.and_then(|ticks| ticks.parse().ok()).unwrap_or(0.0) / TICKS
}

/// Replaces what the kernel has by what a cgroup (v2) with limits may have and had (cgroup-v2.rst).
fn limit_to_group(stats: &mut Stats, group: &Path) {
    let read = |name: &str| fs::read_to_string(group.join(name)).unwrap_or_default();
    let field = |file: &str, name: &str| -> u64 {
        let text = read(file);
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    };
    // "max" is no number.
    if let Ok(limit) = read("memory.max").trim().parse::<u64>()
        && let Ok(used) = read("memory.current").trim().parse::<u64>()
        && limit < stats.memory_total_bytes
    {
        // What files' pages take can be had back.
        let files = field("memory.stat", "active_file") + field("memory.stat", "inactive_file");
        let available = limit.saturating_sub(used.saturating_sub(files));
        stats.memory_total_bytes = limit;
        stats.memory_available_bytes = stats.memory_available_bytes.min(available);
    }
    let share = read("cpu.max");
    let Some((quota, period)) = share.trim().split_once(' ') else {
        return;
    };
    stats.cpu_busy_seconds = field("cpu.stat", "usage_usec") as f64 / 1e6;
    if let (Ok(quota), Ok(period @ 1..)) = (quota.parse::<u32>(), period.parse::<u32>()) {
        stats.cpus = stats.cpus.min(quota.div_ceil(period)).max(1);
    }
}

/// user, nice, system, irq, softirq and steal of the first line, which counts in ticks.
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
    busy as f64 / TICKS
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of_the_host() -> Stats {
        Stats {
            uptime_seconds: 1.0,
            load: [0.0; 3],
            memory_total_bytes: 1 << 34,
            memory_available_bytes: 1 << 33,
            cpu_busy_seconds: 9000.0,
            cpus: 8,
            disk: DiskUse {
                total_bytes: 0,
                available_bytes: 0,
            },
            processes: 1,
        }
    }

    fn limited(files: &[(&str, &str)]) -> Stats {
        let group = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(group.path().join(name), text).unwrap();
        }
        let mut stats = of_the_host();
        limit_to_group(&mut stats, group.path());
        stats
    }

    #[test]
    fn a_group_with_limits_has_what_they_leave() {
        let stats = limited(&[
            ("memory.max", "1000000\n"),
            ("memory.current", "700000\n"),
            (
                "memory.stat",
                "anon 400000\ninactive_file 200000\nactive_file 100000\n",
            ),
            ("cpu.max", "150000 100000\n"),
            ("cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
        ]);
        assert_eq!(stats.memory_total_bytes, 1_000_000);
        assert_eq!(stats.memory_available_bytes, 600_000);
        assert_eq!((stats.cpus, stats.cpu_busy_seconds), (2, 2.5));
    }

    #[test]
    fn without_limits_or_without_sense_there_is_what_the_kernel_has() {
        assert_eq!(limited(&[]), of_the_host());
        let nonsense = [
            ("memory.max", "max\n"),
            ("memory.current", "7\n"),
            ("cpu.max", "nonsense\n"),
        ];
        assert_eq!(limited(&nonsense), of_the_host());
        // The time is the group's own also without a limit.
        let stats = limited(&[
            ("cpu.max", "max 100000\n"),
            ("cpu.stat", "usage_usec 5000000\n"),
        ]);
        assert_eq!((stats.cpus, stats.cpu_busy_seconds), (8, 5.0));
        assert_eq!(limited(&[("cpu.max", "1 0\n")]).cpus, 8);
    }

    #[test]
    fn a_process_says_when_it_began_whatever_its_name() {
        let numbers: Vec<String> = (4..=52).map(|field| (field * 100).to_string()).collect();
        let stat = format!("1 (a) S ) (b) S {}", numbers.join(" "));
        assert_eq!(begin_of(&stat), 22.0);
        assert_eq!(begin_of(""), 0.0);
    }
}
