use super::*;

fn refused(arguments: &[&str]) -> String {
    let arguments = std::iter::once(&"fief-vmm").chain(arguments);
    let instead = parse(arguments).unwrap_err();
    assert_eq!(instead.code, exit_code::BAD_ARGUMENTS);
    assert_eq!(instead.text.lines().count(), 1, "{}", instead.text);
    instead.text
}

#[test]
fn the_defaults_are_firecrackers() {
    let args = parse(["fief-vmm"]).unwrap();
    assert_eq!(args.api_sock, PathBuf::from("/run/firecracker.socket"));
    assert_eq!(args.id, "anonymous-instance");
    assert_eq!(args.http_api_max_payload_size, 51_200);
    assert!(!args.no_api && args.config_file.is_none() && args.level.is_none());
}

#[test]
fn firecrackers_flags_are_taken() {
    let args = parse([
        "fief-vmm",
        "--api-sock",
        "a",
        "--config-file",
        "c",
        "--no-api",
        "--id",
        "vm-1",
        "--log-path",
        "l",
        "--level",
        "WARN",
        "--show-level",
        "--show-log-origin",
        "--module",
        "m",
        "--start-time-us",
        "1",
        "--start-time-cpu-us",
        "2",
        "--parent-cpu-time-us",
        "3",
        "--boot-timer",
        "--enable-pci",
        "--http-api-max-payload-size",
        "100",
    ])
    .unwrap();
    assert_eq!(args.level, Some(LogLevel::Warning));
    assert_eq!(args.http_api_max_payload_size, 100);
    assert!(args.no_api && args.enable_pci);
}

#[test]
fn wrong_flags_are_told_in_one_line() {
    assert!(refused(&["--confg-file", "x"]).contains("--config-file"));
    assert!(refused(&["--no-api"]).contains("not provided: --config-file"));
    assert!(refused(&["--level", "loud"]).contains("loud"));
    assert!(refused(&["--id", "a/b"]).contains("letters, digits and dashes"));
    assert!(refused(&["--id", ""]).contains("--id"));
    assert!(refused(&["--http-api-max-payload-size", "-1"]).contains("-1"));
    assert!(refused(&["--start-time-us", "soon"]).contains("soon"));
    assert!(refused(&["extra"]).contains("extra"));
    assert!(refused(&["--api-sock"]).contains("--api-sock"));
}

#[test]
fn help_and_version_are_no_errors() {
    for flag in ["--help", "--version"] {
        let instead = parse(["fief-vmm", flag]).unwrap_err();
        assert_eq!(instead.code, exit_code::OK);
        assert!(instead.text.contains("fief-vmm"));
    }
}

#[test]
fn device_nodes_that_are_passed_have_a_whole_path_and_a_free_descriptor() {
    let passed = |text: &str| parse(["fief-vmm", "--device-fd", text]).map(|args| args.device_fds);
    let expected = DeviceFd {
        path: "/dev/vfio/7".into(),
        descriptor: 12,
    };
    assert_eq!(passed("/dev/vfio/7=12").unwrap(), [expected]);
    for wrong in [
        "/dev/kvm",
        "/dev/kvm=",
        "/dev/kvm=2",
        "/dev/kvm=-1",
        "kvm=5",
        "=5",
        "/dev/kvm=5x",
    ] {
        let said = passed(wrong).unwrap_err();
        assert_eq!(said.code, exit_code::BAD_ARGUMENTS, "{wrong}");
        assert!(said.text.contains("descriptor above 2"), "{}", said.text);
    }
}
