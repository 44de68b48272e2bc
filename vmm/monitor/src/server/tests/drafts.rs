//! Wire types into config types.

use std::path::{Path, PathBuf};

use fief_api::{
    BootSource, CacheType, Drive, Entropy, FullVmConfiguration, HugePages, IoEngine, Lifecycle,
    MachineConfiguration, MachineConfigurationUpdate, NetworkInterface, OnReboot,
    PartialNetworkInterface, RateLimiter, Serial, SerialDestination, TokenBucket, Vsock,
};
use fief_devices::limiter::Limits;

use super::rig::HOST_MIB;
use crate::config::{self, MemoryBacking, SerialConfig};
use crate::machine::files::Files;
use crate::server::draft::{DEFAULT_BOOT_ARGS, Draft};
use crate::server::error::RequestError;

struct Desk {
    dir: tempfile::TempDir,
    draft: Draft,
}

impl Desk {
    /// With a kernel.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let draft = Draft::new(Files::new(), HOST_MIB).unwrap();
        let mut desk = Self { dir, draft };
        desk.put_boot(None).unwrap();
        desk
    }

    fn file(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::write(&path, "content").unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn put_boot(&mut self, boot_args: Option<&str>) -> Result<(), RequestError> {
        let source = BootSource {
            kernel_image_path: self.file("kernel"),
            initrd_path: Some(self.file("initrd")),
            boot_args: boot_args.map(str::to_owned),
        };
        self.draft.put_boot(source)
    }

    fn args(&self) -> String {
        self.draft.finish().unwrap().boot.args
    }
}

fn machine(vcpu_count: u64, mem_size_mib: u64) -> MachineConfiguration {
    MachineConfiguration {
        vcpu_count,
        mem_size_mib,
        ..MachineConfiguration::default()
    }
}

fn limits(size: u64) -> RateLimiter {
    let bucket = TokenBucket {
        size,
        one_time_burst: None,
        refill_time: 100,
    };
    RateLimiter {
        bandwidth: Some(bucket),
        ops: None,
    }
}

#[test]
fn the_least_that_can_be_configured_is_a_kernel() {
    let desk = Desk::new();
    let config = desk.draft.finish().unwrap();
    assert_eq!((config.cpus.count(), config.memory.size_mib), (1, 128));
    assert_eq!(
        config.memory.backing,
        MemoryBacking::Anonymous { huge: true }
    );
    assert_eq!(config.serial, SerialConfig::Stdio);
    assert_eq!(config.on_reboot, config::OnReboot::Exit);
    assert_eq!(config.boot.args, DEFAULT_BOOT_ARGS);
    let empty = Draft::new(Files::new(), HOST_MIB).unwrap();
    assert!(matches!(empty.finish(), Err(RequestError::NoKernel)));
}

#[test]
fn a_refused_machine_configuration_changes_nothing() {
    let mut desk = Desk::new();
    desk.draft.put_machine(machine(4, 256)).unwrap();
    let with = |change: fn(&mut MachineConfiguration)| {
        let mut machine = machine(4, 256);
        change(&mut machine);
        machine
    };
    for refused in [
        machine(0, 256),
        machine(33, 256),
        machine(1, 0),
        machine(1, HOST_MIB + 1),
        machine(1, u64::MAX),
        with(|m| (m.smt, m.vcpu_count) = (true, 3)),
        with(|m| m.cpu_template = Some("T2".to_owned())),
        with(|m| m.track_dirty_pages = true),
        with(|m| (m.huge_pages, m.mem_size_mib) = (HugePages::Hugetlbfs2M, 127)),
    ] {
        assert!(
            desk.draft.put_machine(refused.clone()).is_err(),
            "{refused:?}"
        );
        assert_eq!(desk.draft.machine(), &machine(4, 256));
        assert_eq!(desk.draft.finish().unwrap().cpus.count(), 4);
    }
}

#[test]
fn a_patch_is_judged_together_with_what_it_keeps() {
    let mut desk = Desk::new();
    desk.draft.put_machine(machine(3, 256)).unwrap();
    let smt = MachineConfigurationUpdate {
        smt: Some(true),
        ..MachineConfigurationUpdate::default()
    };
    assert!(desk.draft.patch_machine(smt.clone()).is_err());
    let both = MachineConfigurationUpdate {
        vcpu_count: Some(4),
        ..smt
    };
    desk.draft.patch_machine(both).unwrap();
    let config = desk.draft.finish().unwrap();
    assert!(config.cpus.smt());
    assert_eq!(config.memory.size_mib, 256);
    let nothing = MachineConfigurationUpdate::default();
    assert!(matches!(
        desk.draft.patch_machine(nothing),
        Err(RequestError::EmptyUpdate)
    ));
}

