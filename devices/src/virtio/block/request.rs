//! Requests as the driver writes them, and their checks (virtio 1.3 §5.2.6).

use super::backing::SECTOR;
use crate::GuestRam;
use crate::virtio::chain::{Buffers, OutsideRam};

/// `VIRTIO_BLK_S_*`: how a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupp = 2,
}

/// `VIRTIO_BLK_T_*`: what a request asks for.
pub(super) mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Bytes of the answer to `VIRTIO_BLK_T_GET_ID` (virtio 1.3 §5.2.6).
pub(super) const ID_BYTES: usize = 20;

/// Most sectors of one discard or write-zeroes segment, 2 GiB: none keeps the worker for long.
pub(super) const MAX_RANGE_SECTORS: u32 = 4 << 20;

/// Most segments of one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 32;

/// The only flag of a discard or write-zeroes segment (virtio 1.3 §5.2.6).
const UNMAP: u32 = 1;

/// What a queue's worker needs to know of the drive. Fixed while the device is active.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub sectors: u64,
    pub read_only: bool,
    /// The driver accepted VIRTIO_BLK_F_FLUSH.
    pub flush: bool,
    /// The driver accepted VIRTIO_BLK_F_DISCARD.
    pub discard: bool,
    /// The driver accepted VIRTIO_BLK_F_WRITE_ZEROES.
    pub write_zeroes: bool,
}

/// A range of the backing file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub offset: u64,
    pub length: u64,
    /// Free it, rather than fill it with zeroes.
    pub punch: bool,
}

/// A request that has passed all checks. Offsets and lengths in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, length: u64 },
    Write { offset: u64, length: u64 },
    Flush,
    GetId,
    Ranges(Vec<Range>),
}

/// Why a request is answered with an error before anything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub status: Status,
    /// The driver should have known better; counted.
    pub malformed: bool,
}

const MALFORMED: Refused = Refused {
    status: Status::IoErr,
    malformed: true,
};

/// Not malformed: the driver may try.
const UNSUPPORTED: Refused = Refused {
    status: Status::Unsupp,
    malformed: false,
};

impl From<OutsideRam> for Refused {
    fn from(_: OutsideRam) -> Self {
        MALFORMED
    }
}

impl Request {
    /// Takes the header out of `buffers`, whose status byte has been taken already, and checks everything against
    /// `limits`. The data stays in `buffers`.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn parse(
        buffers: &mut Buffers,
        memory: &GuestRam,
        limits: &Limits,
    ) -> Result<Self, Refused> {
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = buffers.take_readable::<16>(memory)?;
        if buffers.out_of_order() {
            return Err(MALFORMED);
        }
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            kind::IN => {
                if buffers.readable_bytes() != 0 {
                    return Err(MALFORMED);
                }
                let length = buffers.writable_bytes();
                let offset = checked_offset(sector, length, limits.sectors)?;
                Ok(Self::Read { offset, length })
            }
            kind::OUT => {
                if limits.read_only || buffers.writable_bytes() != 0 {
                    return Err(MALFORMED);
                }
                let length = buffers.readable_bytes();
                let offset = checked_offset(sector, length, limits.sectors)?;
                Ok(Self::Write { offset, length })
            }
            kind::FLUSH if limits.flush => Ok(Self::Flush),
            kind::GET_ID if buffers.writable_bytes() >= ID_BYTES as u64 => Ok(Self::GetId),
            kind::GET_ID => Err(MALFORMED),
            kind::DISCARD | kind::WRITE_ZEROES if limits.read_only => Err(MALFORMED),
            kind::DISCARD if limits.discard => ranges(buffers, memory, limits, true),
            kind::WRITE_ZEROES if limits.write_zeroes => ranges(buffers, memory, limits, false),
            _ => Err(UNSUPPORTED),
        }
    }
}

/// The byte offset of `length` bytes at `sector`, if they are whole sectors of the drive.
fn checked_offset(sector: u64, length: u64, sectors: u64) -> Result<u64, Refused> {
    let end = sector.checked_add(length / SECTOR).ok_or(MALFORMED)?;
    if length == 0 || !length.is_multiple_of(SECTOR) || end > sectors {
        return Err(MALFORMED);
    }
    sector.checked_mul(SECTOR).ok_or(MALFORMED)
}

/// Segments of a discard or write-zeroes request: `struct virtio_blk_discard_write_zeroes`.
fn ranges(
    buffers: &mut Buffers,
    memory: &GuestRam,
    limits: &Limits,
    discard: bool,
) -> Result<Request, Refused> {
    let bytes = buffers.readable_bytes();
    let count = bytes / 16;
    if !bytes.is_multiple_of(16)
        || count == 0
        || count > u64::from(MAX_RANGES)
        || buffers.writable_bytes() != 0
    {
        return Err(MALFORMED);
    }
    let mut ranges = Vec::new();
    for _ in 0..count {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] =
            buffers.take_readable::<16>(memory)?;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        // virtio 1.3 §5.2.6.2: UNSUPP for an unknown flag, and for unmap in a discard.
        if flags & !UNMAP != 0 || (discard && flags != 0) {
            return Err(Refused {
                status: Status::Unsupp,
                malformed: true,
            });
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(MALFORMED);
        }
        let length = u64::from(sectors) * SECTOR;
        ranges.push(Range {
            offset: checked_offset(sector, length, limits.sectors)?,
            length,
            punch: discard || flags & UNMAP != 0,
        });
    }
    Ok(Request::Ranges(ranges))
}
