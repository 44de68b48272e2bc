//! The tenant's one network interface: addresses of its own alone, and a gateway on the link.

use std::fs;
use std::io;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

use super::netlink::{Message, Netlink};
use super::wait_for;
use crate::settings::Network;

/// What the kernel must not do by itself with IPv6: routers and prefixes that somebody advertises are not fief's.
const SWITCHED_OFF: [&str; 2] = ["accept_ra", "autoconf"];

/// linux/rtnetlink.h: RTNH_F_ONLINK.
const ON_LINK: u32 = 4;

/// Brings the interface up with what the settings say; what did not work, each in a line. The tenant starts without.
pub fn set_up(network: &Network) -> Vec<String> {
    let Some((name, index)) = wait_for(|| find(network.mac)) else {
        return vec![format!(
            "no interface has the address {}; a machine needs virtio_net in its kernel or initramfs",
            network.mac.map(|byte| format!("{byte:02x}")).join(":")
        )];
    };
    let mut problems: Vec<String> = SWITCHED_OFF
        .iter()
        .filter_map(|setting| switch_off(&name, setting).err())
        .collect();
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return vec![format!("netlink: {error}")],
    };
    let mut ask = |what: String, message| {
        if let Err(error) = netlink.request(message) {
            problems.push(format!("{what}: {error}"));
        }
    };
    ask(format!("{name} does not come up"), up(index, network.mtu));
    for &(address, prefix) in &network.addresses {
        ask(
            format!("the address {address}/{prefix}"),
            add_address(index, address, prefix),
        );
    }
    for &gateway in &network.gateways {
        ask(
            format!("the route by {gateway}"),
            default_route(index, gateway),
        );
    }
    problems
}

/// Name and number of the interface with an Ethernet address.
fn find(mac: [u8; 6]) -> Option<(String, u32)> {
    getifaddrs().ok()?.find_map(|interface| {
        let link = *interface.address.as_ref()?.as_link_addr()?;
        let index = u32::try_from(link.ifindex()).ok()?;
        (link.addr() == Some(mac)).then_some((interface.interface_name, index))
    })
}

fn switch_off(interface: &str, setting: &str) -> Result<(), String> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/{setting}");
    // In a container it may be off and not for the agent to write.
    if fs::read_to_string(&path).is_ok_and(|found| found.trim_end() == "0") {
        return Ok(());
    }
    match fs::write(&path, "0") {
        // A kernel without IPv6 has nothing to switch off.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{path}: {error}")),
        _ => Ok(()),
    }
}

/// `struct ifinfomsg` (rtnetlink(7)).
fn up(index: u32, mtu: Option<u32>) -> Message {
    let flag = (libc::IFF_UP as u32).to_ne_bytes();
    let body = [[0; 4], index.to_ne_bytes(), flag, flag].concat();
    let message = Message::change(libc::RTM_NEWLINK, &body);
    match mtu {
        Some(mtu) => message.with(libc::IFLA_MTU, &mtu.to_ne_bytes()),
        None => message,
    }
}

/// `struct ifaddrmsg`. Nobody else can have the address, so IPv6 need not ask around for a second before it is used.
fn add_address(index: u32, address: IpAddr, prefix: u8) -> Message {
    let (family, bytes) = parts(address);
    let flags = libc::IFA_F_NODAD as u8;
    let body = [&[family, prefix, flags, 0], &index.to_ne_bytes()[..]].concat();
    Message::make(libc::RTM_NEWADDR, &body)
        .with(libc::IFA_LOCAL, &bytes)
        .with(libc::IFA_ADDRESS, &bytes)
}

/// `struct rtmsg`: everything goes to the gateway, which is on the link although no prefix says so.
fn default_route(index: u32, gateway: IpAddr) -> Message {
    let (family, bytes) = parts(gateway);
    let body = [
        // Family, lengths of destination and source, type of service.
        &[family, 0, 0, 0],
        &[
            libc::RT_TABLE_MAIN,
            libc::RTPROT_BOOT,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ],
        &ON_LINK.to_ne_bytes()[..],
    ]
    .concat();
    Message::make(libc::RTM_NEWROUTE, &body)
        .with(libc::RTA_GATEWAY, &bytes)
        .with(libc::RTA_OIF, &index.to_ne_bytes())
}

fn parts(address: IpAddr) -> (u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (libc::AF_INET as u8, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6 as u8, address.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests;
