//! What a tenant's limits are in the files of a cgroup.

use nix::libc::{self, dev_t};

use super::mounts::{Controller, Version};
use crate::spec::{Bytes, DEFAULT_WEIGHT, Isolation, Limits, Spec};

/// The period over which processor time is limited, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// Processor shares that are version 2's weight 100.
const USUAL_SHARES: u64 = 1024;
/// Most threads of a monitor with its shim: vCPUs, workers, and those that io_uring starts for it; or of a container's shim,
/// and what that starts.
const MAX_THREADS: u64 = 1024;
/// Most processes and threads of a container: podman's default, twice. A virtual machine's kernel bounds its own.
pub const CONTAINER_PROCESSES: u64 = 4096;
/// What monitor and shim need besides the guest's memory: their own, the kernel's for them, and page tables, which grow
/// with the guest. Measured: docs/tenants.md, "Limits".
const OVERHEAD: Bytes = Bytes::from_mib(64);
const OVERHEAD_PART: u64 = 32;

/// What a cgroup limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub cpus: u8,
    /// Bytes, the monitor's own included.
    pub memory: Bytes,
    pub cpu_weight: Option<u16>,
    pub io_weight: Option<u16>,
    /// Processes and threads, those of the shim included.
    pub pids: u64,
}

/// One file of a cgroup: names of it, as kernels differ, and what it is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub files: &'static [&'static str],
    pub value: String,
    /// Asked for, rather than what every tenant has: its absence matters.
    pub asked: bool,
}

impl Settings {
    /// What a guest with so much memory may take with its monitor.
    pub fn with_monitor(memory: Bytes) -> Bytes {
        Bytes(memory.0 + OVERHEAD.0 + memory.0 / OVERHEAD_PART)
    }

    pub fn of(spec: &Spec) -> Self {
        Self {
            cpus: spec.cpus,
            memory: Self::with_monitor(spec.memory),
            cpu_weight: spec.limits.cpu_weight,
            io_weight: spec.limits.io_weight,
            pids: match spec.isolation {
                Isolation::Vm => MAX_THREADS,
                // The container's own group has its part, which leaves the shim's.
                Isolation::Container => MAX_THREADS + CONTAINER_PROCESSES,
            },
        }
    }

    /// All of one controller, in the order in which to write them.
    pub fn of_controller(&self, controller: Controller, version: Version) -> Vec<Setting> {
        let quota = u64::from(self.cpus) * PERIOD_US;
        match (controller, version) {
            (Controller::Cpu, Version::V2) => vec![
                always(&["cpu.max"], format!("{quota} {PERIOD_US}")),
                self.weight(controller, version),
            ],
            (Controller::Cpu, Version::V1) => vec![
                always(&["cpu.cfs_period_us"], PERIOD_US.to_string()),
                always(&["cpu.cfs_quota_us"], quota.to_string()),
                self.weight(controller, version),
            ],
            (Controller::Memory, Version::V2) => {
                vec![always(&["memory.max"], self.memory.0.to_string())]
            }
            (Controller::Memory, Version::V1) => {
                vec![always(
                    &["memory.limit_in_bytes"],
                    self.memory.0.to_string(),
                )]
            }
            (Controller::Io, _) => vec![self.weight(controller, version)],
            (Controller::Pids, _) => vec![always(&["pids.max"], self.pids.to_string())],
        }
    }

    /// The share of a controller that has one; what can be changed while the tenant runs.
    pub fn weight(&self, controller: Controller, version: Version) -> Setting {
        let asked = if controller == Controller::Cpu {
            self.cpu_weight
        } else {
            self.io_weight
        };
        let weight = asked.unwrap_or(DEFAULT_WEIGHT);
        let (files, value): (&[&str], String) = match (controller, version) {
            (Controller::Cpu, Version::V2) => (&["cpu.weight"], weight.to_string()),
            (Controller::Cpu, Version::V1) => {
                let shares = u64::from(weight) * USUAL_SHARES / u64::from(DEFAULT_WEIGHT);
                (&["cpu.shares"], shares.max(2).to_string())
            }
            // By the cost model or by the scheduler BFQ, whichever the kernel has.
            (_, Version::V2) => (&["io.weight", "io.bfq.weight"], format!("default {weight}")),
            // 1000 is the most that these take, 10 the least of the older one.
            (_, Version::V1) => (
                &["blkio.bfq.weight", "blkio.weight"],
                weight.clamp(10, 1000).to_string(),
            ),
        };
        Setting {
            files,
            value,
            asked: asked.is_some(),
        }
    }
}

fn always(files: &'static [&'static str], value: String) -> Setting {
    Setting {
        files,
        value,
        asked: true,
    }
}

/// A block device as the kernel names it: `MAJOR:MINOR`.
pub fn number(device: dev_t) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

