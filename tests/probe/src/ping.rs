//! ICMP and ICMPv6 echo.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::frames::checksum;
use crate::options::{Options, left};
use crate::{Failure, Result, misuse, refused};

/// Echo request and reply: ICMP (RFC 792), ICMPv6 (RFC 4443 §4).
const REQUEST: [u8; 2] = [8, 128];
const REPLY: [u8; 2] = [0, 129];
/// Between two requests: the first may be lost while a neighbour is looked for.
const AGAIN: Duration = Duration::from_millis(500);

/// Asks until an answer comes.
///
/// # Errors
/// None came, or not root.
pub fn ping(target: SocketAddr, options: &Options) -> Result<()> {
    let six = usize::from(target.is_ipv6());
    let (family, protocol) = [
        (AddressFamily::Inet, SockProtocol::Icmp),
        (AddressFamily::Inet6, SockProtocol::IcmpV6),
    ][six];
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
    let socket: OwnedFd = socket.map_err(misuse("cannot open a raw socket (only root can)"))?;
    // Sending, receiving and time-outs of raw sockets are those of datagrams.
    // SAFETY: the descriptor was just opened, and is handed over.
    let socket = unsafe { UdpSocket::from_raw_fd(socket.into_raw_fd()) };
    if let Some(source) = options.bind {
        // A raw socket has no ports; nix has no way to bind one without.
        let bound = bind(&socket, SocketAddr::new(source, 0));
        bound.map_err(misuse("cannot use that source address"))?;
    }
    let id = (std::process::id() & 0xffff) as u16;
    let deadline = options.deadline();
    let mut sequence = 0_u16;
    let mut last = String::from("no answer");
    while let Some(left) = left(deadline) {
        sequence = sequence.wrapping_add(1);
        if let Err(error) = socket.send_to(&request(REQUEST[six], id, sequence), target) {
            last = error.to_string();
        }
        let until = std::time::Instant::now() + AGAIN.min(left);
        while let Some(left) = crate::options::left(until) {
            socket
                .set_read_timeout(Some(left))
                .map_err(refused("cannot wait"))?;
            let mut buffer = [0; 2048];
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let packet = buffer.get(..length).unwrap_or_default();
                    if is_reply(packet, six == 1, id) {
                        println!("answer from {}", from.ip());
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => last = error.to_string(),
            }
        }
    }
    Err(Failure::Refused(format!("{}: {last}", target.ip())))
}

fn bind(socket: &UdpSocket, address: SocketAddr) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    let address = nix::sys::socket::SockaddrStorage::from(address);
    nix::sys::socket::bind(socket.as_raw_fd(), &address)
}

/// For ICMPv6 the kernel fills the checksum in, whatever is there (RFC 3542 §3.1).
fn request(kind: u8, id: u16, sequence: u16) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(*b"fief-probe");
    let checksum = checksum(&message).to_be_bytes();
    message.splice(2..4, checksum);
    message
}

/// IPv4 raw sockets give the IP header too, IPv6's do not (ip(7), ipv6(7)).
fn is_reply(packet: &[u8], six: bool, id: u16) -> bool {
    let header = match packet.first() {
        Some(first) if !six => usize::from(first & 0xf) * 4,
        _ => 0,
    };
    let Some(message) = packet.get(header..) else {
        return false;
    };
    message.first() == Some(&REPLY[usize::from(six)])
        && message.get(4..6) == Some(&id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_right_and_its_answer_is_known_again() {
        let mut message = request(8, 0x1234, 1);
        assert_eq!(checksum(&message), 0);
        assert!(!is_reply(&message, true, 0x1234));
        message[0] = 129;
        assert!(is_reply(&message, true, 0x1234) && !is_reply(&message, true, 0x1235));
        message[0] = 0;
        let header = [&[0x46][..], &[0; 23]].concat();
        assert!(is_reply(&[header, message].concat(), false, 0x1234));
        assert!(!is_reply(&[], false, 0) && !is_reply(&[0x4f], false, 0));
    }
}
