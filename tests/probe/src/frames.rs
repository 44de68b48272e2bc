//! Frames, byte by byte: what a neighbour of bad intent would send.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::addresses::{Mac, link_local};

pub const BROADCAST: Mac = [0xff; 6];
/// Numbers of IEEE 802: IPv6, ARP, and the first of those for local experiments.
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const EXPERIMENT: u16 = 0x88b5;
/// 33:33 and the last four bytes of ff02::1 (RFC 2464 §7).
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ICMPV6: u8 = 58;
const ROUTER_ADVERTISEMENT: u8 = 134;
/// Shortest frame without its checksum.
const SHORTEST: usize = 60;
const ETHERNET: usize = 14;

/// The prefix in [`router_advertisement`], for documentation (RFC 3849): whoever takes it has been fooled.
pub const BAD_PREFIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0);

fn frame(target: Mac, source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&target[..], &source, &kind.to_be_bytes(), payload].concat();
    bytes.resize(bytes.len().max(SHORTEST), 0);
    bytes
}

/// A gratuitous ARP (RFC 826, RFC 5227): `address` is at `mac`, told to everybody by `source`. `reply` says which of
/// the two forms.
pub fn arp_claim(source: Mac, mac: Mac, address: Ipv4Addr, reply: bool) -> Vec<u8> {
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, if reply { 2 } else { 1 }];
    arp.extend(mac);
    arp.extend(address.octets());
    arp.extend(if reply { BROADCAST } else { [0; 6] });
    arp.extend(address.octets());
    frame(BROADCAST, source, ARP, &arp)
}

/// Who claims what in an ARP frame.
pub fn arp_claimed(frame: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    let (kind, arp) = (frame.get(12..14)?, frame.get(ETHERNET..)?);
    // Ethernet and IPv4, with addresses of 6 and 4 bytes.
    if kind != ARP.to_be_bytes() || arp.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let mac: Mac = arp.get(8..14)?.try_into().ok()?;
    let address: [u8; 4] = arp.get(14..18)?.try_into().ok()?;
    Some((mac, address.into()))
}

/// A frame of the experimental type that carries `mark`.
pub fn marked(source: Mac, target: Mac, mark: &str) -> Vec<u8> {
    frame(target, source, EXPERIMENT, mark.as_bytes())
}

/// Whether `mark` is in a frame.
pub fn has_mark(frame: &[u8], mark: &str) -> bool {
    let mark = mark.as_bytes();
    frame.get(ETHERNET..).is_some_and(|payload| {
        payload
            .windows(mark.len().max(1))
            .any(|window| window == mark)
    })
}

/// Target, source, type and length of a frame, for people.
pub fn describe(frame: &[u8]) -> String {
    let show = |range| {
        frame
            .get(range)
            .map(crate::addresses::show)
            .unwrap_or_default()
    };
    let kind = match frame.get(12..14) {
        Some([high, low]) => format!("{high:02x}{low:02x}"),
        _ => String::new(),
    };
    format!(
        "{} > {} type {kind} length {}",
        show(6..12),
        show(0..6),
        frame.len()
    )
}

/// A router advertisement (RFC 4861 §4.2) with which `source` offers itself as a router, and [`BAD_PREFIX`] to make
/// addresses of.
pub fn router_advertisement(source: Mac) -> Vec<u8> {
    let router = link_local(source);
    // Type, code, checksum, hop limit, flags, lifetime of 1800 s, reachable time and retransmission unspecified.
    let mut icmp = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    icmp.extend(1800_u16.to_be_bytes());
    icmp.extend([0; 8]);
    // Prefix information (§4.6.2): length 64, on-link and autonomous, valid and preferred for an hour.
    icmp.extend([3, 4, 64, 0xc0]);
    icmp.extend(3600_u32.to_be_bytes());
    icmp.extend(3600_u32.to_be_bytes());
    icmp.extend([0; 4]);
    icmp.extend(BAD_PREFIX.octets());
    // Source link-layer address (§4.6.1).
    icmp.extend([1, 1]);
    icmp.extend(source);
    let checksum = icmpv6_checksum(router, ALL_NODES, &icmp).to_be_bytes();
    icmp.splice(2..4, checksum);
    let length = u16::try_from(icmp.len()).unwrap_or(0).to_be_bytes();
    // Hop limit 255, or a receiver drops it (§6.1.2).
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], ICMPV6, 255];
    packet.extend(router.octets());
    packet.extend(ALL_NODES.octets());
    packet.extend(icmp);
    frame(ALL_NODES_MAC, source, IPV6, &packet)
}

