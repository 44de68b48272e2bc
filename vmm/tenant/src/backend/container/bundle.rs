//! What an OCI runtime is told of a container: namespaces, mounts, limits, and what its root may not do
//! (OCI runtime specification 1.0.2, config.md and config-linux.md). docs/containers.md gives the reasons for people.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::resource::RLIM_INFINITY;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDeviceCgroupBuilder,
    LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder, LinuxMemoryBuilder,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxPidsBuilder, LinuxResources,
    LinuxResourcesBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::cdi::Devices;
use super::ids::IdRange;
use super::seccomp;
use crate::cgroup::{Controller, Version};
use crate::process::{SYS_RESOURCE, has_capability};
use crate::spec::Bytes;

/// The version of the specification that this follows: what runc 1.1 and crun 1.8 know.
const OCI_VERSION: &str = "1.0.2";
/// Where the agent is in a container.
pub const AGENT: &str = "/run/fief/agent";
/// Where it finds the image, if that is to be seen.
const IMAGE: &str = "/run/fief/image";
/// The agent's socket, and the pipe by which it is told to go on: the first descriptors after the standard ones, passed on with
/// `--preserve-fds 2`.
pub const PRESERVED_FDS: u32 = 2;

/// The cgroup that the container's processes are to be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Below the mount of each hierarchy: `/fief/alice-0123456789ab/tenant`.
    pub path: String,
    /// Of the hierarchy that is mounted in the container.
    pub version: Version,
    /// What can be limited in it. A limit that cannot would keep the runtime from making the container.
    pub controllers: Vec<Controller>,
}

/// What a bundle describes.
#[derive(Debug, Clone)]
pub struct Description<'a> {
    /// The finished root, with every id mapped.
    pub root: &'a Path,
    /// The agent's binary on the host.
    pub agent: &'a Path,
    /// The image alone, if it is to be seen, with every id mapped.
    pub image: Option<&'a Path>,
    /// Settings for the agent: `fief.hostname=alice`, ….
    pub words: Vec<String>,
    pub hostname: &'a str,
    pub ids: IdRange,
    /// User (with the map of those) and network.
    pub namespaces: &'a [PathBuf; 2],
    /// None where there are no cgroups: no limits.
    pub group: Option<Group>,
    /// What the tenant's processes may use together, page cache included; swap space none.
    pub memory: Bytes,
    /// Most processes and threads.
    pub pids: u64,
    /// Devices of the host.
    pub devices: &'a Devices,
    /// Their nodes on the host, in the order of the devices' own.
    pub nodes: &'a [PathBuf],
}

/// The content of `config.json`.
///
/// # Errors
/// None that a description could cause.
pub fn spec(description: &Description<'_>) -> Result<Spec, OciSpecError> {
    let ids = description.ids;
    let mapping = LinuxIdMappingBuilder::default()
        .container_id(0u32)
        .host_id(ids.first)
        .size(ids.count)
        .build()?;
    let root = RootBuilder::default()
        .path(description.root)
        .readonly(false)
        .build()?;
    SpecBuilder::default()
        .version(OCI_VERSION)
        .root(root)
        .hostname(description.hostname)
        .process(process(description)?)
        .mounts(mounts(description)?)
        .linux(linux(description, mapping)?)
        .build()
}

/// Makes `directory` a bundle of it.
///
/// # Errors
/// No space, or no permission.
pub fn write(spec: &Spec, directory: &Path) -> io::Result<()> {
    fs::write(directory.join("config.json"), serde_json::to_vec(spec)?)
}

fn linux(
    description: &Description<'_>,
    mapping: LinuxIdMapping,
) -> Result<oci_spec::runtime::Linux, OciSpecError> {
    let namespaces: Result<Vec<_>, _> = NAMESPACES
        .iter()
        .map(|kind| {
            let namespace = LinuxNamespaceBuilder::default().typ(*kind);
            match kind {
                LinuxNamespaceType::User => namespace.path(&description.namespaces[0]),
                LinuxNamespaceType::Network => namespace.path(&description.namespaces[1]),
                _ => namespace,
            }
            .build()
        })
        .collect();
    let linux = LinuxBuilder::default()
        .namespaces(namespaces?)
        .uid_mappings([mapping])
        .gid_mappings([mapping])
        .resources(resources(description)?)
        .devices([])
        .seccomp(seccomp::profile()?)
        // No mount of the tenant reaches the host, and none that the host makes later reaches the tenant.
        .rootfs_propagation("private")
        .masked_paths(words(MASKED))
        .readonly_paths(words(READ_ONLY));
    match &description.group {
        Some(group) => linux.cgroups_path(&group.path),
        None => linux,
    }
    .build()
}

