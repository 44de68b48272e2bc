//! Requests to the kernel by netlink(7), one at a time: rtnetlink(7) unless another family is asked for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// What the kernel puts into one message of a listing at most (netlink(7) recommends 8 KiB, the kernel uses up to 32).
const BUFFER: usize = 32 << 10;

/// What is sent and answered.
pub trait Message: NetlinkSerializable + NetlinkDeserializable {}

impl<M: NetlinkSerializable + NetlinkDeserializable> Message for M {}

/// A socket of a netlink family.
///
/// # Errors
/// No descriptor is free.
pub fn open(family: SockProtocol) -> nix::Result<OwnedFd> {
    let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
    socket(AddressFamily::Netlink, kind, flags, family)
}

/// A connection to the network namespace of the thread that opens it.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// # Errors
    /// No descriptor is free.
    pub fn open() -> io::Result<Self> {
        Ok(Self(open(SockProtocol::NetlinkRoute)?))
    }

    /// The same, to the packet filter.
    pub fn open_filter() -> io::Result<Self> {
        Ok(Self(open(SockProtocol::NetlinkNetFilter)?))
    }

    /// Has something done, or asks whether something is there.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn ask<M: Message>(&self, message: M, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    /// Lists what `message` asks for.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn list(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_DUMP)
    }

    fn exchange<M: Message>(&self, message: M, flags: u16) -> io::Result<Vec<M>> {
        let payload = NetlinkPayload::InnerMessage(message);
        let mut request = NetlinkMessage::new(NetlinkHeader::default(), payload);
        request.header.flags = NLM_F_REQUEST | flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), &bytes, &kernel, MsgFlags::empty())?;
        let mut answers = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).unwrap_or(rest.len());
                // Messages are aligned to four bytes (netlink(7), NLMSG_ALIGN).
                rest = rest
                    .get(length.next_multiple_of(4)..)
                    .filter(|_| length > 0)
                    .unwrap_or_default();
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
        }
    }
}