#[test]
fn huge_pages_become_a_backing() {
    let mut desk = Desk::new();
    for (huge_pages, backing) in [
        (HugePages::None, MemoryBacking::Anonymous { huge: false }),
        (
            HugePages::Transparent,
            MemoryBacking::Anonymous { huge: true },
        ),
        (HugePages::Hugetlbfs2M, MemoryBacking::HugeTlb),
    ] {
        let machine = MachineConfiguration {
            huge_pages,
            cpu_template: Some("None".to_owned()),
            ..machine(1, 128)
        };
        desk.draft.put_machine(machine).unwrap();
        assert_eq!(desk.draft.finish().unwrap().memory.backing, backing);
    }
}

#[test]
fn kernel_and_initrd_must_be_regular_files_that_are_there() {
    let mut desk = Desk::new();
    let before = desk.draft.finish().unwrap().boot;
    let directory = desk.dir.path().to_str().unwrap().to_owned();
    let (kernel, missing) = (desk.file("kernel"), desk.path("missing"));
    let source = |kernel: &str, initrd: Option<&str>| BootSource {
        kernel_image_path: kernel.to_owned(),
        initrd_path: initrd.map(str::to_owned),
        boot_args: None,
    };
    for (source, named) in [
        (source(&missing, None), "kernel"),
        (source(&directory, None), "kernel"),
        (source("", None), "kernel"),
        (source("/dev/null", None), "kernel"),
        (source(&kernel, Some(&missing)), "initrd"),
        (source("a\0b", None), "kernel"),
    ] {
        let error = desk.draft.put_boot(source).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
        assert_eq!(desk.draft.finish().unwrap().boot, before);
    }
}

#[test]
fn command_lines_are_checked_and_freed_of_pci_off() {
    let mut desk = Desk::new();
    desk.put_boot(Some("console=ttyS0 pci=off panic=1"))
        .unwrap();
    assert_eq!(desk.args(), "console=ttyS0 panic=1");
    desk.put_boot(Some("")).unwrap();
    assert_eq!(desk.args(), "");
    assert!(desk.put_boot(Some("a\nb")).is_err());
    assert!(desk.put_boot(Some("a\0b")).is_err());
    assert!(desk.put_boot(Some(&"x".repeat(2048))).is_err());
    assert!(desk.put_boot(Some(&"x".repeat(2047))).is_ok());
}

#[test]
fn drives_become_what_was_asked_for() {
    let mut desk = Desk::new();
    let drive = Drive {
        is_root_device: true,
        is_read_only: true,
        partuuid: Some("0eaa91a0-01".to_owned()),
        cache_type: CacheType::Writeback,
        io_engine: IoEngine::Async,
        rate_limiter: Some(limits(0)),
        ..Drive::new("root", desk.file("disk"))
    };
    desk.draft.put_drive(drive).unwrap();
    desk.draft
        .put_drive(Drive {
            partuuid: Some("ignored: no root device".to_owned()),
            ..Drive::new("data", desk.file("data"))
        })
        .unwrap();
    let config = desk.draft.finish().unwrap();
    let [root, data] = config.drives.as_slice() else {
        panic!("{:?}", config.drives);
    };
    assert!(root.read_only && root.writeback && root.io_uring && root.root_device && !root.direct);
    assert_eq!(root.partuuid.as_deref(), Some("0eaa91a0-01"));
    assert!(!data.read_only && !data.writeback && !data.io_uring && data.partuuid.is_none());
    assert_eq!(data.path, PathBuf::from(desk.path("data")));
    assert_eq!(desk.draft.whole().drives[0].drive_id, "root");
}

#[test]
fn drives_that_cannot_be_are_refused_and_change_nothing() {
    let mut desk = Desk::new();
    let disk = desk.file("disk");
    desk.draft.put_drive(Drive::new("a", &*disk)).unwrap();
    let before = (desk.draft.finish().unwrap(), desk.draft.whole());
    let directory = desk.dir.path().to_str().unwrap().to_owned();
    let with = |change: &dyn Fn(&mut Drive)| {
        let mut drive = Drive::new("b", &*disk);
        change(&mut drive);
        drive
    };
    for refused in [
        with(&|d| d.drive_id = "a/b".to_owned()),
        with(&|d| d.drive_id = String::new()),
        with(&|d| d.path_on_host = None),
        with(&|d| d.path_on_host = Some(String::new())),
        with(&|d| d.path_on_host = Some("/no/such/disk".to_owned())),
        with(&|d| d.path_on_host = Some(directory.clone())),
        with(&|d| d.path_on_host = Some("/dev/null".to_owned())),
        with(&|d| d.socket = Some("s".to_owned())),
        with(&|d| d.num_queues = 0),
        with(&|d| d.num_queues = 65_537),
        with(&|d| (d.is_root_device, d.partuuid) = (true, Some("x y".to_owned()))),
    ] {
        assert!(
            desk.draft.put_drive(refused.clone()).is_err(),
            "{refused:?}"
        );
        assert_eq!((desk.draft.finish().unwrap(), desk.draft.whole()), before);
    }
}

