use super::*;

pub(crate) fn spec() -> Spec {
    Spec {
        version: VERSION,
        image: "debian".to_owned(),
        artifact: None,
        kernel: KernelChoice::Named("debian".to_owned()),
        kernel_format: KernelFormat::Elf,
        cpus: 1,
        memory: DEFAULT_MEMORY.parse().unwrap(),
        disk: DEFAULT_DISK.parse().unwrap(),
        disks: Vec::new(),
        init: Init::Agent,
        isolation: Isolation::Vm,
        runtime: None,
        allow_unenforced: false,
        gpus: Vec::new(),
        devices: Vec::new(),
        pin_memory: false,
        hostname: "a".to_owned(),
        ssh_keys: Vec::new(),
        keyless_account: false,
        user: None,
        remove: false,
        net: Net::None,
        publish: Vec::new(),
        dns: Vec::new(),
        env: Vec::new(),
        restart: RestartPolicy::No,
        autostart: false,
        limits: Limits::default(),
        log: LogBounds::default(),
    }
}

const TOTAL: Bytes = Bytes::from_mib(4096);

#[test]
fn names_that_are_safe_as_directories_are_taken() {
    for good in ["a", "0", "alice", "a.b-c_d", "x1", &"a".repeat(63)] {
        assert_eq!(good.parse::<TenantName>().unwrap().as_str(), good);
    }
}

#[test]
fn names_that_could_leave_the_directory_or_confuse_are_refused() {
    for bad in [
        "",
        ".",
        "..",
        "a/b",
        "../a",
        "a..b",
        "-a",
        ".a",
        "_a",
        "A",
        "a b",
        "a\n",
        "ä",
        "a\0",
        &"a".repeat(64),
    ] {
        let error = bad.parse::<TenantName>().unwrap_err();
        assert!(error.to_string().contains("a-z"), "{bad}");
    }
    assert!(serde_json::from_str::<TenantName>("\"../x\"").is_err());
}

#[test]
fn every_tenant_has_an_account_name() {
    for (name, login) in [
        ("alice", "alice"),
        ("a.b_c-d", "a-b_c-d"),
        ("3d", "u3d"),
        ("x.", "x-"),
        (&"a".repeat(63), &"a".repeat(32)),
    ] {
        let name: TenantName = name.parse().unwrap();
        assert_eq!(name.login(), login);
        assert!(fief_agent_proto::is_login(&name.login()));
    }
}

#[test]
fn keys_are_public_and_not_too_many() {
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOPXvqWUhSzi20nt9hklbnyJagezvteBUtraBr9+Tcc8 a";
    let with = |ssh_keys: Vec<&str>| Spec {
        ssh_keys: ssh_keys.into_iter().map(str::to_owned).collect(),
        ..spec()
    };
    assert_eq!(with(vec![key, key]).check(TOTAL), Ok(()));
    assert_eq!(with(vec![key, "x"]).check(TOTAL), Err(SpecError::Key(2)));
    let many = with(vec![key; MAX_KEYS + 1]).check(TOTAL);
    assert_eq!(many, Err(SpecError::ManyKeys(MAX_KEYS + 1)));
}

#[test]
fn generated_names_are_names() {
    for _ in 0..200 {
        let name = TenantName::generate().unwrap();
        assert_eq!(name.as_str().parse::<TenantName>().as_ref(), Ok(&name));
        assert!(is_hostname(&name.hostname()));
    }
}

#[test]
fn a_name_with_dots_gives_a_host_name_without() {
    let name: TenantName = "a.b_c-".parse().unwrap();
    assert_eq!(name.hostname(), "a-b-c");
}

#[test]
fn sizes_are_powers_of_1024_in_any_usual_spelling() {
    let mib = Bytes::from_mib(512);
    for text in [
        "512M",
        "512m",
        "512MiB",
        "512MB",
        "512mb",
        "524288K",
        "536870912",
        "536870912b",
    ] {
        assert_eq!(text.parse(), Ok(mib), "{text}");
    }
    assert_eq!("1G".parse(), Ok(Bytes(1 << 30)));
    assert_eq!("2TiB".parse(), Ok(Bytes(2 << 40)));
    assert_eq!("0".parse(), Ok(Bytes(0)));
}

