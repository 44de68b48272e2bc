//! The payload with a network interface: the test's thread has a network namespace of its own, and a tap in it.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, ChildStdout, Command};

use fief_tests::waiting;

use super::{Rig, Run};

/// Ethertype for local experiments (IEEE 802), and that of IPv4.
const EXPERIMENT: u16 = 0x88B5;
const IPV4: u16 = 0x0800;

/// Bytes of a virtio-net header as packet sockets have it.
const HEADER: usize = 10;

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// What ends a check of the payload.
const END: &[u8] = b"END";

/// A network namespace for this thread and what it starts, with `tap0` in it. False where the rig's user may not: the tap
/// that is missing is then all there is to see.
fn namespace() -> bool {
    if !nix::unistd::geteuid().is_root() {
        return false;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    ip("tuntap add dev tap0 mode tap");
    // The host's own frames (multicast listener reports) would be counted by rate limits. Not there: no IPv6.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1");
    ip("link set dev tap0 up");
    true
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status();
    assert!(status.expect("ip is installed").success(), "ip {words}");
}

/// A socket that sends and receives frames at `tap0`, each behind a virtio-net header.
struct Wire(OwnedFd);

impl Wire {
    /// For frames of `ethertype`.
    fn new(ethertype: u16) -> Self {
        let yes: libc::c_int = 1;
        // SAFETY: plain system calls; pointers and lengths describe locals, and the descriptor is owned by nobody else.
        unsafe {
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                i32::from(ethertype.to_be()),
            );
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let wire = Self(OwnedFd::from_raw_fd(fd));
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = ethertype.to_be();
            address.sll_ifindex = libc::if_nametoindex(c"tap0".as_ptr()).cast_signed();
            let length = size_of_val(&address) as libc::socklen_t;
            check(libc::bind(fd, (&raw const address).cast(), length));
            let (level, name) = (libc::SOL_PACKET, libc::PACKET_VNET_HDR);
            check(libc::setsockopt(
                fd,
                level,
                name,
                (&raw const yes).cast(),
                4,
            ));
            wire
        }
    }

    /// Sends a frame behind `header`; false if the tap's queue has no room.
    fn send(&self, header: [u8; HEADER], frame: &[u8]) {
        let message = [&header[..], frame].concat();
        // SAFETY: pointer and length describe `message`.
        let sent = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                message.as_ptr().cast(),
                message.len(),
                0,
            )
        };
        // A full queue drops the frame, with or without an error.
        assert!(sent >= 0 || io::Error::last_os_error().raw_os_error() == Some(libc::ENOBUFS));
    }

    /// The next message, header and frame; none if none comes within a tenth of a second.
    fn receive(&self) -> Option<Vec<u8>> {
        let mut entry = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut message = vec![0; 1 << 17];
        // SAFETY: pointers and lengths describe `entry` and `message`.
        let got = unsafe {
            if libc::poll(&mut entry, 1, 100) != 1 {
                return None;
            }
            libc::recv(
                self.0.as_raw_fd(),
                message.as_mut_ptr().cast(),
                message.len(),
                0,
            )
        };
        message.truncate(usize::try_from(got).unwrap());
        Some(message)
    }

    /// The next frame of the guest that `wanted` wants.
    fn wait(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        waiting::until("a frame of the guest", || {
            self.receive().filter(|message| wanted(&message[HEADER..]))
        })
    }
}

fn check(result: libc::c_int) {
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A frame of `ethertype` to the guest.
fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&GUEST[..], &HOST, &ethertype.to_be_bytes(), payload].concat()
}

