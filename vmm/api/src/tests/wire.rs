use crate::*;

fn refused<T: serde::de::DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
    serde_json::from_str::<T>(json).unwrap_err().to_string()
}

#[test]
fn unknown_fields_are_refused_by_name() {
    assert!(refused::<Vm>(r#"{"state":"Paused","stat":1}"#).contains("`stat`"));
    assert!(
        refused::<BootSource>(r#"{"kernel_image_path":"k","kernel":"x"}"#).contains("`kernel`")
    );
    let message = refused::<FullVmConfiguration>(r#"{"drive":[]}"#);
    assert!(
        message.contains("`drive`") && message.contains("`drives`"),
        "{message}"
    );
    let nested = refused::<FullVmConfiguration>(
        r#"{"drives":[{"drive_id":"a","is_root_device":true,"x":1}]}"#,
    );
    assert!(nested.contains("`x`"), "{nested}");
}

#[test]
fn a_machine_configuration_needs_both_sizes_and_defaults_the_rest() {
    let config: MachineConfiguration =
        serde_json::from_str(r#"{"vcpu_count":2,"mem_size_mib":512}"#).unwrap();
    let expected = MachineConfiguration {
        vcpu_count: 2,
        mem_size_mib: 512,
        ..MachineConfiguration::default()
    };
    assert_eq!(config, expected);
    assert!(refused::<MachineConfiguration>(r#"{"vcpu_count":2}"#).contains("mem_size_mib"));
}

#[test]
fn numbers_that_are_none_are_refused() {
    for number in [
        "-1",
        "1.5",
        "\"1\"",
        "null",
        "1e400",
        "18446744073709551616",
    ] {
        refused::<MachineConfiguration>(&format!(r#"{{"vcpu_count":{number},"mem_size_mib":1}}"#));
    }
}

#[test]
fn an_update_changes_what_it_names_and_keeps_the_rest() {
    let base = MachineConfiguration {
        smt: true,
        cpu_template: Some("None".to_owned()),
        ..MachineConfiguration::default()
    };
    let update: MachineConfigurationUpdate =
        serde_json::from_str(r#"{"mem_size_mib":1024}"#).unwrap();
    assert!(!update.is_empty());
    let changed = update.apply_to(&base);
    assert_eq!(changed.mem_size_mib, 1024);
    assert_eq!(
        MachineConfiguration {
            mem_size_mib: 128,
            ..changed
        },
        base
    );
    let nothing: MachineConfigurationUpdate = serde_json::from_str("{}").unwrap();
    assert!(nothing.is_empty());
}

#[test]
fn a_drive_as_firecracker_prints_it_is_read() {
    let drive: Drive = serde_json::from_str(
        r#"{"drive_id":"rootfs","partuuid":null,"is_root_device":true,"cache_type":"Unsafe","is_read_only":null,
            "path_on_host":"disk","rate_limiter":null,"io_engine":null,"socket":null}"#,
    )
    .unwrap();
    let expected = Drive {
        is_root_device: true,
        ..Drive::new("rootfs", "disk")
    };
    assert_eq!(drive, expected);
}

#[test]
fn log_levels_are_read_in_any_case() {
    for (word, level) in [
        ("off", LogLevel::Off),
        ("ERROR", LogLevel::Error),
        ("warn", LogLevel::Warning),
        ("Warning", LogLevel::Warning),
        ("tRaCe", LogLevel::Trace),
    ] {
        let logger: Logger = serde_json::from_str(&format!(r#"{{"level":"{word}"}}"#)).unwrap();
        assert_eq!(logger.level, Some(level));
    }
    assert!(refused::<Logger>(r#"{"level":"loud"}"#).contains("loud"));
}

#[test]
fn a_bucket_limits_only_with_size_and_time() {
    let bucket = |size, refill_time| TokenBucket {
        size,
        one_time_burst: None,
        refill_time,
    };
    assert!(bucket(1, 1).limits());
    assert!(!bucket(0, 1).limits());
    assert!(!bucket(1, 0).limits());
    let limiter = RateLimiter {
        bandwidth: Some(bucket(0, 0)),
        ops: Some(bucket(1, 1)),
    };
    assert!(limiter.limits());
    assert!(!RateLimiter::default().limits());
}

#[test]
fn paths_are_found_whatever_the_slashes_around_them() {
    assert_eq!(
        Endpoint::find("GET", "//vm/config/"),
        Ok(Endpoint::GetVmConfig)
    );
    assert_eq!(Endpoint::find("GET", ""), Ok(Endpoint::DescribeInstance));
    assert_eq!(
        Endpoint::find("PUT", "/drives/a"),
        Ok(Endpoint::PutDrive("a".to_owned()))
    );
}

#[test]
fn a_path_that_is_not_there_is_told_from_a_method_it_does_not_take() {
    let message = |method, path| Endpoint::find(method, path).unwrap_err().to_string();
    assert!(message("GET", "/vsock").contains("takes PUT"));
    assert!(message("DELETE", "/machine-config").contains("GET, PUT, PATCH"));
    assert!(message("GET", "/drives/a").contains("PUT, PATCH"));
    assert!(message("PUT", "/drives/").contains("/drives/ID"));
    assert!(message("GET", "/nowhere").contains("/nowhere"));
    assert!(message("DELETE", "/balloon").contains("GET, PUT, PATCH"));
    assert!(message("PATCH", "/balloon/hinting/start").contains("does not offer"));
    assert!(message("GET", "/balloon/hinting/status").contains("does not offer"));
    assert!(message("GET", "/vm/config/more").contains("no /vm/config/more"));
    assert!(message("GET", "/network-interfaces/a").contains("PUT, PATCH"));
    assert!(message("PUT", "/network-interfaces").contains("/network-interfaces/ID"));
    assert!(message("PUT", "/pmem/a").contains("Firecracker"));
    assert!(
        message("GET", &"x".repeat(10_000)).len() < 300,
        "a long path is not repeated"
    );
}