#[test]
fn words_that_are_no_sizes_are_refused() {
    for bad in [
        "",
        "M",
        "-1",
        "1.5G",
        "512 M",
        "1X",
        "1Gi",
        "1Bib",
        "1MM",
        "99999999999999999999",
        "18446744073709551615K",
        "1é",
    ] {
        assert!(bad.parse::<Bytes>().is_err(), "{bad}");
    }
}

#[test]
fn sizes_are_shown_in_the_unit_that_fits() {
    assert_eq!(Bytes(0).to_string(), "0 B");
    assert_eq!(Bytes(1023).to_string(), "1023 B");
    assert_eq!(Bytes::from_mib(512).to_string(), "512 MiB");
    assert_eq!(Bytes(10 << 30).to_string(), "10 GiB");
    assert_eq!(Bytes((1 << 30) + (1 << 29)).to_string(), "1.5 GiB");
    assert_eq!(Bytes(u64::MAX).to_string(), "16777215.9 TiB");
}

#[test]
fn a_spec_comes_back_from_its_json() {
    let text = serde_json::to_string(&spec()).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec());
    assert!(serde_json::from_str::<Spec>(&text.replace("\"cpus\"", "\"cpuz\"")).is_err());
}

#[test]
fn a_spec_of_defaults_is_right() {
    assert_eq!(spec().check(TOTAL), Ok(()));
}

#[test]
fn what_no_machine_can_give_is_refused() {
    let zero = Spec { cpus: 0, ..spec() };
    assert_eq!(zero.check(TOTAL), Err(SpecError::Cpus(0)));
    let many = Spec { cpus: 33, ..spec() };
    assert_eq!(many.check(TOTAL), Err(SpecError::Cpus(33)));
    let little = Spec {
        memory: Bytes(1),
        ..spec()
    };
    assert_eq!(little.check(TOTAL), Err(SpecError::LittleMemory(Bytes(1))));
    let much = Spec {
        memory: Bytes::from_mib(4097),
        ..spec()
    };
    assert!(
        much.check(TOTAL)
            .unwrap_err()
            .to_string()
            .contains("more than the 4 GiB")
    );
}

#[test]
fn what_goes_on_the_kernel_command_line_cannot_add_words_to_it() {
    for bad in ["a b", "a\tinit=/bin/sh", "", "-a", "a-", "a.b"] {
        let spec = Spec {
            hostname: bad.to_owned(),
            ..spec()
        };
        assert_eq!(spec.check(TOTAL), Err(SpecError::Hostname(bad.to_owned())));
    }
    for bad in ["a b", "", "a\nb", "\"a"] {
        let spec = Spec {
            user: Some(bad.to_owned()),
            ..spec()
        };
        assert_eq!(spec.check(TOTAL), Err(SpecError::User(bad.to_owned())));
    }
}

#[test]
fn ports_and_name_servers_want_a_network() {
    let net = || Spec {
        net: Net::Nat,
        publish: vec!["2222:22".parse().unwrap()],
        dns: vec!["192.0.2.53".parse().unwrap()],
        ..spec()
    };
    assert_eq!(net().check(TOTAL), Ok(()));
    let without = Spec {
        net: Net::None,
        ..net()
    };
    assert_eq!(
        without.check(TOTAL),
        Err(SpecError::WithoutNetwork("--publish"))
    );
    let without = Spec {
        publish: vec![],
        ..without
    };
    assert_eq!(
        without.check(TOTAL),
        Err(SpecError::WithoutNetwork("--dns"))
    );
    let mut twice = net();
    twice.publish.push("0.0.0.0:2222:80".parse().unwrap());
    let error = twice.check(TOTAL).unwrap_err().to_string();
    assert!(
        error.contains("127.0.0.1:2222:22") && error.contains("0.0.0.0:2222:80"),
        "{error}"
    );
    for bad in [
        "127.0.0.1",
        "169.254.169.254",
        "::1",
        "fe80::1",
        "224.0.0.1",
        "0.0.0.0",
    ] {
        let server = bad.parse().unwrap();
        let spec = Spec {
            dns: vec![server],
            ..net()
        };
        assert_eq!(spec.check(TOTAL), Err(SpecError::Dns(server)));
    }
}

