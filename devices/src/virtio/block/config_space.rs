//! The features and the configuration that the driver sees (virtio 1.3 §5.2.3, §5.2.4).

use super::QUEUE_SIZE;
use super::backing::{Backing, SECTOR};
use super::request::{MAX_RANGE_SECTORS, MAX_RANGES};

/// Feature bits.
pub(super) mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Bytes up to the end of the write-zeroes fields.
const BYTES: usize = 60;

/// Bytes of a host page, the unit that a file is best written and freed in.
const PAGE: u64 = 4096;

/// Every descriptor but those of header and status.
const MAX_SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;

/// What the driver is told about a drive. Goes into snapshots, for a drive must not change under its driver.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Geometry {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Block size in bytes; smaller requests may fail where the file is opened with O_DIRECT.
    pub block_size: u32,
    /// Offered feature bits.
    pub features: u64,
    /// Number of request queues.
    pub queues: u16,
}

impl Geometry {
    /// What is true of `backing`.
    pub(super) fn new(backing: &Backing, read_only: bool, writeback: bool, queues: u16) -> Self {
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY;
        let mut offer = |bit, condition| {
            if condition {
                features |= bit;
            }
        };
        offer(feature::RO, read_only);
        offer(feature::FLUSH, writeback);
        offer(feature::MQ, queues > 1);
        offer(feature::DISCARD | feature::WRITE_ZEROES, backing.punch);
        let block = backing.direct.map_or(SECTOR, |alignment| alignment.offset);
        Self {
            sectors: backing.sectors,
            block_size: u32::try_from(block).unwrap_or(512),
            features,
            queues,
        }
    }

    /// The device configuration, `struct virtio_blk_config`.
    fn bytes(&self) -> [u8; BYTES] {
        let block = u64::from(self.block_size).max(SECTOR);
        let blocks_per_page = PAGE.checked_div(block).unwrap_or(1).max(1);
        let exponent = u8::try_from(blocks_per_page.ilog2()).unwrap_or(0);
        let min_io = u16::try_from(blocks_per_page).unwrap_or(1);
        let sectors_per_page = u32::try_from(PAGE / SECTOR).unwrap_or(8);
        let discard = self.features & feature::DISCARD != 0;
        let (range, ranges) = if discard {
            (MAX_RANGE_SECTORS, MAX_RANGES)
        } else {
            (0, 0)
        };
        let fields: [&[u8]; 17] = [
            &self.sectors.to_le_bytes(),
            &0_u32.to_le_bytes(), // size_max: no limit
            &MAX_SEGMENTS.to_le_bytes(),
            &[0; 4], // geometry: none
            &self.block_size.to_le_bytes(),
            &[exponent, 0], // physical_block_exp, alignment_offset
            &min_io.to_le_bytes(),
            &0_u32.to_le_bytes(), // opt_io_size: no preference
            &[0, 0],              // writeback, unused0
            &self.queues.to_le_bytes(),
            &range.to_le_bytes(),
            &ranges.to_le_bytes(),
            &sectors_per_page.to_le_bytes(), // discard_sector_alignment
            &range.to_le_bytes(),
            &ranges.to_le_bytes(),
            &[u8::from(discard)], // write_zeroes_may_unmap
            &[0; 3],
        ];
        let mut bytes = [0; BYTES];
        for (target, source) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *target = *source;
        }
        bytes
    }

    /// Reads from the device configuration; zeroes beyond its end.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = bytes.get(start..).unwrap_or(&[]);
        data.fill(0);
        for (target, source) in data.iter_mut().zip(source) {
            *target = *source;
        }
    }
}
