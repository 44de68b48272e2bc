//! Which name servers a tenant asks.

use std::fs;
use std::net::IpAddr;

/// Where this machine's are written, and where they are if the first names only a stub on loopback (systemd-resolved(8)).
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// More are of no use: resolvers ask three (resolv.conf(5), MAXNS).
const MOST: usize = 3;

/// Those that were asked for, else this machine's own.
pub fn upstreams(asked: &[IpAddr], v6: bool) -> Vec<IpAddr> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    FILES
        .iter()
        .map(|file| within_reach(&fs::read_to_string(file).unwrap_or_default(), v6))
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

/// The name servers of a resolv.conf that a tenant can reach.
fn within_reach(text: &str, v6: bool) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next())?
        })
        // One with a zone (fe80::1%eth0) is no address, and of no use to a tenant.
        .filter_map(|word| word.parse().ok())
        .filter(|address: &IpAddr| is_reachable(*address) && (v6 || address.is_ipv4()))
        .take(MOST)
        .collect()
}

/// Whether the rules let a tenant send to the address: not if it is this machine itself, or of a link.
pub fn is_reachable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.is_link_local()
                || address.octets()[0] == 0
                || address.octets()[0] >= 224)
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_multicast())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_own_name_servers_are_taken_as_far_as_a_tenant_reaches_them() {
        let text = "# by hand\nsearch x\nnameserver 127.0.0.53\nnameserver 192.0.2.53\n\
                    nameserver fe80::1%eth0\nnameserver 169.254.169.254\nnameserver 2001:db8::53\n\
                    nameserver\nnameserver x\noptions nameserver 1.2.3.4\n";
        let found = |v6| {
            within_reach(text, v6)
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(found(true), ["192.0.2.53", "2001:db8::53"]);
        assert_eq!(found(false), ["192.0.2.53"]);
        assert!(within_reach("nameserver 127.0.0.53", true).is_empty());
    }

    #[test]
    fn what_was_asked_for_is_taken_as_it_is() {
        let asked = ["192.0.2.1".parse().unwrap()];
        assert_eq!(upstreams(&asked, false), asked);
    }
}