#[test]
fn a_spec_of_a_fief_that_knew_no_networks_has_one_now() {
    let mut old = serde_json::to_value(spec()).unwrap();
    old.as_object_mut().unwrap().remove("net").unwrap();
    let spec: Spec = serde_json::from_value(old).unwrap();
    assert_eq!(spec.net, Net::Nat);
}

#[test]
fn a_spec_of_an_earlier_fief_gets_the_defaults_of_what_it_does_not_say() {
    let mut old = serde_json::to_value(spec()).unwrap();
    let fields = old.as_object_mut().unwrap();
    for new in ["restart", "autostart", "limits", "log"] {
        fields.remove(new).unwrap();
    }
    assert_eq!(serde_json::from_value::<Spec>(old).unwrap(), spec());
}

#[test]
fn a_tenant_is_removed_at_its_end_or_kept_running_but_not_both() {
    let removed = Spec {
        remove: true,
        ..spec()
    };
    assert_eq!(removed.check(TOTAL), Ok(()));
    let restarted = Spec {
        restart: RestartPolicy::Always,
        ..removed.clone()
    };
    let error = restarted.check(TOTAL).unwrap_err().to_string();
    assert!(
        error.contains("--rm") && error.contains("always"),
        "{error}"
    );
    let autostarted = Spec {
        autostart: true,
        ..removed
    };
    assert_eq!(
        autostarted.check(TOTAL),
        Err(SpecError::RemovedAndAutostarted)
    );
}

#[test]
fn variables_that_no_command_could_be_given_are_refused() {
    let with = |name: &str, value: &str| Spec {
        env: vec![(name.to_owned(), value.to_owned())],
        ..spec()
    };
    assert_eq!(with("A", "b=c").check(TOTAL), Ok(()));
    for (name, value) in [("", "x"), ("A=B", "x"), ("A", "\0")] {
        assert_eq!(
            with(name, value).check(TOTAL),
            Err(SpecError::Variable(name.to_owned()))
        );
    }
    let much = with("A", &"x".repeat(MAX_ENV)).check(TOTAL);
    assert_eq!(much, Err(SpecError::MuchEnv(MAX_ENV + 3)));
}

#[test]
fn pci_devices_are_for_machines_and_each_is_given_once() {
    let device = |address: &str, companions: &[&str]| Device {
        address: address.parse().unwrap(),
        companions: companions.iter().map(|c| c.parse().unwrap()).collect(),
        allow_no_reset: false,
    };
    let check = |isolation, devices: Vec<Device>| {
        let spec = Spec {
            isolation,
            devices,
            ..spec()
        };
        spec.check(Bytes::from_mib(1 << 20))
    };
    let gpu = device("01:00.0", &["01:00.1"]);
    assert_eq!(check(Isolation::Vm, vec![gpu.clone()]), Ok(()));
    let refused = SpecError::DeviceForContainer(gpu.address);
    assert_eq!(check(Isolation::Container, vec![gpu.clone()]), Err(refused));
    let audio = device("01:00.1", &[]);
    let refused = SpecError::SameDevice(audio.address);
    assert_eq!(check(Isolation::Vm, vec![gpu.clone(), audio]), Err(refused));
    let many = (0..17)
        .map(|n| device(&format!("02:{n:02x}.0"), &[]))
        .collect();
    assert_eq!(check(Isolation::Vm, many), Err(SpecError::ManyDevices(17)));
    // Its memory stays where it is, whether or not somebody said so.
    let with = |devices, pin_memory| Spec {
        devices,
        pin_memory,
        ..spec()
    };
    assert!(with(vec![gpu], false).keeps_memory());
    assert!(with(vec![], true).keeps_memory());
    assert!(!with(vec![], false).keeps_memory());
}
