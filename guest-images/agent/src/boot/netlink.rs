//! As much of rtnetlink(7) as one interface needs. Addresses of one host with a gateway on the link cannot be set up by
//! ioctls, and the crates for it would double the agent.

use std::fs::File;
use std::io::{self, Read, Write};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// linux/netlink.h: `struct nlmsghdr`, and the reply that is an error number or 0.
const HEADER: usize = 16;
const REPLY_IS_ERROR: u16 = libc::NLMSG_ERROR as u16;

/// One request to the kernel. All numbers are in this machine's own order.
#[derive(Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request of `kind` that changes what is there; `body` is the fixed structure of that kind.
    pub fn change(kind: u16, body: &[u8]) -> Message {
        Message::new(kind, 0, body)
    }

    /// A request of `kind` that makes something, in place of the same if that is there.
    pub fn make(kind: u16, body: &[u8]) -> Message {
        Message::new(kind, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, body)
    }

    fn new(kind: u16, flags: libc::c_int, body: &[u8]) -> Message {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence and port: one request at a time on a socket of its own.
        bytes.extend([0; 8]);
        bytes.extend(body);
        Message(bytes)
    }

    /// Adds an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Message {
        self.0.extend(attribute(kind, value));
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.splice(..4, length.to_ne_bytes());
        self.0
    }
}

/// An attribute: its length without the padding, its kind, its value.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A way to the kernel's network.
#[derive(Debug)]
pub struct Netlink(File);

impl Netlink {
    /// # Errors
    /// A kernel without network.
    pub fn open() -> io::Result<Netlink> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        // Without an address of its own and of the other side, it talks to the kernel.
        Ok(Netlink(File::from(socket)))
    }

    /// Makes a request and hears how it went.
    ///
    /// # Errors
    /// The kernel's.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.0.write_all(&message.finish())?;
        let mut reply = [0; 4096];
        let length = self.0.read(&mut reply)?;
        let number = |at: usize| {
            let bytes = reply[..length].get(at..at + 4);
            bytes.and_then(|bytes| bytes.try_into().ok().map(i32::from_ne_bytes))
        };
        let kind = reply
            .get(4..6)
            .map(|kind| kind == REPLY_IS_ERROR.to_ne_bytes());
        match number(HEADER).filter(|_| kind == Some(true)) {
            Some(0) => Ok(()),
            Some(error) => Err(Errno::from_raw(-error).into()),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_its_length_and_aligned_attributes() {
        let bytes = Message::change(16, &[7; 8]).with(3, b"abc\0e").finish();
        assert_eq!(bytes.len(), 16 + 8 + 12);
        assert_eq!(bytes[..4], 36_u32.to_ne_bytes());
        assert_eq!(
            bytes[24..28],
            [9_u16.to_ne_bytes(), 3_u16.to_ne_bytes()].concat()
        );
        assert_eq!(bytes[28..], *b"abc\0e\0\0\0");
    }
}
