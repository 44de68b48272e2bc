use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use tempfile::TempDir;

use super::super::*;
use super::guest::{CID, Guest};

#[test]
fn something_at_the_path_is_an_error_that_says_what_to_do_and_stays() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("v");
    let make: [fn(&Path); 4] = [
        |path| fs::write(path, "precious").unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| symlink(path.with_file_name("nowhere"), path).unwrap(),
        |path| drop(UnixListener::bind(path).unwrap()),
    ];
    for (i, make) in make.into_iter().enumerate() {
        make(&path);
        let before = fs::symlink_metadata(&path).unwrap().file_type();
        let error = Vsock::new(CID, &path).err().unwrap();
        assert!(matches!(error, VsockError::Taken { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(
            text.contains("remove it") && text.contains("another path"),
            "{text}"
        );
        assert_eq!(fs::symlink_metadata(&path).unwrap().file_type(), before);
        assert!(
            !path.with_file_name("nowhere").exists(),
            "a link was followed"
        );
        if i == 1 {
            fs::remove_dir(&path).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
    }
    Vsock::new(CID, &path).unwrap();
}

#[test]
fn bad_ids_and_paths_are_refused_and_nothing_is_left_behind() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("v");
    for cid in [0, 1, 2, u32::MAX] {
        let error = Vsock::new(cid, &path).err().unwrap();
        assert!(matches!(error, VsockError::GuestCid(c) if c == cid));
    }
    let missing = dir.path().join("missing/v");
    let error = Vsock::new(CID, &missing).err().unwrap();
    assert!(matches!(error, VsockError::Listen { .. }));
    assert!(
        error.to_string().contains("does the directory exist"),
        "{error}"
    );
    let long = PathBuf::from(format!("/tmp/{}", "v".repeat(92)));
    for path in [long, PathBuf::new()] {
        let error = Vsock::new(CID, &path).err().unwrap();
        assert!(matches!(error, VsockError::PathLength { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_socket_is_removed_with_the_device_active_or_not() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("v");
    let device = Vsock::new(CID, &path).unwrap();
    assert!(path.exists());
    drop(device);
    assert!(!path.exists());
    let guest = Guest::new();
    let path = guest.path();
    let dir = guest.dir;
    drop(guest.device);
    assert!(!path.exists());
    drop(dir);
}

#[test]
fn what_took_the_sockets_place_is_not_removed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("v");
    let device = Vsock::new(CID, &path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(device);
    assert!(path.exists());

    let link = dir.path().join("w");
    let device = Vsock::new(CID, &link).unwrap();
    fs::remove_file(&link).unwrap();
    symlink(&path, &link).unwrap();
    drop(device);
    assert!(fs::symlink_metadata(&link).is_ok() && path.exists());
}

#[test]
fn a_bound_listener_is_used_and_left_to_its_owner() {
    let dir = TempDir::new().unwrap();
    let bound = dir.path().join("elsewhere");
    let listener = UnixListener::bind(&bound).unwrap();
    let device = Vsock::with_listener(CID, &dir.path().join("v"), listener).unwrap();
    let mut guest = Guest::around(device, dir, true);
    guest.post_buffers(16, 4096);
    guest.activate();
    use std::io::Write;
    let mut stream = UnixStream::connect(&bound).unwrap();
    stream.write_all(b"CONNECT 3\n").unwrap();
    guest.expect_request(3);
    // Guest connections go by the path.
    let listener = guest.listen(80);
    guest.connect(&listener, (80, 1));
    let dir = guest.dir;
    drop(guest.device);
    assert!(bound.exists());
    drop(dir);
}

#[test]
fn the_configuration_is_the_context_id() {
    let dir = TempDir::new().unwrap();
    let device = Vsock::new(0x1234_5678, &dir.path().join("v")).unwrap();
    let mut bytes = [0xFF; 12];
    device.read_config(0, &mut bytes);
    assert_eq!(bytes, [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut bytes = [0xFF; 3];
    device.read_config(2, &mut bytes);
    assert_eq!(bytes, [0x34, 0x12, 0]);
    for offset in [8, u64::MAX] {
        let mut bytes = [0xFF; 8];
        device.read_config(offset, &mut bytes);
        assert_eq!(bytes, [0; 8]);
    }
    assert_eq!(device.id(), DeviceId::Vsock);
    assert_eq!(device.queue_sizes(), [256, 256, 64]);
    assert_eq!(device.features(), 1);
}
