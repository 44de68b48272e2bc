//! What regions and interrupts the function has.

use std::fs::File;
use std::os::fd::AsRawFd;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_PCI_ROM_REGION_INDEX, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info, vfio_region_sparse_mmap_area,
};
use vfio_user::{IrqInfo, ServerRegion, SparseArea};

/// Size of BAR 0, the registers: each access is a message.
pub const BAR0: u64 = 4096;
/// Size of BAR 4, memory around MSI-X's table.
pub const BAR4: u64 = 64 << 10;
/// Size of the expansion ROM.
pub const ROM: u64 = 2048;
/// Size of configuration space.
pub const CONFIG: u64 = 4096;
/// Vectors of MSI-X, and of MSI.
pub const MSIX_VECTORS: u16 = 4;
pub const MSI_VECTORS: u16 = 8;
/// Where the table must begin before, so that it and the pending bits fit.
pub const MOST_TABLE_OFFSET: u32 = 0xFF00;

const PAGE: u64 = 4096;

/// What differs from run to run.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Size of BAR 2, bytes.
    pub memory: u64,
    /// Offset of MSI-X's table in BAR 4.
    pub table: u32,
}

impl Layout {
    /// Offset of the pending bits in BAR 4: right behind the table.
    pub fn pending(&self) -> u32 {
        self.table + 16 * u32::from(MSIX_VECTORS)
    }

    /// All regions, by number. All of `bar2` can be mapped, of `bar4` the pages without table and pending bits.
    pub fn regions(&self, bar2: &File, bar4: &File) -> Vec<ServerRegion> {
        let mut regions: Vec<ServerRegion> = (0..VFIO_PCI_NUM_REGIONS).map(region).collect();
        let mut set = |index: u32, size| regions[index as usize].region_info.size = size;
        set(0, BAR0);
        set(2, self.memory);
        set(4, BAR4);
        set(VFIO_PCI_ROM_REGION_INDEX, ROM);
        set(VFIO_PCI_CONFIG_REGION_INDEX, CONFIG);
        share(&mut regions[2], bar2, &[(0, self.memory)]);
        let first = u64::from(self.table) / PAGE * PAGE;
        let end = (u64::from(self.pending()) + 8).next_multiple_of(PAGE);
        share(&mut regions[4], bar4, &[(0, first), (end, BAR4)]);
        regions
    }
}

fn region(index: u32) -> ServerRegion {
    ServerRegion {
        region_info: vfio_region_info {
            argsz: size_of::<vfio_region_info>() as u32,
            flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
            index,
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    }
}

/// Lets the ranges of a region that are not empty be mapped from `file`.
fn share(region: &mut ServerRegion, file: &File, ranges: &[(u64, u64)]) {
    region.region_info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    region.mmap_fd = Some(file.as_raw_fd());
    let area = |&(start, end): &(u64, u64)| SparseArea {
        area: vfio_region_sparse_mmap_area {
            offset: start,
            size: end - start,
        },
    };
    let some = ranges.iter().filter(|(start, end)| start < end);
    region.sparse_areas = some.map(area).collect();
}

/// INTx, MSI, MSI-X, and none of the others.
pub fn irqs() -> Vec<IrqInfo> {
    let counts = [1, MSI_VECTORS, MSIX_VECTORS];
    (0..VFIO_PCI_NUM_IRQS)
        .map(|index| IrqInfo {
            index,
            flags: match index {
                0 => VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED,
                _ => VFIO_IRQ_INFO_EVENTFD,
            },
            count: counts.get(index as usize).copied().unwrap_or(0).into(),
        })
        .collect()
}
