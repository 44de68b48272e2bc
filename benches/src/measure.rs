//! What is counted about processes from outside.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::error::{Error, Result, on};

/// Where the kernel tells about each virtual machine (Documentation/virt/kvm, "debugfs").
const KVM: &str = "/sys/kernel/debug/kvm";

/// Processor time and time of something that was done.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    /// Nanoseconds of processor time, user and system together, of all that worked for it.
    pub cpu: f64,
    /// Nanoseconds from its begin to its end.
    pub time: f64,
}

/// Does `work` and counts what `charged` says before and after, in nanoseconds.
///
/// # Errors
/// Those of both.
pub fn spend(
    charged: impl Fn() -> Result<u64>,
    work: impl FnOnce() -> Result<()>,
) -> Result<Spent> {
    let before = charged()?;
    let begun = Instant::now();
    work()?;
    let time = begun.elapsed().as_nanos() as f64;
    let cpu = charged()?.saturating_sub(before) as f64;
    Ok(Spent { cpu, time })
}

/// Exits of the virtual machine that a process has made, so far.
///
/// # Errors
/// The kernel does not tell, or the process has none.
pub fn exits(monitor: i32) -> Result<u64> {
    let kvm = Path::new(KVM);
    let begin = format!("{monitor}-");
    for entry in fs::read_dir(kvm).map_err(on("read", kvm))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&begin) {
            let file = entry.path().join("exits");
            let text = fs::read_to_string(&file).map_err(on("read", &file))?;
            let number = text.trim().parse();
            return number.map_err(|_| Error::Other(format!("{} holds no number", file.display())));
        }
    }
    Err(Error::Other(format!(
        "process {monitor} has no virtual machine in {KVM}"
    )))
}

/// Whether [`exits`] can tell; mounts debugfs if it is not there.
pub fn counts_exits() -> bool {
    let debug = "/sys/kernel/debug";
    if !Path::new(KVM).exists() {
        let none = None::<&str>;
        let flags = nix::mount::MsFlags::empty();
        let _ = nix::mount::mount(Some("debugfs"), debug, Some("debugfs"), flags, none);
    }
    Path::new(KVM).exists()
}

/// Bytes of memory that processes take, those that they share with others by their part (proc_pid_smaps_rollup(5)). One that
/// has just ended takes none.
pub fn proportional(pids: impl IntoIterator<Item = i32>) -> u64 {
    let of = |pid: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let kib = text.lines().find_map(|line| {
            let number = line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?;
            number.trim().parse::<u64>().ok()
        });
        kib.unwrap_or(0) * 1024
    };
    pids.into_iter().map(of).sum()
}

/// Bytes that the host could give to programs (proc_meminfo(5)).
///
/// # Errors
/// The kernel does not tell.
pub fn available() -> Result<f64> {
    let path = Path::new("/proc/meminfo");
    let text = fs::read_to_string(path).map_err(on("read", path))?;
    let number = text.lines().find_map(|line| {
        let number = line.strip_prefix("MemAvailable:")?.trim();
        number.strip_suffix("kB")?.trim().parse::<f64>().ok()
    });
    let number =
        number.ok_or_else(|| Error::Other("the kernel tells no available memory".to_owned()))?;
    Ok(number * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_memory_and_no_virtual_machine() {
        let own = std::process::id().cast_signed();
        assert!(proportional([own]) > 100 << 10);
        assert_eq!(proportional([i32::MAX]), 0);
        exits(own).unwrap_err();
    }

    #[test]
    fn what_work_takes_is_the_difference() {
        let clock = std::cell::Cell::new(5);
        let spent = spend(
            || Ok(clock.get()),
            || {
                clock.set(clock.get() + 37);
                Ok(())
            },
        );
        let spent = spent.unwrap();
        assert!(spent.cpu == 37.0 && spent.time > 0.0);
    }
}
