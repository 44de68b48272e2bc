//! Published ports, as seen from outside: the emulated host has no network, so its keeper listens on this machine's
//! ports and carries each connection through the agent to the same port inside.
//!
//! A command that publishes ports *holds* them while it runs: they are taken on this machine before anything is made
//! inside, so that a port in use is that command's error. When a hold ends, the keeper asks the `fief` inside which
//! ports its tenants publish now, and keeps exactly those.

mod forward;
mod server;

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use super::{EmulatedError, EmulatedHost};
pub(super) use server::serve;

/// Longest message either way, in bytes.
const MAX_MESSAGE: u64 = 1 << 20;

/// A port of this machine that leads to one inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Port {
    pub protocol: Transport,
    /// An address of this machine; unspecified for all that it has.
    pub address: Ipv4Addr,
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)?;
        match self.protocol {
            Transport::Tcp => Ok(()),
            Transport::Udp => f.write_str("/udp"),
        }
    }
}

impl Port {
    /// Whether both mean the same port, at least on one address.
    fn collides(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.port == other.port
            && (self.address == other.address
                || self.address.is_unspecified()
                || other.address.is_unspecified())
    }

    /// Where it leads inside.
    fn inside(self) -> SocketAddr {
        let address = if self.address.is_unspecified() {
            Ipv4Addr::LOCALHOST
        } else {
            self.address
        };
        (address, self.port).into()
    }
}

/// The keeper's answer to a list of ports, one line of JSON each. Then the hold lasts until the connection ends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Held {
        /// Ports that are published, or about to be, and that lead nowhere from here, with the reason; told once.
        missing: Vec<Missing>,
    },
    Refused(Missing),
}

/// A port that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", self.text())]
pub struct Missing {
    pub port: Port,
    /// The system's reason, as a Linux error number.
    errno: i32,
}

impl Missing {
    /// For a port that is of no use on this side.
    fn udp(port: Port) -> Self {
        Self {
            port,
            errno: nix::libc::EPROTONOSUPPORT,
        }
    }

    fn text(&self) -> String {
        let port = self.port;
        let error = io::Error::from_raw_os_error(self.errno);
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("port {port} is in use on this machine; choose another")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("cannot publish {port}: {error}; give an address of this machine")
            }
            io::ErrorKind::PermissionDenied => {
                format!(
                    "cannot publish {port}: {error}; ports below 1024 are root's, choose a higher one"
                )
            }
            _ if port.protocol == Transport::Udp => format!(
                "port {port} is published in the emulated host alone; only TCP is carried there from here"
            ),
            _ => format!("cannot publish {port}: {error}"),
        }
    }
}

/// Ports that this process holds.
#[derive(Debug)]
pub struct Held {
    stream: UnixStream,
    /// Ports that are published, or about to be, and that lead nowhere from here.
    pub missing: Vec<Missing>,
}

impl EmulatedHost {
    /// Takes ports of this machine for a command that is about to publish them, or none: what tenants inside publish
    /// when the hold is dropped stays, the rest is given back.
    ///
    /// # Errors
    /// [`EmulatedError::Port`]; nothing is held then.
    pub fn hold(&self, ports: &[Port]) -> Result<Held, EmulatedError> {
        let stream = self.directory.connect_ports()?;
        let broken = || EmulatedError::io("the keeper of the emulated host does not answer");
        let mut line = serde_json::to_vec(ports).map_err(|error| broken()(error.into()))?;
        line.push(b'\n');
        (&stream).write_all(&line).map_err(broken())?;
        match read_line(&stream).map_err(broken())? {
            Answer::Held { missing } => Ok(Held { stream, missing }),
            Answer::Refused(missing) => Err(EmulatedError::Port(missing)),
        }
    }
}

impl Drop for Held {
    /// Waits until the keeper has given back what nobody publishes.
    fn drop(&mut self) {
        if self.stream.shutdown(Shutdown::Write).is_ok() {
            let _ = self.stream.read(&mut [0]);
        }
    }
}

/// One message.
fn read_line<T: serde::de::DeserializeOwned>(stream: &UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_MESSAGE)).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests;
