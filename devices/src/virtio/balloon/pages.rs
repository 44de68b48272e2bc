//! Which pages of guest RAM a request names.

use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::GuestRam;

/// A balloon counts in pages of this size, whatever the guest's own (virtio 1.3 §5.5.6).
pub(super) const PAGE_SHIFT: u32 = 12;
/// Size of a page in bytes.
pub(super) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Numbers of pages that are all in guest RAM. Reused from request to request.
#[derive(Default)]
pub(super) struct Pages {
    ranges: Vec<Range<u64>>,
}

impl Pages {
    /// Forgets all pages and keeps the allocation.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// Adds `length` bytes at `start`; false, and nothing is added, unless they are whole pages of `memory`.
    pub fn add(&mut self, memory: &GuestRam, start: GuestAddress, length: u64) -> bool {
        let is_aligned = start.0.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE);
        let end = start.0.checked_add(length);
        let (Some(end), Ok(bytes), true) = (end, usize::try_from(length), is_aligned) else {
            return false;
        };
        if !memory.check_range(start, bytes) {
            return false;
        }
        self.ranges.push(start.0 >> PAGE_SHIFT..end >> PAGE_SHIFT);
        true
    }

    /// The pages in the order of their addresses, each once, in the fewest ranges: address and length in bytes.
    pub fn merged(&mut self) -> impl Iterator<Item = (GuestAddress, u64)> {
        self.ranges.sort_unstable_by_key(|range| range.start);
        self.ranges.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
        self.ranges.iter().map(|range| {
            let count = range.end.saturating_sub(range.start);
            // Both fit: they were addresses before they were numbers.
            (GuestAddress(range.start << PAGE_SHIFT), count << PAGE_SHIFT)
        })
    }
}
