//! The parts of a function's BARs that the guest reaches without an exit: mapped here, and put into the guest's memory
//! wherever the BAR is.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::capabilities::{InBar, MsixPlace};
use crate::mapping::{Mapping, MemorySlots, PAGE};
use crate::region::Region;
use crate::remote::{DmaMemory, DmaSpace, RemoteFunction};

/// The mapped parts of one BAR.
pub struct MappedBar {
    slots: Arc<dyn MemorySlots>,
    /// Where other functions reach it by DMA, if they may.
    peers: Option<Arc<dyn DmaSpace>>,
    areas: Vec<Area>,
    placed: Mutex<Vec<Placed>>,
}

struct Area {
    /// Where it begins in the BAR.
    offset: u64,
    memory: Arc<Mapping>,
}

/// A part that the guest can reach at present.
struct Placed {
    slot: u32,
    /// Guest-physical address and size that other functions reach it by.
    shared: Option<(u64, u64)>,
}

impl MappedBar {
    /// Maps what can be mapped of BAR `bar`: whole pages that have nothing of MSI-X in them.
    ///
    /// # Errors
    /// The host refused.
    pub fn new(
        remote: &dyn RemoteFunction,
        bar: u8,
        msix: Option<&MsixPlace>,
        slots: Arc<dyn MemorySlots>,
        peers: Option<Arc<dyn DmaSpace>>,
    ) -> io::Result<Self> {
        let info = remote.region(Region::Bar(bar));
        let mut ranges = Vec::new();
        // What cannot be written does not behave as memory: its writes have to get to the function.
        if info.readable && info.writable {
            ranges = info.mappable.iter().filter_map(whole_pages).collect();
        }
        for place in msix.iter().flat_map(|msix| [msix.table, msix.pending]) {
            if place.bar == bar {
                ranges = ranges
                    .into_iter()
                    .flat_map(|range| without(range, &place))
                    .collect();
            }
        }
        let mut areas = Vec::new();
        for range in ranges {
            areas.push(Area {
                offset: range.start,
                memory: Arc::new(remote.map(Region::Bar(bar), range)?),
            });
        }
        Ok(Self {
            slots,
            peers,
            areas,
            placed: Mutex::default(),
        })
    }

    /// The BAR answers at `address` from now on, or nowhere.
    pub fn moved(&self, address: Option<u64>) {
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        for place in placed.drain(..) {
            self.take_away(&place);
        }
        // An address that is no page's start, which is for BARs smaller than a page, cannot be mapped: accesses are exits.
        let Some(address) = address.filter(|address| address.is_multiple_of(PAGE)) else {
            return;
        };
        for area in &self.areas {
            let start = address.saturating_add(area.offset);
            match self.slots.insert(start, &area.memory) {
                Ok(slot) => placed.push(Placed {
                    slot,
                    shared: self.share(start, &area.memory),
                }),
                Err(error) => tracing::warn!(
                    "{:#x} bytes of a BAR cannot be mapped at {start:#x}, each access there is an exit: {error}",
                    area.memory.size()
                ),
            }
        }
    }

    fn share(&self, start: u64, memory: &Mapping) -> Option<(u64, u64)> {
        let peers = self.peers.as_ref()?;
        let what = DmaMemory {
            address: memory.address(),
            size: memory.size(),
            file: None,
        };
        // SAFETY: the mapping lives as long as `self`, which unmaps it here before; it is the function's own memory.
        match unsafe { peers.map(start, what) } {
            Ok(()) => Some((start, memory.size())),
            Err(error) => {
                tracing::warn!("other functions cannot reach the BAR at {start:#x}: {error}");
                None
            }
        }
    }

    fn take_away(&self, place: &Placed) {
        if let (Some(peers), Some((start, size))) = (&self.peers, place.shared)
            && let Err(error) = peers.unmap(start, size)
        {
            tracing::error!("other functions still reach {start:#x}: {error}");
        }
        if let Err(error) = self.slots.remove(place.slot) {
            tracing::error!("the guest still has memory slot {}: {error}", place.slot);
        }
    }
}

impl Drop for MappedBar {
    fn drop(&mut self) {
        self.moved(None);
    }
}

/// The whole pages of a range.
fn whole_pages(range: &Range<u64>) -> Option<Range<u64>> {
    let start = range.start.checked_next_multiple_of(PAGE)?;
    let end = range.end - range.end % PAGE;
    (start < end).then_some(start..end)
}

/// What is left of `range` without the pages that `place` is in.
fn without(range: Range<u64>, place: &InBar) -> Vec<Range<u64>> {
    let first = place.offset - place.offset % PAGE;
    let end = place.offset.saturating_add(place.length);
    let last = end.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
    let parts = [
        range.start..range.end.min(first),
        range.start.max(last)..range.end,
    ];
    parts
        .into_iter()
        .filter(|part| part.start < part.end)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_with_the_table_are_left_out_however_it_lies() {
        let table = |offset, length| InBar {
            bar: 0,
            offset,
            length,
        };
        let all = 0..0x10_000;
        assert_eq!(without(all.clone(), &table(0, 16)), vec![0x1000..0x10_000]);
        assert_eq!(without(all.clone(), &table(0xF800, 0x800)), vec![0..0xF000]);
        // In the middle, over the end of a page.
        assert_eq!(
            without(all.clone(), &table(0x2FF0, 0x20)),
            [0..0x2000, 0x4000..0x10_000]
        );
        assert!(without(0..0x1000, &table(0x800, 16)).is_empty());
        assert_eq!(without(0..0x1000, &table(0x2000, 16)), vec![0..0x1000]);
        assert_eq!(without(all, &table(u64::MAX - 8, 16)), vec![0..0x10_000]);
    }

    #[test]
    fn only_whole_pages_are_mapped() {
        assert_eq!(whole_pages(&(0..0x1000)), Some(0..0x1000));
        assert_eq!(whole_pages(&(1..0x3001)), Some(0x1000..0x3000));
        assert_eq!(whole_pages(&(0..0x800)), None);
        assert_eq!(whole_pages(&(u64::MAX - 1..u64::MAX)), None);
    }
}
