//! What a kernel tells of itself in its files: the channels by which a tenant could learn what others do.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, failed};

/// Files, by names in which `*` stands for any part of one name, after Gao and others, *ContainerLeaks: Emerging Security Threats
/// of Information Leakages in Container Clouds*, DSN 2017, table I; then such as later kernels have.
const CHANNELS: &[&str] = &[
    "/proc/locks",
    "/proc/zoneinfo",
    "/proc/modules",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/softirqs",
    "/proc/uptime",
    "/proc/version",
    "/proc/stat",
    "/proc/meminfo",
    "/proc/loadavg",
    "/proc/interrupts",
    "/proc/cpuinfo",
    "/proc/schedstat",
    "/proc/sys/fs/dentry-state",
    "/proc/sys/fs/inode-nr",
    "/proc/sys/fs/file-nr",
    "/proc/sys/kernel/random/*",
    "/proc/sys/kernel/sched_domain/*/*/*",
    "/proc/fs/ext4/*/mb_groups",
    "/sys/fs/cgroup/net_prio/net_prio.ifpriomap",
    "/sys/devices/system/node/node*/numastat",
    "/sys/devices/system/node/node*/vmstat",
    "/sys/devices/system/node/node*/meminfo",
    "/sys/devices/system/cpu/cpu*/cpuidle/state*/usage",
    "/sys/devices/system/cpu/cpu*/cpuidle/state*/time",
    "/sys/devices/platform/coretemp*/hwmon/hwmon*/temp*_input",
    "/sys/class/powercap/*/energy_uj",
    "/sys/class/thermal/thermal_zone*/temp",
    "/proc/buddyinfo",
    "/proc/cgroups",
    "/proc/diskstats",
    "/proc/fs/jbd2/*/info",
    "/proc/key-users",
    "/proc/keys",
    "/proc/net/protocols",
    "/proc/net/sockstat",
    "/proc/net/softnet_stat",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/pressure/*",
    "/proc/slabinfo",
    "/proc/swaps",
    "/proc/sys/fs/aio-nr",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/kernel/pty/nr",
    "/proc/sysvipc/*",
    "/proc/vmallocinfo",
    "/proc/vmstat",
    "/sys/block/*/stat",
    "/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq",
    "/sys/fs/ext4/*/lifetime_write_kbytes",
];
/// Read of one file, in bytes, at most.
const MOST: u64 = 1 << 20;
/// Digits that a number without a sign of it being one of 16 has at least: addresses, and the counters of softnet_stat.
const WORD: usize = 8;

/// The numbers of each file, by its channel: how many lines it has, then all numbers in it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sample(pub BTreeMap<String, BTreeMap<PathBuf, Vec<f64>>>);

/// Prints a [`Sample`] of the kernel that this runs on, as JSON.
///
/// # Errors
/// It cannot be printed.
pub fn main() -> Result<()> {
    let sample = Sample::of(CHANNELS);
    let out = std::io::stdout().lock();
    serde_json::to_writer(out, &sample).map_err(|error| failed("print what was read")(error.into()))
}

impl Sample {
    /// What [`main`] printed.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| Error::Other(format!("the kernel's files cannot be read: {error}")))
    }

    fn of(channels: &[&str]) -> Self {
        let each = channels.iter().filter_map(|channel| {
            let files = matching(channel).into_iter();
            let read = files.filter_map(|path| {
                let text = read(&path)?;
                Some((path, numbers(&text)))
            });
            let read: BTreeMap<_, _> = read.collect();
            (!read.is_empty()).then(|| ((*channel).to_owned(), read))
        });
        Self(each.collect())
    }
}

/// A file's text; of what is not to be read, none.
fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The files that a pattern names.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let Some((begin, end)) = part.split_once('*') else {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        };
        let within = found.iter().filter_map(|path| fs::read_dir(path).ok());
        let entries = within.flatten().flatten();
        let fits = entries.filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.strip_prefix(begin)
                .is_some_and(|rest| rest.ends_with(end))
        });
        found = fits.map(|entry| entry.path()).collect();
    }
    found.retain(|path| path.is_file());
    found
}

fn numbers(text: &str) -> Vec<f64> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
    let found = words.filter_map(|word| {
        let long = word.len() >= WORD && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        let decimal = word
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        match word.parse::<f64>() {
            Ok(number) if decimal => Some(number),
            _ if long => u64::from_str_radix(word, 16)
                .ok()
                .map(|number| number as f64),
            _ => None,
        }
    });
    let lines = text.lines().count() as f64;
    [lines].into_iter().chain(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_what_kernels_print() {
        let of = |text: &str| numbers(text);
        assert_eq!(of("12.50 3\n"), [1.0, 12.5, 3.0]);
        assert_eq!(of("MemFree:  17 kB\ncpu0 4\n"), [2.0, 17.0, 4.0]);
        assert_eq!(of("some avg10=0.05 total=9"), [1.0, 0.05, 9.0]);
        assert_eq!(
            of("000000ff deadbeef0 cafe"),
            [1.0, 255.0, 59_774_856_944.0]
        );
        assert_eq!(
            of("1: POSIX 4471 00:1a:8 0 EOF"),
            [1.0, 1.0, 4471.0, 0.0, 8.0, 0.0]
        );
        assert_eq!(of(""), [0.0]);
    }

    #[test]
    fn channels_are_files_of_their_patterns() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().display().to_string();
        for name in [
            "node0/meminfo",
            "node0/vmstat",
            "node1/meminfo",
            "other/meminfo",
        ] {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "7").unwrap();
        }
        let pattern = format!("{base}/node*/meminfo");
        let sample = Sample::of(&[&pattern, "/nowhere/*"]);
        assert_eq!(sample.0.keys().collect::<Vec<_>>(), [&pattern]);
        let files = &sample.0[&pattern];
        let all = ["node0/meminfo", "node1/meminfo"].map(|name| directory.path().join(name));
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            all.iter().collect::<Vec<_>>()
        );
        assert!(files.values().all(|numbers| *numbers == [1.0, 7.0]));
        let text = serde_json::to_string(&sample).unwrap();
        assert_eq!(Sample::parse(&text).unwrap(), sample);
        Sample::parse("nothing").unwrap_err();
    }

    #[test]
    fn this_kernel_tells_of_its_memory() {
        let sample = Sample::of(CHANNELS);
        let files = &sample.0["/proc/meminfo"];
        assert!(files[Path::new("/proc/meminfo")].len() > 3);
    }
}