#[test]
fn vsock_needs_a_free_path_in_a_directory_that_is_there() {
    let mut desk = Desk::new();
    let vsock = |guest_cid, uds_path: String| Vsock {
        guest_cid,
        uds_path,
        vsock_id: None,
    };
    let taken = desk.file("taken");
    let dangling = desk.path("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    for refused in [
        vsock(2, desk.path("v")),
        vsock(1 << 32, desk.path("v")),
        vsock(3, taken),
        vsock(3, dangling),
        vsock(3, desk.path("no/v")),
        vsock(3, "..".to_owned()),
        vsock(3, String::new()),
        vsock(3, format!("/{}", "x".repeat(200))),
    ] {
        assert!(
            desk.draft.put_vsock(refused.clone()).is_err(),
            "{refused:?}"
        );
        assert!(desk.draft.finish().unwrap().vsock.is_none());
    }
    desk.draft.put_vsock(vsock(3, desk.path("v"))).unwrap();
    desk.draft.put_vsock(vsock(4, desk.path("w"))).unwrap();
    let config = desk.draft.finish().unwrap().vsock.unwrap();
    assert_eq!(
        (config.guest_cid, config.uds_path),
        (4, PathBuf::from(desk.path("w")))
    );
    assert!(
        !Path::new(&desk.path("w")).exists(),
        "the machine makes the socket, not the request"
    );
}

#[test]
fn serial_goes_where_it_is_told_to() {
    let mut desk = Desk::new();
    let out = desk.path("out");
    let serial = |destination, path: Option<&str>| Serial {
        destination,
        serial_out_path: path.map(str::to_owned),
        rate_limiter: None,
    };
    use SerialDestination::{File, Pty, Stdio};
    for (wire, expected) in [
        (
            serial(None, Some(&out)),
            SerialConfig::File(PathBuf::from(&out)),
        ),
        (
            serial(Some(File), Some(&out)),
            SerialConfig::File(PathBuf::from(&out)),
        ),
        (serial(Some(Pty), None), SerialConfig::Pty),
        (serial(Some(Stdio), None), SerialConfig::Stdio),
        (serial(None, None), SerialConfig::Stdio),
    ] {
        desk.draft.put_serial(wire).unwrap();
        assert_eq!(desk.draft.finish().unwrap().serial, expected);
    }
    let mut limited = serial(None, None);
    limited.rate_limiter = limits(1).bandwidth;
    for refused in [
        serial(Some(File), None),
        serial(Some(Pty), Some(&out)),
        serial(Some(Stdio), Some(&out)),
        serial(None, Some("/no/such/out")),
        limited,
    ] {
        assert!(
            desk.draft.put_serial(refused.clone()).is_err(),
            "{refused:?}"
        );
    }
}

#[test]
fn reboot_and_entropy_are_off_until_asked_for() {
    let mut desk = Desk::new();
    assert!(desk.draft.finish().unwrap().entropy.is_none());
    desk.draft.put_entropy(Entropy::default()).unwrap();
    desk.draft.put_lifecycle(Lifecycle {
        on_reboot: OnReboot::Restart,
    });
    let config = desk.draft.finish().unwrap();
    assert_eq!(config.entropy, Some(Limits::default()));
    assert_eq!(config.on_reboot, config::OnReboot::Restart);
}

#[test]
fn a_whole_description_can_be_put_as_it_was_shown() {
    let mut desk = Desk::new();
    let disk = desk.file("disk");
    desk.draft.put_drive(Drive::new("a", &*disk)).unwrap();
    desk.draft.put_machine(machine(2, 300)).unwrap();
    let shown = desk.draft.whole();
    let json = serde_json::to_string(&shown).unwrap();
    let read: FullVmConfiguration = serde_json::from_str(&json).unwrap();
    let mut copy = Draft::new(Files::new(), HOST_MIB).unwrap();
    copy.put_all(read).unwrap();
    assert_eq!(copy.finish().unwrap(), desk.draft.finish().unwrap());
    assert_eq!(copy.whole(), shown);
}

#[test]
fn a_whole_description_with_the_same_drive_twice_is_refused() {
    let mut desk = Desk::new();
    let drive = Drive::new("a", desk.file("disk"));
    let whole = FullVmConfiguration {
        drives: vec![drive.clone(), drive],
        ..FullVmConfiguration::default()
    };
    assert!(desk.draft.put_all(whole).is_err());
}

