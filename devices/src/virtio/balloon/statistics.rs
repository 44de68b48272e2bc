//! What the guest says of its memory (virtio 1.3 §5.5.6.3 and §5.5.6.4).

use crate::GuestRam;
use crate::virtio::chain::{Buffers, OutsideRam};

/// Bytes of one figure: a tag of 16 bits and a value of 64, packed.
const ENTRY_BYTES: u64 = 10;

/// Most figures that are read of a buffer. There are 16 tags; a driver that sends more says some of them twice.
const MAX_ENTRIES: usize = 32;

/// The guest's own figures, as it gave them: it may lie. `None` is what it did not say.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes swapped in, since boot.
    pub swap_in: Option<u64>,
    /// Bytes swapped out, since boot.
    pub swap_out: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Other page faults.
    pub minor_faults: Option<u64>,
    /// Bytes not used for anything.
    pub free_memory: Option<u64>,
    /// Bytes of memory that the guest has in all, without the balloon's.
    pub total_memory: Option<u64>,
    /// Bytes that new programs could have without swapping.
    pub available_memory: Option<u64>,
    /// Bytes of file caches, which can be had back at once.
    pub disk_caches: Option<u64>,
    /// Huge pages (hugetlb) that the guest gave to its programs.
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages (hugetlb) that it could not give.
    pub hugetlb_failures: Option<u64>,
    /// Times that the guest killed a program for want of memory.
    pub oom_kill: Option<u64>,
    /// Allocations that had to wait for memory.
    pub alloc_stall: Option<u64>,
    /// Pages looked at by background reclaim.
    pub async_scan: Option<u64>,
    /// Pages looked at by programs that wait for memory.
    pub direct_scan: Option<u64>,
    /// Pages reclaimed in the background.
    pub async_reclaim: Option<u64>,
    /// Pages reclaimed by programs that wait for memory.
    pub direct_reclaim: Option<u64>,
}

impl Statistics {
    /// Reads the readable bytes of a chain: as many figures as there can be, whatever its length. A tag that nobody knows
    /// is skipped, and so is a piece of a figure at the end.
    ///
    /// # Errors
    /// The bytes are not in RAM.
    pub(super) fn read(buffers: &mut Buffers, memory: &GuestRam) -> Result<Self, OutsideRam> {
        let mut statistics = Self::default();
        for _ in 0..MAX_ENTRIES {
            if buffers.readable_bytes() < ENTRY_BYTES {
                break;
            }
            let [tag_low, tag_high, value @ ..] = buffers.take_readable::<10>(memory)?;
            if let Some(figure) = statistics.figure(u16::from_le_bytes([tag_low, tag_high])) {
                *figure = Some(u64::from_le_bytes(value));
            }
        }
        Ok(statistics)
    }

    fn figure(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        // Tags up to 9 are virtio 1.3's, the others Linux's (include/uapi/linux/virtio_balloon.h).
        Some(match tag {
            0 => &mut self.swap_in,
            1 => &mut self.swap_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_memory,
            5 => &mut self.total_memory,
            6 => &mut self.available_memory,
            7 => &mut self.disk_caches,
            8 => &mut self.hugetlb_allocations,
            9 => &mut self.hugetlb_failures,
            10 => &mut self.oom_kill,
            11 => &mut self.alloc_stall,
            12 => &mut self.async_scan,
            13 => &mut self.direct_scan,
            14 => &mut self.async_reclaim,
            15 => &mut self.direct_reclaim,
            _ => return None,
        })
    }
}