/// Who advertises itself as a router in a frame, and for how many seconds.
pub fn advertised(frame: &[u8]) -> Option<(Ipv6Addr, u16)> {
    let packet = frame.get(ETHERNET..)?;
    let is_advertisement = frame.get(12..14)? == IPV6.to_be_bytes()
        && *packet.get(6)? == ICMPV6
        && *packet.get(40)? == ROUTER_ADVERTISEMENT;
    let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    let lifetime: [u8; 2] = packet.get(46..48)?.try_into().ok()?;
    is_advertisement.then_some((source.into(), u16::from_be_bytes(lifetime)))
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let sum: u64 = bytes
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u64::from(u16::from_be_bytes([high, low])),
            [high] => u64::from(high) << 8,
            _ => 0,
        })
        .sum();
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded >> 16) + (folded & 0xffff);
    }
    !u16::try_from(folded).unwrap_or(0)
}

/// With the pseudo-header of RFC 8200 §8.1.
fn icmpv6_checksum(source: Ipv6Addr, target: Ipv6Addr, message: &[u8]) -> u16 {
    let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    let parts: [&[u8]; 5] = [
        &source.octets(),
        &target.octets(),
        &length,
        &[0, 0, 0, ICMPV6],
        message,
    ];
    checksum(&parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn the_checksum_is_that_of_the_rfc() {
        // RFC 1071 §3: the sum of this example is ddf2.
        let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(checksum(&example), !0xddf2);
        assert_eq!(checksum(&[0xff]), !0xff00);
    }

    #[test]
    fn a_claim_says_what_it_was_made_of_in_both_forms() {
        let address = Ipv4Addr::new(10, 99, 0, 3);
        for reply in [false, true] {
            let frame = arp_claim(MAC, [2, 0, 0, 0, 0, 9], address, reply);
            assert_eq!(frame.len(), SHORTEST);
            assert_eq!((&frame[..6], &frame[6..12]), (&BROADCAST[..], &MAC[..]));
            assert_eq!(arp_claimed(&frame), Some(([2, 0, 0, 0, 0, 9], address)));
        }
        assert_eq!(arp_claimed(&marked(MAC, BROADCAST, "x")), None);
        assert_eq!(arp_claimed(&[]), None);
    }

    #[test]
    fn a_mark_is_found_in_the_payload_alone() {
        let frame = marked(MAC, BROADCAST, "MARK-7");
        assert!(has_mark(&frame, "MARK-7") && !has_mark(&frame, "MARK-8"));
        assert!(!has_mark(&frame[..10], "MARK-7") && !has_mark(&frame, "\u{ff}"));
        assert_eq!(
            describe(&frame),
            "02:00:00:00:00:07 > ff:ff:ff:ff:ff:ff type 88b5 length 60"
        );
    }

    #[test]
    fn an_advertisement_is_what_a_host_would_accept() {
        let frame = router_advertisement(MAC);
        let router: Ipv6Addr = "fe80::ff:fe00:7".parse().unwrap();
        assert_eq!(advertised(&frame), Some((router, 1800)));
        let packet = &frame[ETHERNET..];
        let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
        assert_eq!((packet[7], packet.len()), (255, 40 + length));
        // A checksum over a message with its checksum in place is 0.
        assert_eq!(icmpv6_checksum(router, ALL_NODES, &packet[40..]), 0);
        // Every option says its length in units of 8 bytes (§4.6).
        assert_eq!((packet[40 + 17], packet[40 + 16 + 33]), (4, 1));
        assert_eq!(advertised(&marked(MAC, BROADCAST, "x")), None);
    }
}
