//! Addresses as people write them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::{Failure, Result};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// An IP address, with `%interface` where it needs one, and a port.
///
/// # Errors
/// [`Failure::Misuse`]; names are not looked up.
pub fn parse(address: &str, port: u16) -> Result<SocketAddr> {
    let bad = || {
        Failure::Misuse(format!(
            "'{address}' is no IP address; fe80::… needs %interface"
        ))
    };
    let Some((address, scope)) = address.split_once('%') else {
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        return Ok(SocketAddr::new(address, port));
    };
    let address: Ipv6Addr = address.parse().map_err(|_| bad())?;
    Ok(SocketAddrV6::new(address, port, 0, index(scope)?).into())
}

/// The number of an interface.
///
/// # Errors
/// [`Failure::Misuse`]: there is none of that name.
pub fn index(interface: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(interface)
        .map_err(|_| Failure::Misuse(format!("there is no interface '{interface}' here")))
}

/// An Ethernet address from six hexadecimal numbers with colons.
///
/// # Errors
/// [`Failure::Misuse`].
pub fn mac(text: &str) -> Result<Mac> {
    let bad = || Failure::Misuse(format!("'{text}' is no Ethernet address"));
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts
            .next()
            .filter(|part| part.len() == 2)
            .ok_or_else(bad)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    parts.next().is_none().then_some(mac).ok_or_else(bad)
}

/// The same, as people write it.
pub fn show(mac: &[u8]) -> String {
    let parts: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(":")
}

/// The link-local address that an interface makes of its Ethernet address (RFC 4291, appendix A).
pub fn link_local([a, b, c, d, e, f]: Mac) -> Ipv6Addr {
    Ipv6Addr::from([
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_scope_where_they_need_one() {
        assert_eq!(parse("10.0.0.1", 5).unwrap(), "10.0.0.1:5".parse().unwrap());
        let SocketAddr::V6(local) = parse("fe80::1%lo", 5).unwrap() else {
            panic!("version 4")
        };
        assert_eq!((local.scope_id(), local.port()), (1, 5));
        for bad in ["a", "1.2.3.4%lo", "::1%none", "alice.fief"] {
            assert!(matches!(parse(bad, 5), Err(Failure::Misuse(_))), "{bad}");
        }
    }

    #[test]
    fn ethernet_addresses_come_back_as_they_were() {
        let text = "02:00:5e:10:ff:0a";
        assert_eq!(show(&mac(text).unwrap()), text);
        for bad in [
            "",
            "02:00:5e:10:ff",
            "02:00:5e:10:ff:0a:0b",
            "2:0:5e:10:ff:a",
            "gg:00:5e:10:ff:0a",
        ] {
            assert!(mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_link_local_address_is_that_of_the_rfc() {
        // RFC 4291, appendix A: 34-56-78-9A-BC-DE with the u bit inverted.
        let mac = [0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
        assert_eq!(link_local(mac).to_string(), "fe80::3656:78ff:fe9a:bcde");
    }
}
