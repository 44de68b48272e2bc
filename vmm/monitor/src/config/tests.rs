use super::*;

fn drive(id: &str, root_device: bool) -> DriveConfig {
    DriveConfig {
        id: id.to_owned(),
        path: PathBuf::from("disk"),
        read_only: false,
        root_device,
        partuuid: None,
        writeback: false,
        io_uring: false,
        direct: false,
        queues: 1,
        limits: fief_devices::limiter::Limits::default(),
    }
}

fn ids(drives: &[DriveConfig]) -> Vec<&str> {
    drives.iter().map(|drive| drive.id.as_str()).collect()
}

#[test]
fn vcpus_are_one_to_thirty_two_and_even_with_smt() {
    for count in [1, 2, 3, 32] {
        assert_eq!(
            u64::from(CpuConfig::new(count, false).unwrap().count()),
            count
        );
    }
    for count in [0, 33, 256, 257, u64::MAX] {
        assert_eq!(
            CpuConfig::new(count, false),
            Err(ConfigError::VcpuCount(count))
        );
    }
    assert!(CpuConfig::new(1, true).is_ok());
    assert!(CpuConfig::new(4, true).is_ok());
    assert_eq!(CpuConfig::new(3, true), Err(ConfigError::OddSmt(3)));
}

#[test]
fn memory_is_more_than_none_and_no_more_than_the_host_has() {
    let memory = |size, backing| MemoryConfig::new(size, backing, 1000);
    let plain = MemoryBacking::Anonymous { huge: true };
    assert_eq!(memory(0, plain.clone()), Err(ConfigError::NoMemory));
    assert!(memory(1000, plain.clone()).is_ok());
    let beyond = ConfigError::MemoryBeyondHost {
        asked: 1001,
        total: 1000,
    };
    assert_eq!(memory(1001, plain), Err(beyond));
    assert!(memory(128, MemoryBacking::HugeTlb).is_ok());
    assert_eq!(
        memory(127, MemoryBacking::HugeTlb),
        Err(ConfigError::OddHugePages(127))
    );
}

#[test]
fn drive_ids_are_letters_digits_and_underscores() {
    for id in ["rootfs", "a_1", "_", "é"] {
        assert_eq!(drive(id, false).check(), Ok(()), "{id}");
    }
    for id in ["", "a-b", "a/b", "..", "a b", "a\0", "a\n", &"x".repeat(65)] {
        assert!(
            matches!(drive(id, false).check(), Err(ConfigError::DriveId(_))),
            "{id:?}"
        );
    }
}

#[test]
fn a_partition_id_cannot_add_words_to_the_command_line() {
    let with = |partuuid: &str| DriveConfig {
        partuuid: Some(partuuid.to_owned()),
        ..drive("a", true)
    };
    assert_eq!(with("0eaa91a0-01").check(), Ok(()));
    for partuuid in ["", "a init=/bin/sh", "a=b", &"x".repeat(65)] {
        assert!(matches!(
            with(partuuid).check(),
            Err(ConfigError::Partuuid { .. })
        ));
    }
}

#[test]
fn the_root_device_comes_first_and_the_others_keep_their_order() {
    let mut drives = Vec::new();
    for (id, root) in [("a", false), ("b", false), ("root", true), ("c", false)] {
        insert_drive(&mut drives, drive(id, root)).unwrap();
    }
    assert_eq!(ids(&drives), ["root", "a", "b", "c"]);
}

#[test]
fn a_drive_with_a_known_id_replaces_it() {
    let mut drives = vec![drive("a", true), drive("b", false)];
    let changed = DriveConfig {
        read_only: true,
        ..drive("a", true)
    };
    insert_drive(&mut drives, changed.clone()).unwrap();
    assert_eq!(drives, [changed, drive("b", false)]);
    insert_drive(&mut drives, drive("a", false)).unwrap();
    insert_drive(&mut drives, drive("b", true)).unwrap();
    assert_eq!(ids(&drives), ["b", "a"]);
}

#[test]
fn a_second_root_device_is_refused_and_changes_nothing() {
    let mut drives = vec![drive("a", true)];
    let error = insert_drive(&mut drives, drive("b", true)).unwrap_err();
    assert!(error.to_string().contains("drive a is"), "{error}");
    assert_eq!(ids(&drives), ["a"]);
}

