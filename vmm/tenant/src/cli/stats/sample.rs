//! One look at a running tenant: its cgroup, and where there is none, what /proc says of its monitor.

use std::fs;
use std::time::Instant;

use crate::cgroup::Group;
use crate::network::Record;
use crate::store::Tenant;

/// What was counted at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub name: String,
    pub at: Instant,
    /// Seconds since 1970.
    pub started: u64,
    pub cpu_ns: Option<u64>,
    pub memory: Option<u64>,
    pub memory_limit: Option<u64>,
    pub threads: Option<u64>,
    pub disk_used: u64,
    pub disk_size: u64,
    pub read: Option<u64>,
    pub written: Option<u64>,
    pub received: Option<u64>,
    pub sent: Option<u64>,
}

impl Sample {
    /// None if the tenant does not run.
    pub fn of(tenant: &Tenant) -> Option<Self> {
        let state = tenant.state().ok().flatten()?;
        let usage = Group::of(tenant).usage();
        let pid = state.monitor.map(|monitor| monitor.pid);
        let proc = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", pid?)).ok();
        let stat = proc("stat");
        let status = proc("status").unwrap_or_default();
        let io = proc("io").unwrap_or_default();
        let isolation = tenant.spec().map(|spec| spec.isolation);
        let disk = tenant.disk(isolation.unwrap_or_default());
        let link = Record::read(tenant.directory()).ok().flatten();
        // The host's end receives what the tenant sends.
        let link = |counter: &str| {
            let link = &link.as_ref()?.link;
            let file = format!("/sys/class/net/{link}/statistics/{counter}");
            fs::read_to_string(file).ok()?.trim().parse().ok()
        };
        Some(Self {
            name: tenant.name.to_string(),
            at: Instant::now(),
            started: state.started,
            cpu_ns: usage.cpu_ns.or_else(|| processor_time(&stat?)),
            memory: usage
                .memory
                .or_else(|| Some(keyed(&status, "VmRSS:")?.saturating_mul(1024))),
            memory_limit: usage.memory_limit,
            threads: usage.threads.or_else(|| keyed(&status, "Threads:")),
            disk_used: fief_images::disk::used(&disk).unwrap_or(0),
            disk_size: disk.metadata().map_or(0, |data| data.len()),
            read: keyed(&io, "read_bytes:"),
            written: keyed(&io, "write_bytes:"),
            received: link("tx_bytes"),
            sent: link("rx_bytes"),
        })
    }
}

/// The first number behind a word at the beginning of a line.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// utime and stime, fields 14 and 15 of proc_pid_stat(5), in nanoseconds. They count in USER_HZ, always 100 for programs.
fn processor_time(stat: &str) -> Option<u64> {
    // The name, field 2, may hold spaces and parentheses; it ends at the last ')'.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(ticks()?.saturating_add(ticks()?).saturating_mul(10_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read_whatever_the_name_of_the_process() {
        let stat = "7 (a ) b) S 1 1 1 0 -1 4194560 1 0 0 0 25 17 0 0 20 0 1 0 100";
        assert_eq!(processor_time(stat), Some(420_000_000));
        assert_eq!(processor_time("7 (a) S 1"), None);
        let io = "rchar: 1\nread_bytes: 4096\nwrite_bytes: 8192\ncancelled_write_bytes: 1\n";
        assert_eq!(keyed(io, "read_bytes:"), Some(4096));
        assert_eq!(keyed(io, "write_bytes:"), Some(8192));
        assert_eq!(keyed("VmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(keyed("", "VmRSS:"), None);
    }
}