/// All but time: the host's clocks are the tenant's.
const NAMESPACES: [LinuxNamespaceType; 7] = [
    LinuxNamespaceType::User,
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Cgroup,
];

/// Hidden from the container. What only the host's root may read or write would be refused there anyway, as the
/// container's root is another user; this is a second lock, and hides the rest, which tells of the host and of neighbours.
/// (Root of the container may take a mask away: the mounts are in a namespace that it owns.)
const MASKED: &[&str] = &[
    // Tables and devices of the machine.
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    // The host's boot parameters, which may hold what others should not know.
    "/proc/cmdline",
    // When the machine's devices interrupt, keyboards for instance.
    "/proc/interrupts",
    "/proc/sched_debug",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/latency_stats",
    // Memory, keys and the emergency brake of the host's kernel.
    "/proc/kcore",
    "/proc/keys",
    "/proc/sysrq-trigger",
];

/// Not to be written, whatever its modes say. /proc/sys is not among them: what a namespace of the container owns (`net`,
/// `user`, System V's limits, `fs/mqueue`) is its root's to change, and the modes keep the rest, which the host's root owns.
const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    // Everybody may have the kernel watch the machine's pressure, which costs the host time.
    "/proc/pressure",
];

/// Capabilities that root of a container does not get. All others are good in its own namespaces only, or do nothing
/// there but let programs start that insist on them.
const WITHHELD: [Capability; 16] = [
    // The audit system is the host's; journald does not try without these.
    Capability::AuditControl,
    Capability::AuditRead,
    // Suspend, wake-up and the consoles of the host.
    Capability::BlockSuspend,
    Capability::WakeAlarm,
    Capability::SysTtyConfig,
    // Programs in the kernel, and its performance counters.
    Capability::Bpf,
    Capability::Perfmon,
    // Process ids of one's choice and the like: only to restore checkpoints.
    Capability::CheckpointRestore,
    // Never granted to anybody but the host's root.
    Capability::LinuxImmutable,
    Capability::SysModule,
    Capability::SysPacct,
    Capability::SysRawio,
    // The host's security policy.
    Capability::MacAdmin,
    Capability::MacOverride,
    // One clock for all: time daemons do not start without this.
    Capability::SysTime,
    // The host's log.
    Capability::Syslog,
];

const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// What the container's root has.
fn granted() -> Capabilities {
    let all = ALL_CAPABILITIES.into_iter();
    all.filter(|one| !WITHHELD.contains(one)).collect()
}

/// Above 0, that of the host's daemons: where the whole machine is short of memory, a tenant goes before them.
const OOM_SCORE_ADJ: i32 = 100;

/// What a login on Debian has. Hard limits are those that root of a machine of its own could set: root of a container
/// cannot raise them, and the memory behind them counts against the container's limit. (name, soft, hard)
const RLIMITS: [(PosixRlimitType, u64, u64); 8] = {
    use PosixRlimitType as Name;
    [
        (Name::RlimitCore, 0, RLIM_INFINITY),
        (Name::RlimitMemlock, 8 << 20, RLIM_INFINITY),
        (Name::RlimitMsgqueue, 819_200, 819_200),
        (Name::RlimitNice, 0, 0),
        (Name::RlimitNofile, 1024, 1 << 20),
        // Processes are limited by the cgroup.
        (Name::RlimitNproc, RLIM_INFINITY, RLIM_INFINITY),
        // Real-time priorities would keep neighbours from the processors.
        (Name::RlimitRtprio, 0, 0),
        (Name::RlimitStack, 8 << 20, RLIM_INFINITY),
    ]
};

/// The limits of a container's processes. Where root lacks CAP_SYS_RESOURCE, as in some containers, they have those of the
/// shim instead: runtimes set them from outside, and may not (prlimit(2)).
fn rlimits() -> Result<Vec<PosixRlimit>, OciSpecError> {
    let may = has_capability(SYS_RESOURCE);
    let all = RLIMITS.into_iter().filter(|_| may);
    all.map(|(name, soft, hard)| {
        PosixRlimitBuilder::default()
            .typ(name)
            .soft(soft)
            .hard(hard)
            .build()
    })
    .collect()
}

