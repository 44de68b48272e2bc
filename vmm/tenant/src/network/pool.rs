//! Addresses for tenants: a range of IPv4, and what is derived from an address.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::Result;
use crate::store::read_json;

/// Settings of the network, in the state directory: `{"pool": "10.98.0.0/16"}`.
pub const SETTINGS: &str = "network.json";

/// A range of addresses. The first host address in it is the gateway's, on every tenant's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pool {
    network: Ipv4Addr,
    prefix: u8,
}

#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no pool of addresses; write one as 10.99.0.0/16, between /8 and /30")]
pub struct PoolError(String);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    pool: Pool,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 99, 0, 0),
            prefix: 16,
        }
    }
}

impl Pool {
    /// The pool of a state directory.
    ///
    /// # Errors
    /// The settings are damaged.
    pub fn of(root: &Path) -> Result<Self> {
        let settings: Option<Settings> = read_json(&root.join(SETTINGS))?;
        Ok(settings.unwrap_or_default().pool)
    }

    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// First and last address.
    fn bounds(self) -> (u32, u32) {
        let first = self.network.to_bits();
        (first, first | (u32::MAX >> self.prefix))
    }

    /// Whether an address lies in it.
    #[cfg(test)]
    fn contains(self, address: Ipv4Addr) -> bool {
        let (first, last) = self.bounds();
        (first..=last).contains(&address.to_bits())
    }

    /// Whether the pool and a network have addresses in common.
    pub fn overlaps(self, network: Ipv4Addr, prefix: u8) -> bool {
        let (first, last) = self.bounds();
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let begin = network.to_bits() & mask;
        begin <= last && first <= (begin | !mask)
    }

    /// The first address that a tenant may have and that `taken` does not name.
    pub fn choose(self, taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let (first, last) = self.bounds();
        (first + 2..last)
            .map(Ipv4Addr::from_bits)
            .find(|address| !taken(*address))
    }
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> std::result::Result<Self, PoolError> {
        let error = || PoolError(text.to_owned());
        let (network, prefix) = text.split_once('/').ok_or_else(error)?;
        let network: Ipv4Addr = network.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        let fits = (8..=30).contains(&prefix)
            && network.to_bits() & (u32::MAX >> prefix) == 0
            && !network.is_loopback()
            && !network.is_multicast();
        if fits {
            Ok(Self { network, prefix })
        } else {
            Err(error())
        }
    }
}

impl TryFrom<String> for Pool {
    type Error = PoolError;

    fn try_from(text: String) -> std::result::Result<Self, PoolError> {
        text.parse()
    }
}

impl From<Pool> for String {
    fn from(pool: Pool) -> String {
        pool.to_string()
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// A MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The MAC of the tenant with this address: locally administered (IEEE 802, bit 1 of the first byte), one to one.
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0xf1, a, b, c, d])
    }

    /// The link-local address that Linux makes of it (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let word = |high, low| u16::from_be_bytes([high, low]);
        Ipv6Addr::new(
            0xfe80,
            0,
            0,
            0,
            word(a ^ 0x02, b),
            word(c, 0xff),
            word(0xfe, d),
            word(e, f),
        )
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// This machine's unique local prefix (RFC 4193), a /64: of its machine id, so that it stays and is no other's.
pub fn local_prefix() -> Ipv6Addr {
    let id = std::fs::read("/etc/machine-id").unwrap_or_default();
    let digest = fief_images::store::hash_bytes(&[b"fief network ", id.as_slice()].concat());
    let bits = u64::from_str_radix(digest.get(..10).unwrap_or_default(), 16).unwrap_or(0);
    Ipv6Addr::from_bits((u128::from(0xfd << 40 | bits)) << 80)
}

/// The gateway's IPv6 address under a prefix.
pub fn gateway6(prefix: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(prefix.to_bits() | 1)
}

/// The IPv6 address of the tenant that has this IPv4 address.
pub fn address6(prefix: Ipv6Addr, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(prefix.to_bits() | u128::from(address.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> Pool {
        text.parse().unwrap()
    }

    #[test]
    fn pools_are_read_and_nonsense_is_refused() {
        assert_eq!(pool("10.99.0.0/16"), Pool::default());
        assert_eq!(pool("192.168.4.0/30").to_string(), "192.168.4.0/30");
        for bad in [
            "",
            "10.99.0.0",
            "10.99.0.1/16",
            "10.0.0.0/7",
            "10.99.0.0/31",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "10.99.0.0/16/2",
            "fd00::/64",
        ] {
            assert!(bad.parse::<Pool>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_lowest_free_address_is_chosen_and_network_gateway_and_broadcast_are_none() {
        let small = pool("10.1.2.0/30");
        assert_eq!(small.gateway(), Ipv4Addr::new(10, 1, 2, 1));
        let only = Ipv4Addr::new(10, 1, 2, 2);
        assert_eq!(small.choose(|_| false), Some(only));
        assert_eq!(small.choose(|address| address == only), None);
        let second = pool("10.1.2.0/29").choose(|address| address == only);
        assert_eq!(second, Some(Ipv4Addr::new(10, 1, 2, 3)));
    }

    #[test]
    fn overlaps_are_seen_whichever_network_is_the_larger() {
        let pool = Pool::default();
        let at = |text: &str, prefix| pool.overlaps(text.parse().unwrap(), prefix);
        assert!(at("10.99.7.0", 24) && at("10.0.0.0", 8) && at("0.0.0.0", 0));
        assert!(at("10.99.0.0", 16) && at("10.99.255.255", 32));
        assert!(!at("10.98.0.0", 16) && !at("10.100.0.0", 14) && !at("192.168.0.0", 16));
    }

    #[test]
    fn what_an_address_gives_is_its_own() {
        let address = Ipv4Addr::new(10, 99, 1, 2);
        let mac = Mac::of(address);
        assert_eq!(mac.to_string(), "02:f1:0a:63:01:02");
        assert_eq!(mac.link_local().to_string(), "fe80::f1:aff:fe63:102");
        let prefix: Ipv6Addr = "fd12:3456:789a::".parse().unwrap();
        assert_eq!(
            address6(prefix, address).to_string(),
            "fd12:3456:789a::a63:102"
        );
        assert_eq!(gateway6(prefix).to_string(), "fd12:3456:789a::1");
        assert_eq!(local_prefix().octets()[0], 0xfd);
        assert_eq!(local_prefix().octets()[6..], [0; 10]);
        assert!(pool("10.99.0.0/16").contains(address));
    }
}