#[test]
fn drives_do_not_grow_without_bound() {
    let mut drives = Vec::new();
    for n in 0..MAX_DRIVES {
        insert_drive(&mut drives, drive(&format!("d{n}"), false)).unwrap();
    }
    assert_eq!(
        insert_drive(&mut drives, drive("more", false)),
        Err(ConfigError::TooManyDrives)
    );
    assert_eq!(insert_drive(&mut drives, drive("d0", false)), Ok(()));
}

/// The least that is a machine, with 1 MiB.
fn least() -> VmConfig {
    VmConfig {
        cpus: CpuConfig::new(1, false).unwrap(),
        memory: MemoryConfig::new(1, MemoryBacking::Memfd, 1).unwrap(),
        boot: BootConfig {
            kernel: PathBuf::from("k"),
            initrd: None,
            args: String::new(),
        },
        drives: Vec::new(),
        interfaces: Vec::new(),
        vsock: None,
        entropy: None,
        balloon: None,
        passthrough: Vec::new(),
        serial: SerialConfig::Stdio,
        on_reboot: OnReboot::Exit,
    }
}

#[test]
fn a_balloon_is_no_larger_than_its_guest_and_nothing_of_it_is_pinned() {
    let device = |pins| PassthroughConfig {
        id: "d".to_owned(),
        source: match pins {
            true => Source::Host {
                functions: vec!["01:00.0".parse().unwrap()],
                group: None,
            },
            false => Source::Process { socket: "s".into() },
        },
        peer_access: false,
        allow_no_reset: false,
    };
    let machine = |target_mib, pins| VmConfig {
        balloon: Some(BalloonConfig {
            target_mib,
            deflate_on_oom: true,
            reporting: true,
            statistics: true,
            interval_s: 0,
        }),
        passthrough: vec![device(pins)],
        ..least()
    };
    assert_eq!(machine(1, false).check(), Ok(()));
    let beyond = ConfigError::BalloonBeyondMemory { asked: 2, total: 1 };
    assert_eq!(machine(2, false).check(), Err(beyond));
    let pinned = ConfigError::BalloonWithPinnedMemory;
    assert_eq!(machine(0, true).check(), Err(pinned));
    let without = VmConfig {
        balloon: None,
        ..machine(0, true)
    };
    assert_eq!(without.check(), Ok(()));
    for asked in [1 << 32, (1 << 32) + 1, u64::MAX] {
        assert!(BalloonConfig::target(asked, 1 << 20).is_err());
        assert!(BalloonConfig::interval(asked).is_err());
    }
    assert_eq!(BalloonConfig::interval(65_535), Ok(65_535));
}

#[test]
fn queues_are_at_most_one_a_vcpu() {
    assert_eq!(DriveConfig::queues("a", 32), Ok(32));
    for asked in [0, 33, 65_537] {
        assert!(DriveConfig::queues("a", asked).is_err());
    }
    let machine = |vcpus| VmConfig {
        cpus: CpuConfig::new(vcpus, false).unwrap(),
        drives: vec![DriveConfig {
            queues: 2,
            ..drive("a", true)
        }],
        ..least()
    };
    assert_eq!(machine(2).check(), Ok(()));
    assert!(matches!(
        machine(1).check(),
        Err(ConfigError::QueuesBeyondVcpus { .. })
    ));
}

#[test]
fn context_ids_are_those_that_are_not_reserved() {
    let cid = |cid| VsockConfig::new(cid, PathBuf::from("v"));
    for good in [3, u64::from(u32::MAX) - 1] {
        assert_eq!(u64::from(cid(good).unwrap().guest_cid), good);
    }
    for bad in [0, 2, u64::from(u32::MAX), 1 << 32, (1 << 32) + 3] {
        assert_eq!(cid(bad), Err(ConfigError::GuestCid(bad)));
    }
}

#[test]
fn a_vsock_path_leaves_room_for_a_port() {
    let path = |length| VsockConfig::new(3, PathBuf::from("x".repeat(length)));
    assert!(path(96).is_ok());
    assert_eq!(path(97), Err(ConfigError::SocketPathLength(97)));
    assert_eq!(path(0), Err(ConfigError::EmptyPath { name: "uds_path" }));
}