const ENVIRONMENT: &[&str] = &[
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "TERM=linux",
    // How an init knows that devices, modules and clocks are not its own (systemd's "Container Interface").
    "container=oci",
];

fn process(description: &Description<'_>) -> Result<Process, OciSpecError> {
    let variables = description.devices.variables.iter();
    let mut environment = words(ENVIRONMENT);
    environment.extend(variables.map(|(name, value)| format!("{name}={value}")));
    let user = UserBuilder::default().uid(0u32).gid(0u32).build()?;
    let granted = granted();
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(granted.clone())
        .effective(granted.clone())
        .permitted(granted)
        // As at a login: a program that changes its user loses them.
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()?;
    let arguments = words(&[AGENT, "--container"]);
    ProcessBuilder::default()
        .terminal(true)
        .user(user)
        .args([arguments, description.words.clone()].concat())
        .env(environment)
        .cwd("/")
        .capabilities(capabilities)
        .rlimits(rlimits()?)
        // sudo is the point.
        .no_new_privileges(false)
        .oom_score_adj(OOM_SCORE_ADJ)
        .build()
}

fn resources(description: &Description<'_>) -> Result<LinuxResources, OciSpecError> {
    // Runtimes add what no program does without: null, zero, full, random, urandom, tty, ptmx and pseudo-terminals.
    let no_device = LinuxDeviceCgroupBuilder::default()
        .allow(false)
        .access("rwm")
        .build()?;
    let mut devices = vec![no_device];
    for node in &description.devices.nodes {
        let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let one = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(LinuxDeviceType::C)
            .major(number(node.major))
            .minor(number(node.minor))
            .access("rw");
        devices.push(one.build()?);
    }
    let group = description.group.as_ref();
    let limits = |one| group.is_some_and(|group| group.controllers.contains(&one));
    // Processors and disks are shared out by the group above, which also holds the shim.
    let mut resources = LinuxResourcesBuilder::default().devices(devices);
    if limits(Controller::Memory) {
        let limit = i64::try_from(description.memory.0).unwrap_or(i64::MAX);
        // "swap" is memory and swap space together.
        let memory = LinuxMemoryBuilder::default().limit(limit).swap(limit);
        resources = resources.memory(memory.build()?);
    }
    if limits(Controller::Pids) {
        let limit = i64::try_from(description.pids).unwrap_or(i64::MAX);
        resources = resources.pids(LinuxPidsBuilder::default().limit(limit).build()?);
    }
    resources.build()
}

/// Half of the memory, as tmpfs has it of a machine's.
fn shared_memory(memory: Bytes) -> String {
    format!("size={}", memory.0 / 2)
}

fn mounts(description: &Description<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let shared = shared_memory(description.memory);
    // Version 1 has no way to hand a part of a hierarchy over; in version 2 an init makes groups of its own below.
    let version = description.group.as_ref().map(|group| group.version);
    let groups = match version {
        Some(Version::V2) => "rw",
        _ => "ro",
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        )?,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", groups],
        )?,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=1m"],
        )?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "nodev", "mode=1777", &shared],
        )?,
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        )?,
        mount(
            "/run",
            "tmpfs",
            "tmpfs",
            &["nosuid", "nodev", "mode=0755", &shared],
        )?,
        bind(AGENT, description.agent, words(READ_ONLY_BIND))?,
    ];
    if let Some(image) = description.image {
        mounts.push(bind(IMAGE, image, words(READ_ONLY_BIND))?);
    }
    for (node, source) in description.devices.nodes.iter().zip(description.nodes) {
        let options = words(&["bind", "nosuid", "noexec"]);
        mounts.push(bind(&node.path, source, options)?);
    }
    for given in &description.devices.mounts {
        let options = given.options.clone();
        mounts.push(bind(&given.destination, &given.source, options)?);
    }
    Ok(mounts)
}

const READ_ONLY_BIND: &[&str] = &["bind", "ro", "nosuid", "nodev"];

/// A file or directory of the host; `options` say so.
fn bind(destination: &str, source: &Path, options: Vec<String>) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ("bind")
        .source(source)
        .options(options)
        .build()
}

