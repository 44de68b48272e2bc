//! The messages of vfio-user, protocol version 0.1, as bytes ("vfio-user Protocol Specification", docs of QEMU and
//! libvfio-user). Numbers are little-endian, as on every host that this runs on.

use std::fmt;

/// Size of a header, bytes.
pub const HEADER: usize = 16;

/// Bits of a header's flags: the type of the message, 0 for a command, and two flags.
const TYPE: u32 = 0xF;
const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// What a client asks a server for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceGetInfo = 4,
    DeviceGetRegionInfo = 5,
    DeviceGetIrqInfo = 7,
    DeviceSetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DeviceReset = 13,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "VERSION",
            Self::DmaMap => "DMA_MAP",
            Self::DmaUnmap => "DMA_UNMAP",
            Self::DeviceGetInfo => "DEVICE_GET_INFO",
            Self::DeviceGetRegionInfo => "DEVICE_GET_REGION_INFO",
            Self::DeviceGetIrqInfo => "DEVICE_GET_IRQ_INFO",
            Self::DeviceSetIrqs => "DEVICE_SET_IRQS",
            Self::RegionRead => "REGION_READ",
            Self::RegionWrite => "REGION_WRITE",
            Self::DeviceReset => "DEVICE_RESET",
        })
    }
}

/// What every message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Says which command a reply belongs to.
    pub id: u16,
    /// A [`Command`], or another number that a server came up with.
    pub command: u16,
    /// Bytes of the whole message.
    pub size: u32,
    pub flags: u32,
    /// An errno, in replies that are errors.
    pub error: u32,
}

impl Header {
    /// The header of a command with `body` bytes after it.
    pub fn command(id: u16, command: Command, body: usize) -> Self {
        Self {
            id,
            command: command as u16,
            size: u32::try_from(HEADER.saturating_add(body)).unwrap_or(u32::MAX),
            flags: 0,
            error: 0,
        }
    }

    /// The reply to this one that refuses it.
    pub fn refusal(self, errno: i32) -> Self {
        Self {
            size: 16,
            flags: REPLY | ERROR,
            error: errno.unsigned_abs(),
            ..self
        }
    }

    pub fn to_bytes(self) -> [u8; HEADER] {
        let low = u64::from(self.id) | u64::from(self.command) << 16 | u64::from(self.size) << 32;
        let high = u64::from(self.flags) | u64::from(self.error) << 32;
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }

    pub fn parse(bytes: [u8; HEADER]) -> Self {
        let [
            i0,
            i1,
            c0,
            c1,
            s0,
            s1,
            s2,
            s3,
            f0,
            f1,
            f2,
            f3,
            e0,
            e1,
            e2,
            e3,
        ] = bytes;
        Self {
            id: u16::from_le_bytes([i0, i1]),
            command: u16::from_le_bytes([c0, c1]),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
            error: u32::from_le_bytes([e0, e1, e2, e3]),
        }
    }

    pub fn is_command(self) -> bool {
        self.flags & TYPE == 0
    }

    pub fn is_reply(self) -> bool {
        self.flags & TYPE == REPLY
    }

    /// Of a command: it wants a reply.
    pub fn wants_reply(self) -> bool {
        self.flags & NO_REPLY == 0
    }

    /// Of a reply: the errno with which the command was refused.
    pub fn errno(self) -> Option<i32> {
        // Some servers set the flag and name no reason.
        let errno = i32::try_from(self.error).ok().filter(|errno| *errno > 0);
        (self.flags & ERROR != 0).then(|| errno.unwrap_or(libc::EIO))
    }

    /// Bytes after the header; `None` if the size makes no sense.
    pub fn body(self) -> Option<usize> {
        usize::try_from(self.size).ok()?.checked_sub(HEADER)
    }
}

/// What a message has after its header, being written. It has room for the header before it, so that one call sends both.
#[derive(Debug)]
pub struct Body(Vec<u8>);

impl Body {
    pub fn new() -> Self {
        Self(vec![0; HEADER])
    }

    pub fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The whole message.
    pub fn into_message(mut self, id: u16, command: Command) -> Vec<u8> {
        let header = Header::command(id, command, self.0.len().saturating_sub(HEADER));
        for (place, byte) in self.0.iter_mut().zip(header.to_bytes()) {
            *place = byte;
        }
        self.0
    }
}

/// What a reply has after its header, being read.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_sixteen_bytes_and_comes_back_as_it_was() {
        let message = Body::new()
            .u16(7)
            .u32(8)
            .into_message(0x1234, Command::RegionRead);
        let expected = [
            0x34, 0x12, 9, 0, 22, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 8, 0, 0, 0,
        ];
        assert_eq!(message, expected);
        let header = Header::parse(*message.first_chunk().unwrap());
        assert_eq!(header, Header::command(0x1234, Command::RegionRead, 6));
        assert_eq!(header.body(), Some(6));
        assert!(header.is_command() && header.wants_reply() && !header.is_reply());
        let refusal = Header::parse(header.refusal(libc::EOPNOTSUPP).to_bytes());
        assert!(refusal.is_reply());
        assert_eq!(refusal.errno(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn sizes_and_errors_that_make_no_sense_are_noticed() {
        let of = |size, flags, error| Header {
            id: 0,
            command: 1,
            size,
            flags,
            error,
        };
        assert_eq!(of(15, 0, 0).body(), None);
        assert_eq!(of(16, 0, 0).body(), Some(0));
        assert_eq!(of(16, REPLY, 5).errno(), None);
        for error in [0, u32::MAX] {
            assert_eq!(of(16, REPLY | ERROR, error).errno(), Some(libc::EIO));
        }
        assert_eq!(Fields(&[1, 2, 3]).u32(), None);
    }
}
