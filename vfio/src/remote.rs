//! A PCI function that lives elsewhere, as the rest of this crate knows it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use vmm_sys_util::eventfd::EventFd;

use crate::mapping::Mapping;
use crate::region::{Region, RegionInfo};

/// What a function can tell by an event, in the numbers of VFIO (linux/vfio.h, VFIO_PCI_INTX_IRQ_INDEX and after).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Interrupt {
    /// The wired line. It is masked when it has been raised, until it is unmasked.
    Intx,
    Msi,
    Msix,
    /// The host saw an uncorrectable error of the function.
    Error,
    /// The host wants the function back.
    Request,
}

impl Interrupt {
    /// Its number in VFIO.
    pub fn index(self) -> u32 {
        match self {
            Self::Intx => 0,
            Self::Msi => 1,
            Self::Msix => 2,
            Self::Error => 3,
            Self::Request => 4,
        }
    }
}

/// A PCI function of the host's hardware (kernel VFIO), of another process (vfio-user), or of a test.
///
/// Calls come from several threads at once. None of them waits longer than a few seconds: a function that does not answer
/// gives an error, then and from then on.
pub trait RemoteFunction: Send + Sync {
    /// What there is of `region`; the size is 0 if there is nothing. Known from the start, so it costs nothing.
    fn region(&self, region: Region) -> &RegionInfo;

    /// Reads `data.len()` bytes at `offset` of `region`. The access lies within the region.
    ///
    /// # Errors
    /// The function is gone or refused.
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset` of `region`. The access lies within the region.
    ///
    /// # Errors
    /// The function is gone or refused.
    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Maps a part of `region`, whole pages of one of its [`mappable`](RegionInfo::mappable) areas.
    ///
    /// # Errors
    /// The host refused.
    fn map(&self, region: Region, area: Range<u64>) -> io::Result<Mapping>;

    /// How many interrupts of this kind it has: vectors of MSI and MSI-X, 1 or 0 of the others.
    fn interrupts(&self, kind: Interrupt) -> u16;

    /// From now on interrupt `n` of this kind is a write to `events[n]`; that of what was enabled before is forgotten. One
    /// of INTx, MSI and MSI-X can be enabled at a time. Gives how many vectors there are, which can be fewer than asked
    /// for.
    ///
    /// # Errors
    /// The function is gone, or the host has no vector left.
    fn enable(&self, kind: Interrupt, events: &[&EventFd]) -> io::Result<usize>;

    /// Ends what [`enable`](Self::enable) began.
    ///
    /// # Errors
    /// The function is gone.
    fn disable(&self, kind: Interrupt) -> io::Result<()>;

    /// INTx, which is enabled, is unmasked by a write to `event` from now on.
    ///
    /// # Errors
    /// The function is gone, or it has no INTx.
    fn unmask_by(&self, event: &EventFd) -> io::Result<()>;

    /// Whether it can be brought to its state after power-on.
    fn can_reset(&self) -> bool;

    /// Brings it to its state after power-on, BARs and interrupts that are enabled excepted.
    ///
    /// # Errors
    /// It cannot, or did not.
    fn reset(&self) -> io::Result<()>;

    /// A descriptor that hangs up when the function is gone, if there is such a one.
    fn lifeline(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Memory that a function is to reach by DMA.
#[derive(Debug, Clone, Copy)]
pub struct DmaMemory<'a> {
    /// Where it is in this process.
    pub address: *mut u8,
    /// Bytes; whole pages.
    pub size: u64,
    /// The file that it is a shared mapping of, and from where: for functions of another process.
    pub file: Option<(&'a File, u64)>,
}

/// What a function, or all that share an IOMMU's translation, reaches by DMA.
pub trait DmaSpace: Send + Sync {
    /// Lets `memory` be reached at `iova`.
    ///
    /// # Errors
    /// The range is taken or reserved, or the memory cannot be pinned or shared.
    ///
    /// # Safety
    /// The memory stays mapped until it is unmapped here or this space is gone, and nothing but a guest's own data is in it.
    unsafe fn map(&self, iova: u64, memory: DmaMemory<'_>) -> io::Result<()>;

    /// Ends it: from now on accesses there fail.
    ///
    /// # Errors
    /// There was no such mapping.
    fn unmap(&self, iova: u64, size: u64) -> io::Result<()>;
}
