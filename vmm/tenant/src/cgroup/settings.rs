//! What a tenant's limits are in the files of a cgroup.

use super::mounts::{Controller, Version};
use crate::spec::{Bytes, DEFAULT_WEIGHT, Isolation, Spec};

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
    pub fn of(spec: &Spec) -> Self {
        Self {
            cpus: spec.cpus,
            memory: Bytes(spec.memory.0 + OVERHEAD.0 + spec.memory.0 / OVERHEAD_PART),
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
