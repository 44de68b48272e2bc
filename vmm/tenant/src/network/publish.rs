//! Published ports: `--publish [IP:]HOST:TENANT[/udp]`.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{NetworkError, Result};
use super::protocol::Protocol;

/// A port of this machine that leads to one of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Publish {
    /// An address of this machine; unspecified for all that it has.
    pub address: Ipv4Addr,
    pub port: u16,
    /// The tenant's own port.
    pub to: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no port to publish; write HOST:TENANT as 2222:22, or IP:HOST:TENANT as 0.0.0.0:8080:80, and /udp behind it \
     for UDP; IP is an IPv4 address of this machine"
)]
pub struct PublishError(String);

impl Publish {
    /// Whether both mean the same port of this machine, at least on one address.
    pub fn collides(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.port == other.port
            && (self.address == other.address
                || self.address.is_unspecified()
                || other.address.is_unspecified())
    }

    /// Makes sure that no program of this machine has the port, by taking it for a moment.
    ///
    /// # Errors
    /// [`NetworkError::PortInUse`], or no such address is here.
    pub fn require_free(&self) -> Result<()> {
        let at = (self.address, self.port);
        let taken = match self.protocol {
            Protocol::Tcp => TcpListener::bind(at).map(drop),
            Protocol::Udp => UdpSocket::bind(at).map(drop),
        };
        taken.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => NetworkError::PortInUse(*self),
            _ => NetworkError::Port {
                port: *self,
                source,
            },
        })
    }
}

impl FromStr for Publish {
    type Err = PublishError;

    fn from_str(text: &str) -> std::result::Result<Self, PublishError> {
        let error = || PublishError(text.to_owned());
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(error()),
        };
        let port = |word: &str| match word.parse::<u16>() {
            Ok(port) if port != 0 && !word.starts_with('+') => Ok(port),
            _ => Err(error()),
        };
        let words: Vec<&str> = ports.split(':').collect();
        let (address, host, tenant) = match words[..] {
            [host, tenant] => (Ipv4Addr::LOCALHOST, host, tenant),
            [address, host, tenant] => (address.parse().map_err(|_| error())?, host, tenant),
            _ => return Err(error()),
        };
        Ok(Self {
            address,
            port: port(host)?,
            to: port(tenant)?,
            protocol,
        })
    }
}

impl TryFrom<String> for Publish {
    type Error = PublishError;

    fn try_from(text: String) -> std::result::Result<Self, PublishError> {
        text.parse()
    }
}

impl From<Publish> for String {
    fn from(publish: Publish) -> String {
        publish.to_string()
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.address, self.port, self.to)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(text: &str) -> Publish {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_is_published_on_loopback_unless_an_address_is_given() {
        assert_eq!(publish("2222:22").to_string(), "127.0.0.1:2222:22");
        assert_eq!(
            publish("0.0.0.0:80:8080/tcp").to_string(),
            "0.0.0.0:80:8080"
        );
        let udp = publish("192.0.2.1:53:5353/udp");
        assert_eq!((udp.port, udp.to, udp.protocol), (53, 5353, Protocol::Udp));
        assert_eq!(publish(&udp.to_string()), udp);
    }

    #[test]
    fn words_that_are_no_ports_are_refused_with_the_form() {
        for bad in [
            "",
            "22",
            "0:22",
            "22:0",
            "22:65536",
            "-1:22",
            "+1:22",
            "a:22",
            "1:2:3",
            "1.2.3.4:22",
            "1.2.3.4:1:2:3",
            "[::1]:1:2",
            "22:22/sctp",
            "22:22/",
            "/udp",
            "22:22/udp/udp",
        ] {
            let error = bad.parse::<Publish>().unwrap_err().to_string();
            assert!(error.contains("2222:22"), "{bad}");
        }
    }

    #[test]
    fn ports_collide_on_a_common_address() {
        let every = publish("0.0.0.0:80:1");
        assert!(every.collides(&publish("80:2")) && publish("80:2").collides(&every));
        assert!(!publish("80:1").collides(&publish("192.0.2.1:80:1")));
        assert!(!every.collides(&publish("80:1/udp")) && !every.collides(&publish("81:1")));
    }

    #[test]
    fn a_port_that_a_program_listens_on_is_not_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let tcp = publish(&format!("{port}:1"));
        assert!(matches!(
            tcp.require_free(),
            Err(NetworkError::PortInUse(_))
        ));
        // Also where only one of the addresses is taken; and a port of UDP is another one.
        assert!(
            publish(&format!("0.0.0.0:{port}:1"))
                .require_free()
                .is_err()
        );
        drop(listener);
        tcp.require_free().unwrap();
        let nowhere = publish("192.0.2.1:4000:1").require_free().unwrap_err();
        assert!(nowhere.to_string().contains("address of this machine"));
    }
}
