//! On a real kernel: each test runs once more in a network namespace of its own, where it is root, without being root here.

use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::super::netlink::attribute;
use super::*;

const INSIDE: &str = "FIEF_AGENT_TEST_INSIDE";
const MAC: [u8; 6] = [2, 10, 99, 0, 0, 2];

/// Whether this is the run inside; outside, runs the test of that name inside and checks that it passes.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let map = format!("0 {} 1", nix::unistd::geteuid());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", &format!("boot::interface::tests::{test}")])
        .env(INSIDE, "1");
    // SAFETY: plain system calls on memory of the child's own.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
            fs::write("/proc/self/uid_map", &map)
        });
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    false
}

/// A pair of interfaces: `t0` with [`MAC`], and `h0`, which is up, as the host's end would be.
fn pair() {
    let mut netlink = Netlink::open().unwrap();
    // IFLA_IFNAME 3, IFLA_LINKINFO 18 { IFLA_INFO_KIND 1, IFLA_INFO_DATA 2 { VETH_INFO_PEER 1 } }, IFLA_ADDRESS 1.
    let peer = [vec![0; 16], attribute(3, b"h0\0")].concat();
    let info = [attribute(1, b"veth"), attribute(2, &attribute(1, &peer))].concat();
    let message = Message::make(libc::RTM_NEWLINK, &[0; 16])
        .with(3, b"t0\0")
        .with(1, &MAC)
        .with(18, &info);
    netlink.request(message).unwrap();
    let host_end = nix::net::if_::if_nametoindex("h0").unwrap();
    netlink.request(up(host_end, None)).unwrap();
}

fn network() -> Network {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    Network {
        mac: MAC,
        addresses: vec![(ip("10.99.0.2"), 32), (ip("fd00:f1ef::2"), 128)],
        gateways: vec![ip("10.99.0.1"), ip("fd00:f1ef::1")],
        dns: Vec::new(),
        mtu: Some(1400),
    }
}

fn read(path: &str) -> String {
    // Not through /sys, which shows the namespace it was mounted in.
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn an_interface_has_its_addresses_and_its_gateway_on_the_link() {
    if !inside("an_interface_has_its_addresses_and_its_gateway_on_the_link") {
        return;
    }
    pair();
    assert_eq!(set_up(&network()), Vec::<String>::new());
    // proc(5): destination and gateway in network order, read as one number; flags up and gateway.
    let route = read("/proc/net/route");
    let gateway = u32::from_ne_bytes([10, 99, 0, 1]);
    let wanted = format!("t0\t00000000\t{gateway:08X}\t0003\t");
    assert!(route.contains(&wanted), "{route}");
    let routes = read("/proc/net/ipv6_route");
    let wanted = format!(
        "{0} 00 {0} 00 fd00f1ef{1}1 ",
        "0".repeat(32),
        "0".repeat(23)
    );
    let found = routes.lines().find(|line| line.starts_with(&wanted));
    assert!(found.is_some_and(|line| line.ends_with("t0")), "{routes}");
    let addresses = read("/proc/net/if_inet6");
    let wanted = format!("fd00f1ef{}2 ", "0".repeat(23));
    let found = addresses.lines().find(|line| line.starts_with(&wanted));
    // Prefix of 128 bits, global scope, no duplicate address detection and not tentative.
    assert!(
        found.is_some_and(|line| line.contains(" 80 00 82 ")),
        "{addresses}"
    );
    assert_eq!(read("/proc/sys/net/ipv6/conf/t0/mtu").trim(), "1400");
    for setting in SWITCHED_OFF {
        let path = format!("/proc/sys/net/ipv6/conf/t0/{setting}");
        assert_eq!(read(&path).trim(), "0", "{setting}");
        // The other one shows what is the default.
        assert_eq!(read(&path.replace("t0", "h0")).trim(), "1", "{setting}");
    }
    // The kernel sends from the address, to anywhere.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").unwrap();
    assert_eq!(socket.local_addr().unwrap().ip().to_string(), "10.99.0.2");
}

#[test]
fn setting_up_twice_is_no_problem() {
    if !inside("setting_up_twice_is_no_problem") {
        return;
    }
    pair();
    assert_eq!(set_up(&network()), Vec::<String>::new());
    assert_eq!(set_up(&network()), Vec::<String>::new());
}

#[test]
fn what_the_kernel_refuses_is_told_and_the_rest_is_done() {
    if !inside("what_the_kernel_refuses_is_told_and_the_rest_is_done") {
        return;
    }
    pair();
    let mut network = network();
    network.gateways.insert(0, IpAddr::from([224, 0, 0, 1]));
    let problems = set_up(&network);
    assert!(
        problems.len() == 1 && problems[0].contains("224.0.0.1"),
        "{problems:?}"
    );
    assert!(read("/proc/net/route").contains("t0\t00000000\t"));
}
