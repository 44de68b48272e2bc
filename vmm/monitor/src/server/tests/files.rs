//! Configuration files, good and bad.

use std::path::Path;

use fief_api::FullVmConfiguration;

use crate::machine::files::Files;
use crate::server::error::with_causes;
use crate::server::file::{self, FileError, read};

fn parse(text: &[u8]) -> Result<FullVmConfiguration, FileError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vm.json");
    std::fs::write(&path, text).unwrap();
    read(&Files::new(), &path)
}

fn refused(text: &str) -> String {
    let message = with_causes(&parse(text.as_bytes()).unwrap_err());
    assert!(message.contains("vm.json"), "{message}");
    assert!(!message.contains('\n'), "{message}");
    message
}

const GOOD: &str = r#"{
  "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0 pci=off", "initrd_path": null},
  "drives": [{"drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe",
    "is_read_only": false, "path_on_host": "disk", "io_engine": "Sync", "rate_limiter": null, "socket": null}],
  "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false,
    "huge_pages": "None"},
  "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null, "logger": null, "metrics": null,
  "mmds-config": null, "entropy": null, "pmem": [], "memory-hotplug": null
}"#;

#[test]
fn a_file_of_firecrackers_with_its_empty_sections_is_read() {
    let config = parse(GOOD.as_bytes()).unwrap();
    assert_eq!(config.machine_config.unwrap().vcpu_count, 2);
    assert_eq!(config.drives[0].drive_id, "rootfs");
    assert!(config.vsock.is_none());
}

#[test]
fn an_empty_section_of_what_is_not_offered_asks_for_nothing() {
    for empty in ["null", "[]", "{}"] {
        for section in ["cpu-config", "pmem", "metrics"] {
            parse(format!(r#"{{"{section}": {empty}}}"#).as_bytes()).unwrap();
        }
    }
    assert!(refused(r#"{"metrics": {"metrics_path": ""}}"#).contains("'metrics'"));
    assert!(refused(r#"{"metrics": false}"#).contains("'metrics'"));
}

#[test]
fn a_section_that_is_not_offered_is_named() {
    let text = r#"{"pmem":[{"id":"pmem0","path_on_host":"p"}]}"#;
    let message = refused(text);
    assert!(
        message.contains("pmem") && message.contains("remove it"),
        "{message}"
    );
}

#[test]
fn what_is_wrong_is_told_with_its_place() {
    assert!(refused("{\n\"drive\": []}").contains("`drive`"));
    assert!(refused("{\n\"drive\": []}").contains("line 2"));
    assert!(refused("").contains("EOF"));
    assert!(refused("not json").contains("line 1"));
    assert!(refused(r#"{"drives":[{"drive_id":"a"}]}"#).contains("is_root_device"));
    assert!(refused(r#"{"machine-config":{"vcpu_count":-1,"mem_size_mib":1}}"#).contains("-1"));
    assert!(refused(r#"{"drives":{}}"#).contains("sequence"));
    assert!(refused("{} {}").contains("trailing"));
}

#[test]
fn files_that_are_none_are_refused() {
    let missing = read(&Files::new(), Path::new("/no/such/file")).unwrap_err();
    assert!(
        with_causes(&missing).contains("/no/such/file: No such file"),
        "{}",
        with_causes(&missing)
    );
    assert!(read(&Files::new(), Path::new("/")).is_err());
    let large = vec![b' '; (1 << 20) + 1];
    assert!(matches!(parse(&large), Err(FileError::TooLarge(_))));
    assert!(parse(&large[..1 << 20]).is_err());
    assert!(parse(&[0xFF, 0xFE, 0]).is_err());
}

#[test]
fn a_damaged_file_is_an_error_and_never_a_panic() {
    // Every prefix, and every byte changed to a few others.
    for end in 0..GOOD.len() {
        assert!(
            file::parse(&GOOD.as_bytes()[..end], Path::new("x")).is_err(),
            "{end}"
        );
    }
    for at in 0..GOOD.len() {
        for byte in [0, b'"', b'{', b'9', 0xFF] {
            let mut damaged = GOOD.as_bytes().to_vec();
            damaged[at] = byte;
            // Some changes leave a description; all that counts is that each gets an answer.
            if let Err(error) = file::parse(&damaged, Path::new("x")) {
                assert!(!with_causes(&error).is_empty());
            }
        }
    }
}
