use super::*;

fn drive(root_device: bool, read_only: bool, partuuid: Option<&str>) -> DriveConfig {
    DriveConfig {
        id: "d".into(),
        path: "/d".into(),
        read_only,
        root_device,
        partuuid: partuuid.map(Into::into),
        writeback: false,
        io_uring: false,
        direct: false,
        queues: 1,
        limits: fief_devices::limiter::Limits::default(),
    }
}

fn text(args: &str, drives: &[DriveConfig]) -> String {
    let line = Cmdline::new(args, drives).unwrap();
    assert_eq!(line.as_bytes().last(), Some(&0));
    assert_eq!(line.len() + 1, line.as_bytes().len());
    String::from_utf8(line.as_bytes()[..line.len()].to_vec()).unwrap()
}

#[test]
fn nothing_is_added_without_a_root_device() {
    assert_eq!(
        text("console=ttyS0  quiet", &[drive(false, false, None)]),
        "console=ttyS0  quiet"
    );
    assert!(Cmdline::new("", &[]).unwrap().is_empty());
}

#[test]
fn the_root_device_is_named_before_the_arguments_of_init() {
    assert_eq!(
        text("quiet", &[drive(true, true, None)]),
        "quiet root=/dev/vda ro"
    );
    assert_eq!(
        text("", &[drive(true, false, Some("ab-1"))]),
        "root=PARTUUID=ab-1 rw"
    );
    assert_eq!(
        text("quiet -- -x y", &[drive(true, false, None)]),
        "quiet root=/dev/vda rw -- -x y"
    );
}

#[test]
fn pci_off_is_dropped() {
    assert_eq!(text("quiet pci=off panic=-1", &[]), "quiet panic=-1");
    assert_eq!(text("pci=offset", &[]), "pci=offset");
}

#[test]
fn a_line_too_long_for_linux_is_refused() {
    assert!(Cmdline::new(&"x".repeat(CMDLINE_MAX - 1), &[]).is_ok());
    let error = Cmdline::new(&"x".repeat(CMDLINE_MAX), &[]).unwrap_err();
    assert_eq!(error, CmdlineError::TooLong { got: CMDLINE_MAX });
    assert!(Cmdline::new(&"x".repeat(CMDLINE_MAX - 5), &[drive(true, true, None)]).is_err());
}

#[test]
fn control_characters_are_refused_with_their_place() {
    assert_eq!(
        Cmdline::new("a\0b", &[]),
        Err(CmdlineError::Character { at: 1 })
    );
    assert_eq!(
        Cmdline::new("ab\n", &[]),
        Err(CmdlineError::Character { at: 2 })
    );
}
