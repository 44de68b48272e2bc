//! Regions of a function, in the numbers and structures of VFIO (linux/vfio.h), which vfio-user shares.

use std::ops::Range;

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ROM_REGION_INDEX,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};

/// A part of a function that can be read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Region {
    /// BAR 0 to 5.
    Bar(u8),
    /// The expansion ROM.
    Rom,
    /// Configuration space.
    Config,
}

impl Region {
    /// All that this crate asks for, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Bar(0),
        Self::Bar(1),
        Self::Bar(2),
        Self::Bar(3),
        Self::Bar(4),
        Self::Bar(5),
        Self::Rom,
        Self::Config,
    ];

    /// Its number in VFIO.
    pub fn index(self) -> u32 {
        match self {
            Self::Bar(bar) => VFIO_PCI_BAR0_REGION_INDEX + u32::from(bar),
            Self::Rom => VFIO_PCI_ROM_REGION_INDEX,
            Self::Config => VFIO_PCI_CONFIG_REGION_INDEX,
        }
    }

    /// Its place in [`ALL`](Self::ALL).
    pub fn place(self) -> usize {
        match self {
            Self::Bar(bar) => usize::from(bar),
            Self::Rom => 6,
            Self::Config => 7,
        }
    }
}

/// What there is of a region.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Bytes; 0 if there is no such region.
    pub size: u64,
    pub readable: bool,
    pub writable: bool,
    /// Byte ranges that can be mapped.
    pub mappable: Vec<Range<u64>>,
    /// Where it begins in the descriptor that it is read, written or mapped by.
    pub offset: u64,
}

impl RegionInfo {
    /// Whether `length` bytes at `offset` lie within the region.
    pub fn holds(&self, offset: u64, length: usize) -> bool {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let end = offset.checked_add(length);
        end.is_some_and(|end| end <= self.size)
    }

    /// Reads what VFIO answered about a region: the fixed part, and all of its bytes with the capabilities after it. A list
    /// of areas that leads nowhere counts as none.
    pub fn parse(info: &vfio_region_info, bytes: &[u8]) -> Self {
        let flag = |flag| info.flags & flag != 0;
        let mut mappable = Vec::new();
        if flag(VFIO_REGION_INFO_FLAG_MMAP) {
            let whole = 0..info.size;
            let sparse = flag(VFIO_REGION_INFO_FLAG_CAPS)
                .then(|| sparse_areas(info.cap_offset, bytes))
                .flatten();
            mappable = sparse.unwrap_or_else(|| vec![whole]);
            mappable.retain(|area| area.start < area.end && area.end <= info.size);
        }
        Self {
            size: info.size,
            readable: flag(VFIO_REGION_INFO_FLAG_READ),
            writable: flag(VFIO_REGION_INFO_FLAG_WRITE),
            mappable,
            offset: info.offset,
        }
    }
}

/// Most capabilities that are looked at, and most areas that are taken: more than any function has.
const MOST: usize = 64;

/// The areas of the sparse-mmap capability, if there is one. `first` is where the list begins.
fn sparse_areas(first: u32, bytes: &[u8]) -> Option<Vec<Range<u64>>> {
    let mut at = usize::try_from(first).ok()?;
    for _ in 0..MOST {
        // struct vfio_info_cap_header: id, version, next.
        let id = u16::from_le_bytes(field(bytes, at)?);
        let next = u32::from_le_bytes(field(bytes, at.checked_add(4)?)?);
        if u32::from(id) == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            return Some(areas(at.checked_add(8)?, bytes));
        }
        if next == 0 {
            break;
        }
        at = usize::try_from(next).ok()?;
    }
    None
}

/// The areas of struct vfio_region_info_cap_sparse_mmap after its header: a count, padding, and offset and size of each.
fn areas(at: usize, bytes: &[u8]) -> Vec<Range<u64>> {
    let count = field(bytes, at).map_or(0, u32::from_le_bytes);
    let count = usize::try_from(count).unwrap_or(MOST).min(MOST);
    let area = |n: usize| {
        let at = at.checked_add(8)?.checked_add(n.checked_mul(16)?)?;
        let offset = u64::from_le_bytes(field(bytes, at)?);
        let size = u64::from_le_bytes(field(bytes, at.checked_add(8)?)?);
        Some(offset..offset.checked_add(size)?)
    };
    (0..count).map_while(area).collect()
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer with the sparse areas `areas`, the count of which is said to be `count`.
    fn answer(areas: &[(u64, u64)], count: u32, next: u32) -> (vfio_region_info, Vec<u8>) {
        let head = size_of::<vfio_region_info>();
        let info = vfio_region_info {
            flags: VFIO_REGION_INFO_FLAG_MMAP
                | VFIO_REGION_INFO_FLAG_CAPS
                | VFIO_REGION_INFO_FLAG_READ,
            cap_offset: head as u32,
            size: 0x10_0000,
            ..Default::default()
        };
        let mut bytes = vec![0; head];
        // A capability of another kind comes first.
        bytes.extend([3, 0, 1, 0]);
        bytes.extend((head as u32 + 8).to_le_bytes());
        bytes.extend([1, 0, 1, 0]);
        bytes.extend(next.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend([0; 4]);
        for (offset, size) in areas {
            bytes.extend(offset.to_le_bytes());
            bytes.extend(size.to_le_bytes());
        }
        (info, bytes)
    }

    #[test]
    fn areas_that_can_be_mapped_are_those_of_the_list_or_all() {
        let (info, bytes) = answer(&[(0, 0x1000), (0x3000, 0xFD000)], 2, 0);
        let parsed = RegionInfo::parse(&info, &bytes);
        assert_eq!(parsed.mappable, [0..0x1000, 0x3000..0x10_0000]);
        assert!(parsed.readable && !parsed.writable);
        let plain = vfio_region_info {
            flags: VFIO_REGION_INFO_FLAG_MMAP,
            ..info
        };
        assert_eq!(RegionInfo::parse(&plain, &[]).mappable, vec![0..0x10_0000]);
        let none = vfio_region_info { flags: 0, ..info };
        assert!(RegionInfo::parse(&none, &bytes).mappable.is_empty());
    }

    #[test]
    fn lists_that_lead_nowhere_are_harmless() {
        // More areas said than there are, areas outside of the region, empty and wrapping ones.
        let odd = [(0, 0x1000), (0x10_0000, 1), (0x2000, 0), (u64::MAX, 2)];
        let (info, bytes) = answer(&odd, u32::MAX, 0);
        assert_eq!(RegionInfo::parse(&info, &bytes).mappable, vec![0..0x1000]);
        for cut in 0..bytes.len() {
            let _ = RegionInfo::parse(&info, &bytes[..cut]);
        }
        // A list that goes round.
        let (info, mut bytes) = answer(&[], 0, 0);
        let first = size_of::<vfio_region_info>();
        bytes[first + 4..first + 8].copy_from_slice(&(first as u32).to_le_bytes());
        assert_eq!(
            RegionInfo::parse(&info, &bytes).mappable,
            vec![0..0x10_0000]
        );
    }
}