fn mount(
    destination: &str,
    kind: &str,
    source: &str,
    options: &[&str],
) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(destination)
        .typ(kind)
        .source(source)
        .options(words(options))
        .build()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::super::cdi::{self, Node};
    use super::*;

    static PATHS: LazyLock<[PathBuf; 2]> =
        LazyLock::new(|| ["/proc/1/fd/5", "/proc/1/fd/6"].map(PathBuf::from));
    static NONE: Devices = Devices {
        nodes: Vec::new(),
        mounts: Vec::new(),
        variables: Vec::new(),
    };

    fn description(version: Option<Version>) -> Description<'static> {
        Description {
            root: Path::new("/var/lib/fief/alice/root"),
            agent: Path::new("/usr/bin/fief-agent"),
            image: None,
            words: vec!["fief.hostname=alice".to_owned()],
            hostname: "alice",
            ids: IdRange {
                first: 300_000,
                count: 65_536,
            },
            namespaces: &PATHS,
            group: version.map(|version| Group {
                path: "/fief/alice-0/tenant".to_owned(),
                version,
                controllers: vec![Controller::Memory, Controller::Pids],
            }),
            memory: Bytes::from_mib(512),
            pids: 1000,
            devices: &NONE,
            nodes: &[],
        }
    }

    fn json(version: Option<Version>) -> serde_json::Value {
        serde_json::to_value(spec(&description(version)).unwrap()).unwrap()
    }

    fn mounted(spec: &serde_json::Value, at: &str) -> String {
        let mounts = spec["mounts"].as_array().unwrap();
        let found = mounts.iter().find(|mount| mount["destination"] == at);
        found.unwrap()["options"].to_string()
    }

    #[test]
    fn the_image_is_seen_only_if_that_is_asked_for() {
        let all = |image| {
            let description = Description {
                image,
                ..description(None)
            };
            serde_json::to_value(spec(&description).unwrap()).unwrap()
        };
        assert!(!all(None).to_string().contains(IMAGE));
        let seen = mounted(&all(Some(Path::new("/mnt/image"))), IMAGE);
        assert!(seen.contains("\"ro\"") && seen.contains("nodev"), "{seen}");
    }

    #[test]
    fn the_agent_is_the_first_process_and_sudo_works_for_those_after_it() {
        let spec = json(Some(Version::V2));
        let process = &spec["process"];
        assert_eq!(
            process["args"],
            serde_json::json!([AGENT, "--container", "fief.hostname=alice"])
        );
        assert_eq!(process["terminal"], true);
        assert_eq!(process["noNewPrivileges"], false);
        assert_eq!(spec["hostname"], "alice");
        assert_eq!(spec["root"]["path"], "/var/lib/fief/alice/root");
        assert_eq!(spec["root"]["readonly"], false);
        let agent = spec["mounts"].as_array().unwrap().last().unwrap();
        assert_eq!(agent["source"], "/usr/bin/fief-agent");
        assert!(mounted(&spec, AGENT).contains("\"ro\""));
    }

    #[test]
    fn every_namespace_is_the_containers_own_and_its_ids_are_the_range_given() {
        let spec = json(None);
        let linux = &spec["linux"];
        let kinds: Vec<_> = linux["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds,
            ["user", "pid", "mount", "network", "ipc", "uts", "cgroup"]
        );
        // Those that fief makes; the others are the runtime's.
        let all = linux["namespaces"].as_array().unwrap();
        let paths: Vec<_> = all.iter().map(|one| one["path"].as_str()).collect();
        let (user, network) = (Some("/proc/1/fd/5"), Some("/proc/1/fd/6"));
        assert_eq!(paths, [user, None, None, network, None, None, None]);
        let mapping = serde_json::json!([{ "containerID": 0, "hostID": 300_000, "size": 65_536 }]);
        assert_eq!(linux["uidMappings"], mapping);
        assert_eq!(linux["gidMappings"], mapping);
        assert_eq!(linux["rootfsPropagation"], "private");
    }

    #[test]
    fn memory_without_swap_and_processes_are_limited_where_there_is_a_group() {
        let spec = json(Some(Version::V1));
        let resources = &spec["linux"]["resources"];
        let memory = serde_json::json!({ "limit": 512 << 20, "swap": 512 << 20 });
        assert_eq!(resources["memory"], memory);
        assert_eq!(resources["pids"]["limit"], 1000);
        assert_eq!(spec["linux"]["cgroupsPath"], "/fief/alice-0/tenant");
        let free = json(None);
        assert!(free["linux"].get("cgroupsPath").is_none());
        assert!(free["linux"]["resources"].get("memory").is_none());
        // No device but those that every runtime adds, limited or not.
        for spec in [&spec, &free] {
            let devices = &spec["linux"]["resources"]["devices"];
            assert_eq!(
                *devices,
                serde_json::json!([{ "allow": false, "access": "rwm" }])
            );
        }
    }

    #[test]
    fn a_limit_that_the_machine_cannot_enforce_is_left_out_and_the_group_is_named() {
        let with = |controllers: &[Controller]| {
            let mut description = description(Some(Version::V2));
            if let Some(group) = &mut description.group {
                group.controllers = controllers.to_vec();
            }
            let spec = serde_json::to_value(spec(&description).unwrap()).unwrap();
            assert_eq!(spec["linux"]["cgroupsPath"], "/fief/alice-0/tenant");
            let resources = spec["linux"]["resources"].as_object().unwrap();
            ["memory", "pids"].map(|name| resources.contains_key(name))
        };
        assert_eq!(with(&[Controller::Cpu, Controller::Pids]), [false, true]);
        assert_eq!(with(&[Controller::Memory]), [true, false]);
        assert_eq!(with(&[]), [false, false]);
    }

    #[test]
    fn a_device_is_bound_and_allowed_and_nothing_else_of_the_hosts() {
        let devices = Devices {
            nodes: vec![Node {
                path: "/dev/gpu0".to_owned(),
                major: 195,
                minor: 3,
                mode: 0o660,
                uid: 0,
                gid: 44,
            }],
            mounts: vec![cdi::Mount {
                source: PathBuf::from("/opt/driver"),
                destination: "/usr/lib/driver".to_owned(),
                options: words(&["bind", "nosuid", "nodev", "ro"]),
            }],
            variables: vec![("GPU".to_owned(), "0".to_owned())],
        };
        let description = Description {
            devices: &devices,
            nodes: &[PathBuf::from("/mnt/devices/0")],
            ..description(Some(Version::V2))
        };
        let spec = serde_json::to_value(super::spec(&description).unwrap()).unwrap();
        assert_eq!(mounted(&spec, "/dev/gpu0"), r#"["bind","nosuid","noexec"]"#);
        assert_eq!(
            mounted(&spec, "/usr/lib/driver"),
            r#"["bind","nosuid","nodev","ro"]"#
        );
        let allowed = &spec["linux"]["resources"]["devices"][1];
        let expected = serde_json::json!({
            "allow": true, "type": "c", "major": 195, "minor": 3, "access": "rw"
        });
        assert_eq!(*allowed, expected);
        let variables = spec["process"]["env"].as_array().unwrap();
        assert!(variables.contains(&"GPU=0".into()));
    }

    #[test]
    fn groups_can_be_made_inside_where_the_kernel_lets_them_be_handed_over() {
        let options = |version| mounted(&json(version), "/sys/fs/cgroup");
        assert!(options(Some(Version::V2)).contains("\"rw\""));
        assert!(options(Some(Version::V1)).contains("\"ro\""));
        assert!(options(None).contains("\"ro\""));
    }

    #[test]
    fn root_has_what_works_in_its_own_namespaces_and_programs_inherit_nothing() {
        let spec = json(None);
        let capabilities = &spec["process"]["capabilities"];
        let has = |set: &str, name: &str| {
            let all = capabilities[set].as_array().unwrap();
            all.iter().any(|one| one == name)
        };
        for set in ["bounding", "effective", "permitted"] {
            assert_eq!(
                capabilities[set].as_array().unwrap().len(),
                41 - 16,
                "{set}"
            );
            for name in [
                "CAP_SYS_ADMIN",
                "CAP_SYS_BOOT",
                "CAP_NET_ADMIN",
                "CAP_SETUID",
            ] {
                assert!(has(set, name), "{set} lacks {name}");
            }
            for name in ["CAP_SYS_MODULE", "CAP_SYS_TIME", "CAP_SYSLOG", "CAP_BPF"] {
                assert!(!has(set, name), "{set} has {name}");
            }
        }
        for set in ["inheritable", "ambient"] {
            assert!(capabilities[set].as_array().unwrap().is_empty(), "{set}");
        }
    }

    #[test]
    fn what_tells_of_the_host_is_masked_and_the_containers_own_sysctls_stay_open() {
        let spec = json(None);
        let read_only = spec["linux"]["readonlyPaths"].to_string();
        assert!(read_only.contains("\"/proc/irq\"") && !read_only.contains("/proc/sys"));
        let masked = spec["linux"]["maskedPaths"].to_string();
        assert!(masked.contains("\"/proc/kcore\"") && masked.contains("\"/proc/cmdline\""));
        assert!(mounted(&spec, "/sys").contains("\"ro\""));
    }
}