/// A machine with the tap, whose payload has started its driver.
fn start(rig: &mut Rig, words: &str) -> (Child, BufReader<ChildStdout>, String) {
    rig.interfaces = serde_json::json!([
        { "iface_id": "net0", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01" }
    ]);
    let mut child = rig.start(words, "Sync");
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut console = String::new();
    while !console.contains("READY\n") {
        let length = out.read_line(&mut console).unwrap();
        assert_ne!(length, 0, "ended early: {console}");
    }
    // The kernel notices some time later that somebody is at the tap, and drops what is sent before.
    waiting::until("the tap is up", || {
        let shown = Command::new("ip")
            .args(["link", "show", "dev", "tap0"])
            .output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        shown.contains("state UP").then_some(())
    });
    (child, out, console)
}

fn finish(rig: &Rig, started: (Child, BufReader<ChildStdout>, String)) -> Run {
    let (child, mut out, mut console) = started;
    while out.read_line(&mut console).unwrap() != 0 {}
    rig.finish(child, console)
}

#[test]
fn frames_of_every_size_go_to_the_guest_and_back() {
    let mut rig = Rig::new();
    if !namespace() {
        return;
    }
    let wire = Wire::new(EXPERIMENT);
    let machine = start(&mut rig, "net");
    for length in (1..=1500).step_by(7).chain([1500]) {
        let payload: Vec<u8> = (0..length).map(|i| (i * 7 + length) as u8).collect();
        wire.send([0; HEADER], &frame(EXPERIMENT, &payload));
        let back = wire.wait(|_| true);
        assert_eq!(back[HEADER..HEADER + 6], HOST);
        assert_eq!(back[HEADER + 6..HEADER + 12], GUEST);
        assert_eq!(back[HEADER + 14..], payload);
    }
    wire.send([0; HEADER], &frame(EXPERIMENT, END));
    finish(&rig, machine).passed("net");
}

#[test]
fn segments_are_cut_for_a_guest_that_takes_none_and_come_whole_from_one_that_sends_them() {
    let mut rig = Rig::new();
    if !namespace() {
        return;
    }
    let wire = Wire::new(IPV4);
    let machine = start(&mut rig, "net-offload");
    // 14,000 bytes of TCP to be cut every 1,400, their checksum to be made.
    let mut payload = vec![0x5A; 14_000];
    payload.splice(14_000 - END.len().., END.iter().copied());
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    packet[2..4].copy_from_slice(&14_040_u16.to_be_bytes());
    let mut tcp = vec![0; 20];
    tcp[12..14].copy_from_slice(&[0x50, 0x10]);
    // The checksum field begins with the pseudo header's sum (virtio 1.3 §5.1.6.2).
    let sum: u32 = 0x0A00 + 1 + 0x0A00 + 2 + 6 + 14_020;
    tcp[16..18].copy_from_slice(&u16::try_from(sum).unwrap().to_be_bytes());
    let packet = [packet, tcp, payload].concat();
    let header = [1, 1, 54, 0, 0x78, 5, 34, 0, 16, 0];
    wire.send(header, &frame(IPV4, &packet));
    let back = wire.wait(|frame| frame[6..12] == GUEST);
    let run = finish(&rig, machine);
    run.passed("net-offload");
    assert_eq!(back.len(), HEADER + 54 + 14_000);
    assert_eq!(back[..2], [1, 1], "a TCP segment whose checksum is missing");
    assert_eq!(back[4..HEADER], [0x78, 5, 34, 0, 16, 0]);
}

#[test]
fn a_guest_that_stops_receiving_in_a_flood_goes_on_when_it_has_buffers_again() {
    let mut rig = Rig::new();
    if !namespace() {
        return;
    }
    let wire = Wire::new(EXPERIMENT);
    let says = |word: &'static [u8]| move |frame: &[u8]| frame[14..].starts_with(word);
    let mut machine = start(&mut rig, "net-flood");
    for number in 0..100_u8 {
        wire.send([0; HEADER], &frame(EXPERIMENT, &[number; 100]));
    }
    wire.wait(says(b"FULL"));
    // More than a tap keeps.
    for _ in 0..5000 {
        wire.send([0; HEADER], &frame(EXPERIMENT, &[0xFF; 100]));
    }
    // In place: a file that is made anew is empty for a moment, and the guest reads all the time.
    let disk = File::options().write(true).open(rig.path("disk")).unwrap();
    disk.write_all_at(b"FLOODED", 0).unwrap();
    waiting::until("the guest receives again, or has ended", || {
        wire.send([0; HEADER], &frame(EXPERIMENT, END));
        let received = wire.receive();
        let ended = machine.0.try_wait().unwrap();
        received
            .filter(|message| says(END)(&message[HEADER..]))
            .map(drop)
            .or(ended.map(drop))
    });
    finish(&rig, machine).passed("net-flood");
}

#[test]
fn limits_are_changed_while_the_guest_runs() {
    let mut rig = Rig::new();
    rig.api = true;
    if !namespace() {
        return;
    }
    let wire = Wire::new(EXPERIMENT);
    let machine = start(&mut rig, "net");
    let client = fief_api::Client::new(rig.path("api"));
    let limit = |size| {
        let bucket = fief_api::TokenBucket {
            size,
            one_time_burst: None,
            // Years: what is spent does not come back.
            refill_time: 1 << 40,
        };
        let update = fief_api::PartialNetworkInterface {
            iface_id: "net0".to_owned(),
            rx_rate_limiter: Some(fief_api::RateLimiter {
                bandwidth: None,
                ops: Some(bucket),
            }),
            tx_rate_limiter: None,
        };
        client.patch_network_interface(&update)
    };
    let passes = |number: u8| {
        let back = wire.wait(|_| true);
        assert_eq!(back[HEADER + 14..], [number; 100]);
    };
    limit(3).unwrap();
    for number in 0..10 {
        wire.send([0; HEADER], &frame(EXPERIMENT, &[number; 100]));
    }
    (0..3).for_each(passes);
    assert_eq!(
        wire.receive(),
        None,
        "the limit lets a fourth frame through"
    );
    // Paused or not; a larger one gives what it has more.
    client.pause().unwrap();
    limit(5).unwrap();
    client.resume().unwrap();
    (3..5).for_each(passes);
    assert_eq!(wire.receive(), None, "the limit lets a sixth frame through");
    let shown = client.vm_config().unwrap().network_interfaces;
    let ops = shown[0].rx_rate_limiter.unwrap().ops.unwrap();
    assert_eq!(ops.size, 5);
    // None at all.
    limit(0).unwrap();
    (5..10).for_each(passes);
    wire.send([0; HEADER], &frame(EXPERIMENT, END));
    finish(&rig, machine).passed("net");
}

#[test]
fn a_tap_that_cannot_be_used_is_refused_with_the_reason() {
    let mut rig = Rig::new();
    let mut refused = |tap: &str, why: &str| {
        rig.interfaces = serde_json::json!([{ "iface_id": "net0", "host_dev_name": tap }]);
        let run = rig.run("entry", "Sync");
        run.refused(why);
        assert_eq!(run.console, "");
    };
    refused("nothing", "there is no such interface");
    if !namespace() {
        return;
    }
    refused("nothing", "there is no such interface");
    refused("lo", "it is not a tap device");
    ip("tuntap add dev tun0 mode tun");
    refused("tun0", "it is not a tap device");
    ip("tuntap add dev many mode tap multi_queue");
    refused("many", "of several queues");
    // The control: the same with the tap that is there, which then is taken.
    let machine = start(&mut rig, "net");
    let mut other = Rig::new();
    other.interfaces = rig.interfaces.clone();
    other
        .run("entry", "Sync")
        .refused("another process uses it");
    Wire::new(EXPERIMENT).send([0; HEADER], &frame(EXPERIMENT, END));
    finish(&rig, machine).passed("net");
}