/// Files that limit what passes to and from a block device, and what is to be written there, in the order of the files. Reads and
/// writes have limits of their own, which are the same.
pub fn disk_rates(device: dev_t, limits: &Limits, version: Version) -> Vec<(&'static str, String)> {
    let number = number(device);
    let (rate, ops) = (limits.disk_rate.map(|rate| rate.0), limits.disk_ops);
    match version {
        Version::V2 => {
            // 1 is refused (Linux, block/blk-throttle.c, tg_set_limit).
            let text =
                |limit: Option<u64>| limit.map_or("max".to_owned(), |most| most.max(2).to_string());
            let (rate, ops) = (text(rate), text(ops));
            let value = format!("{number} rbps={rate} wbps={rate} riops={ops} wiops={ops}");
            vec![("io.max", value)]
        }
        Version::V1 => {
            // 0 is no limit, and what does not fit into 32 bits loses the rest (Linux, block/blk-throttle.c, tg_set_conf_uint).
            let ops = ops.map(|ops| ops.min(u32::MAX.into()));
            let limits = [rate, rate, ops, ops].map(Option::unwrap_or_default);
            let value = |limit: u64| format!("{number} {limit}");
            V1_DISK.into_iter().zip(limits.map(value)).collect()
        }
    }
}

const V1_DISK: [&str; 4] = [
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
];

/// The same files, and what takes the limits of a device away, after its number.
pub fn no_disk_rates(version: Version) -> Vec<(&'static str, &'static str)> {
    match version {
        Version::V2 => vec![("io.max", "rbps=max wbps=max riops=max wiops=max")],
        Version::V1 => V1_DISK.map(|file| (file, "0")).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    fn written(settings: &Settings, controller: Controller, version: Version) -> Vec<String> {
        let all = settings.of_controller(controller, version);
        all.iter()
            .map(|one| format!("{}={}", one.files[0], one.value))
            .collect()
    }

    #[test]
    fn processors_are_a_quota_of_a_period_in_both_versions() {
        let settings = Settings::of(&Spec { cpus: 3, ..spec() });
        assert_eq!(
            written(&settings, Controller::Cpu, Version::V2),
            ["cpu.max=300000 100000", "cpu.weight=100"]
        );
        assert_eq!(
            written(&settings, Controller::Cpu, Version::V1),
            [
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=300000",
                "cpu.shares=1024"
            ]
        );
    }

    #[test]
    fn memory_is_the_guests_and_what_its_monitor_needs() {
        let settings = Settings::of(&spec());
        assert_eq!(settings.memory, Bytes::from_mib(512 + 64 + 16));
        assert_eq!(
            written(&settings, Controller::Memory, Version::V2),
            [format!("memory.max={}", 592 << 20)]
        );
    }

    #[test]
    fn a_containers_processes_leave_some_for_its_shim() {
        let pids = |isolation| {
            let settings = Settings::of(&Spec {
                isolation,
                ..spec()
            });
            written(&settings, Controller::Pids, Version::V2)
        };
        assert_eq!(pids(Isolation::Vm), ["pids.max=1024"]);
        assert_eq!(pids(Isolation::Container), ["pids.max=5120"]);
    }

    #[test]
    fn rates_out_of_the_kernels_bounds_are_the_nearest_within() {
        let limits = Limits {
            disk_ops: Some(1 << 40),
            ..Limits::default()
        };
        let least = Limits {
            disk_rate: Some(Bytes(1)),
            ..Limits::default()
        };
        let device = libc::makedev(259, 1_048_575);
        let v1 = disk_rates(device, &limits, Version::V1);
        let values: Vec<_> = v1.iter().map(|(_, value)| value.as_str()).collect();
        let most = "259:1048575 4294967295";
        assert_eq!(values, ["259:1048575 0", "259:1048575 0", most, most]);
        let v2 = disk_rates(device, &limits, Version::V2);
        let value = "259:1048575 rbps=max wbps=max riops=1099511627776 wiops=1099511627776";
        assert_eq!(v2, [("io.max", value.to_owned())]);
        let v2 = disk_rates(device, &least, Version::V2);
        let value = "259:1048575 rbps=2 wbps=2 riops=max wiops=max";
        assert_eq!(v2, [("io.max", value.to_owned())]);
    }

    #[test]
    fn weights_are_scaled_to_what_the_older_version_takes() {
        let settings = Settings {
            cpu_weight: Some(1),
            io_weight: Some(10_000),
            ..Settings::of(&spec())
        };
        let share = |controller, version| settings.weight(controller, version).value;
        assert_eq!(share(Controller::Cpu, Version::V1), "10");
        assert_eq!(share(Controller::Io, Version::V1), "1000");
        assert_eq!(share(Controller::Io, Version::V2), "default 10000");
        assert!(settings.weight(Controller::Io, Version::V2).asked);
        assert!(
            !Settings::of(&spec())
                .weight(Controller::Io, Version::V2)
                .asked
        );
    }
}
