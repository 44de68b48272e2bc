//! What the kernel's packet filter has: asked, and heard of, without nft (Linux, include/uapi/linux/netfilter/nf_tables.h).

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, NetlinkAddr, SockProtocol, bind, recv, setsockopt, sockopt::RcvBuf,
};

use super::netlink::{self, Netlink};
use super::record::Record;

/// NFNL_SUBSYS_NFTABLES above, NFT_MSG_GETSETELEM below.
const GET_ELEMENT: u16 = 10 << 8 | 13;
/// NFPROTO_INET.
const INET: u8 = 1;
// NFTA_SET_ELEM_LIST_TABLE, _SET, _ELEMENTS, and what is within the last: NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_DATA_VALUE.
const TABLE: u16 = 1;
const SET: u16 = 2;
const ELEMENTS: u16 = 3;
const ELEMENT: u16 = 1;
const KEY: u16 = 1;
const VALUE: u16 = 1;
/// NLA_F_NESTED.
const NESTED: u16 = 1 << 15;
/// The group NFNLGRP_NFTABLES as a bit: whatever changes.
const CHANGES: u32 = 1 << (7 - 1);
/// Bytes of an interface's name in a key (IFNAMSIZ).
const NAME: usize = 16;

/// Whether the tenant is among those who may send (`senders4` in rules.nft): all that concerns it is set with this, and gone
/// with this, the whole table too.
///
/// # Errors
/// No permission, or this kernel has no nf_tables.
pub fn has_sender(record: &Record) -> io::Result<bool> {
    let request = GetElement(element("fief", "senders4", &sender(record)));
    match Netlink::open_filter()?.ask(request, 0) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Interface, MAC, address, each filled up to four bytes.
fn sender(record: &Record) -> Vec<u8> {
    let mut key = record.link.as_bytes().to_vec();
    key.resize(NAME, 0);
    key.extend(record.mac().0);
    key.extend([0; 2]);
    key.extend(record.address.octets());
    key
}

/// The body of a request for one element of a set.
fn element(table: &str, set: &str, key: &[u8]) -> Vec<u8> {
    let name = |kind, name: &str| attribute(kind, &[name.as_bytes(), &[0]].concat());
    let value = attribute(KEY | NESTED, &attribute(VALUE, key));
    let elements = attribute(ELEMENTS | NESTED, &attribute(ELEMENT | NESTED, &value));
    // A struct nfgenmsg: family, version, nothing.
    let family = vec![INET, 0, 0, 0];
    [family, name(TABLE, table), name(SET, set), elements].concat()
}

/// A struct nlattr with what it holds, filled up to four bytes.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + payload.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A question for an element; of the answer only counts that there is one.
struct GetElement(Vec<u8>);

impl NetlinkSerializable for GetElement {
    fn message_type(&self) -> u16 {
        GET_ELEMENT
    }

    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.0);
    }
}

impl NetlinkDeserializable for GetElement {
    type Error = Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self(payload.to_vec()))
    }
}

/// Hears of every change to the packet filter, whoever makes it.
#[derive(Debug)]
pub struct Changes(OwnedFd);

impl Changes {
    /// # Errors
    /// No descriptor is free, or no permission.
    pub fn listen() -> io::Result<Self> {
        let socket = netlink::open(SockProtocol::NetlinkNetFilter)?;
        // As little as can be: of many messages at once, all but the first tell nothing new.
        setsockopt(&socket, RcvBuf, &0)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, CHANGES))?;
        Ok(Self(socket))
    }

    /// Waits for the next change, or several.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn wait(&self) -> io::Result<()> {
        self.take(MsgFlags::empty())?;
        loop {
            match self.take(MsgFlags::MSG_DONTWAIT) {
                Err(Errno::EAGAIN) => return Ok(()),
                other => other?,
            }
        }
    }

    /// One message, or that there was no room for some.
    fn take(&self, flags: MsgFlags) -> nix::Result<()> {
        loop {
            // The rest of a longer message is dropped with it.
            match recv(self.0.as_raw_fd(), &mut [0; 64], flags) {
                Err(Errno::EINTR) => {}
                Ok(_) | Err(Errno::ENOBUFS) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
