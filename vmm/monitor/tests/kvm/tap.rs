//! A real tap, in a network namespace of the test's thread.

use std::io::{ErrorKind, Read};
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use fief_devices::virtio::net::{Tap, TapError};
use fief_vmm::machine::files::Files;

/// A namespace with `tap0`, which packets to 10.0.0.2 go into; false where the rig's user may not make one.
fn namespace() -> bool {
    // SAFETY: unshare takes flags alone, and changes this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return false;
    }
    for words in [
        "tuntap add dev tap0 mode tap",
        "link set dev tap0 up addrgenmode none",
        "address add 10.0.0.1/24 dev tap0",
        "neighbour add 10.0.0.2 lladdr 02:00:00:00:00:01 dev tap0",
    ] {
        let status = Command::new("ip").args(words.split(' ')).status();
        assert!(status.expect("ip is installed").success(), "ip {words}");
    }
    true
}

#[test]
fn frames_that_were_made_for_another_driver_are_dropped() {
    assert!(matches!(
        Tap::new(
            Files::new()
                .open_disk("/dev/null".as_ref(), false, false)
                .unwrap()
        ),
        Err(TapError::NotTap(_))
    ));
    if !namespace() {
        return;
    }
    let file = Files::new().open_tap("tap0").unwrap();
    let mut reader = file.try_clone().unwrap();
    let tap = Tap::new(file).unwrap();
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    let mut frame = [0; 2000];
    // The control: what comes afterwards is there, behind a header of 12 bytes. The kernel notices some time later that
    // somebody is at the tap, and drops what is sent before.
    let length = (0..100_000).find_map(|_| {
        socket.send_to(&[7; 100], "10.0.0.2:9").unwrap();
        std::thread::sleep(Duration::from_millis(10));
        reader.read(&mut frame).ok()
    });
    assert_eq!(length, Some(12 + 14 + 28 + 100));
    assert_eq!(frame[12..18], [2, 0, 0, 0, 0, 1]);
    for offloads in [libc::TUN_F_CSUM, 0] {
        for _ in 0..50 {
            socket.send_to(&[7; 100], "10.0.0.2:9").unwrap();
        }
        tap.set_offloads(offloads).unwrap();
        let error = reader.read(&mut frame).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    assert!(tap.set_offloads(1 << 31).is_err());
}