#[test]
fn limits_become_buckets_and_those_of_zero_none() {
    let mut desk = Desk::new();
    let limited = Drive {
        rate_limiter: Some(limits(7)),
        ..Drive::new("a", desk.file("disk"))
    };
    let open = Drive {
        rate_limiter: Some(limits(0)),
        ..Drive::new("b", desk.file("disk"))
    };
    desk.draft.put_drive(limited).unwrap();
    desk.draft.put_drive(open).unwrap();
    let entropy = Entropy {
        rate_limiter: Some(limits(7)),
    };
    desk.draft.put_entropy(entropy).unwrap();
    let config = desk.draft.finish().unwrap();
    let bucket = limits(7).bandwidth.unwrap();
    let limit = config.drives[0].limits.bandwidth.unwrap();
    assert_eq!(
        (limit.size, limit.refill_time),
        (bucket.size, bucket.refill_time)
    );
    assert_eq!(limit.one_time_burst, bucket.one_time_burst.unwrap_or(0));
    assert_eq!(config.drives[1].limits, Limits::default());
    assert_eq!(config.entropy, Some(config.drives[0].limits));
}

#[test]
fn a_drive_is_removed_before_the_start() {
    let mut desk = Desk::new();
    for id in ["a", "b"] {
        let drive = Drive {
            is_root_device: id == "a",
            ..Drive::new(id, desk.file("disk"))
        };
        desk.draft.put_drive(drive).unwrap();
    }
    assert!(desk.draft.remove_drive("c").is_err());
    assert_eq!(desk.draft.finish().unwrap().drives.len(), 2);
    desk.draft.remove_drive("a").unwrap();
    assert_eq!(desk.draft.whole().drives[0].drive_id, "b");
    assert_eq!(desk.draft.finish().unwrap().drives.len(), 1);
    let mut whole = desk.draft.whole();
    whole.releasing.push("b".to_owned());
    assert!(
        Draft::new(Files::new(), HOST_MIB)
            .unwrap()
            .put_all(whole)
            .is_err()
    );
}

/// Taps need rights that these tests do not ask for; the payload rig has some.
#[test]
fn an_interface_at_a_tap_that_is_not_there_is_refused_and_changes_nothing() {
    let mut desk = Desk::new();
    let before = (desk.draft.finish().unwrap(), desk.draft.whole());
    let with = |change: &dyn Fn(&mut NetworkInterface)| {
        let mut interface = NetworkInterface::new("a", "fief-test-none");
        change(&mut interface);
        interface
    };
    for (refused, why) in [
        (with(&|_| ()), "there is no such interface"),
        (with(&|i| i.iface_id = "a-b".to_owned()), "interface id"),
        (
            with(&|i| i.host_dev_name = "a/b".to_owned()),
            "host_dev_name",
        ),
        (with(&|i| i.guest_mac = Some("x".to_owned())), "guest_mac"),
        (with(&|i| i.mtu = Some(67)), "mtu"),
    ] {
        let error = desk.draft.put_interface(refused.clone()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!((desk.draft.finish().unwrap(), desk.draft.whole()), before);
    }
}

#[test]
fn an_update_of_limits_replaces_the_buckets_that_it_names() {
    let mut desk = Desk::new();
    let bucket = |size| TokenBucket {
        size,
        one_time_burst: None,
        refill_time: 1,
    };
    let limiter = |bandwidth: Option<u64>, ops: Option<u64>| RateLimiter {
        bandwidth: bandwidth.map(bucket),
        ops: ops.map(bucket),
    };
    desk.draft.remember_interface(NetworkInterface {
        rx_rate_limiter: Some(limiter(Some(1), Some(2))),
        ..NetworkInterface::new("a", "tap0")
    });
    let before = desk.draft.whole();
    let update = |id: &str, rx, tx| PartialNetworkInterface {
        iface_id: id.to_owned(),
        rx_rate_limiter: rx,
        tx_rate_limiter: tx,
    };
    let nobody = desk.draft.limited_interface(update("b", None, None));
    assert!(matches!(nobody, Err(RequestError::NoInterface(id)) if id == "b"));
    let updated = desk.draft.limited_interface(update(
        "a",
        Some(limiter(None, Some(0))),
        Some(limiter(Some(3), None)),
    ));
    let updated = updated.unwrap();
    assert_eq!(updated.rx_rate_limiter, Some(limiter(Some(1), Some(0))));
    assert_eq!(updated.tx_rate_limiter, Some(limiter(Some(3), None)));
    // Only what was carried out is shown.
    assert_eq!(desk.draft.whole(), before);
    desk.draft.remember_interface(updated.clone());
    assert_eq!(desk.draft.whole().network_interfaces, [updated]);
}
