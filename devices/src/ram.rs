//! Guest RAM as every device sees it.

use std::io;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Result;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection,
    GuestRegionMmap, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

/// The RAM of a machine. Clones share it.
pub type GuestRam = GuestRegionCollection<GuestRegion>;

/// A piece of guest RAM without a hole. It owns its mapping, which goes with the last clone of the [`GuestRam`] that it is
/// part of: a device can outlive its machine, but not the RAM that it uses.
#[derive(Debug)]
pub struct GuestRegion(GuestRegionMmap<()>);

impl GuestRegion {
    /// Takes over the mapping of `size` bytes at `address`, as the guest's RAM from `start` on. It is unmapped on error
    /// too.
    ///
    /// # Errors
    /// `address` is not the start of a page, or the RAM would wrap around.
    ///
    /// # Safety
    /// The range is mapped readable and writable, whole pages of it, and nobody else unmaps it or has references into it.
    pub unsafe fn from_mapping(
        address: *mut u8,
        size: usize,
        start: GuestAddress,
    ) -> std::result::Result<Self, MmapRegionError> {
        let builder =
            MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the caller's promise; it is unmapped only when `Self` is dropped, which has all pointers to it.
        let region = unsafe { builder.with_raw_mmap_pointer(address) }
            .build()
            .and_then(|region| {
                GuestRegionMmap::new(region, start).ok_or(MmapRegionError::InvalidOffsetLength)
            });
        if region.is_err() {
            unmap(address, size);
        }
        region.map(Self)
    }

    /// Where it is in this process: for handing it to the hypervisor.
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}

impl Drop for GuestRegion {
    fn drop(&mut self) {
        unmap(self.0.as_ptr(), self.0.size());
    }
}

/// Unmaps what a [`GuestRegion`] owned.
fn unmap(address: *mut u8, size: usize) {
    // SAFETY: `from_mapping` was promised that the range is the region's own, and nothing uses a region that is being
    // dropped. A range that is no mapping is refused.
    let result = unsafe { libc::munmap(address.cast(), size) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::error!("cannot unmap {size} bytes of guest RAM: {error}");
    }
}

impl GuestMemoryRegion for GuestRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.0.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.0.start_addr()
    }

    fn bitmap(&self) -> BS<'_, ()> {
        self.0.bitmap()
    }

    fn get_host_address(&self, address: MemoryRegionAddress) -> Result<*mut u8> {
        self.0.get_host_address(address)
    }

    fn file_offset(&self) -> Option<&FileOffset> {
        self.0.file_offset()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, ()>>> {
        self.0.get_slice(offset, count)
    }
}

impl GuestMemoryRegionBytes for GuestRegion {}

/// Gives guest RAM that the guest does not need back to the host. Whoever made the RAM implements it, and alone knows what
/// is behind it.
pub trait ReleasePages: Send + Sync {
    /// Gives back the memory behind `length` bytes from `start` on, as far as what is behind them can be given back in
    /// parts. The RAM stays usable; what it holds is undefined until the guest writes to it, but nobody else's data.
    /// `start` and `length` are multiples of 4 KiB.
    ///
    /// # Errors
    /// Some of it is not RAM, or the host refused.
    fn release(&self, start: GuestAddress, length: u64) -> io::Result<()>;
}

/// RAM of zeros at the given places, in the order of their addresses: for devices without a hypervisor, as in tests.
///
/// # Errors
/// There is not so much memory, or the places overlap.
pub fn anonymous(places: &[(GuestAddress, usize)]) -> io::Result<GuestRam> {
    let region = |(start, size): &(GuestAddress, usize)| {
        // SAFETY: a fresh mapping at a place of the kernel's choice touches no existing one.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                *size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: mapped above, and known to nobody else.
        unsafe { GuestRegion::from_mapping(address.cast(), *size, *start) }
            .map_err(io::Error::other)
    };
    let regions = places.iter().map(region).collect::<io::Result<Vec<_>>>()?;
    GuestRam::from_regions(regions).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    /// Whether any mapping of this process contains the address.
    fn is_mapped(address: usize) -> bool {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| {
            let range = line.split(' ').next().unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            (number(start)..number(end)).contains(&address)
        })
    }

    /// Larger than anything else that the tests of this crate map: nothing else reaches the middle of the gap it leaves.
    const LARGE: usize = 64 << 30;

    /// One test, because two such gaps could be confused.
    #[test]
    fn ram_is_mapped_until_its_last_user_is_gone_and_not_at_all_if_it_cannot_be() {
        let large = || anonymous(&[(GuestAddress(0), LARGE)]).unwrap();
        let start = |ram: &GuestRam| ram.iter().next().unwrap().as_ptr();
        let ram = large();
        let middle = start(&ram).addr() + LARGE / 2;
        let device = ram.clone();
        drop(ram);
        assert!(is_mapped(middle));
        device.write_obj(7_u8, GuestAddress(9)).unwrap();
        assert_eq!(device.read_obj::<u8>(GuestAddress(9)).unwrap(), 7);
        drop(device);
        assert!(!is_mapped(middle));

        let ram = large();
        let address = start(&ram);
        std::mem::forget(ram);
        // SAFETY: the mapping was made above, and its first owner is forgotten.
        let wraps =
            unsafe { GuestRegion::from_mapping(address, LARGE, GuestAddress(u64::MAX - 9)) };
        assert!(wraps.is_err());
        assert!(!is_mapped(address.addr() + LARGE / 2));
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let ram = anonymous(&[(GuestAddress(0), 4096), (GuestAddress(8192), 4096)]).unwrap();
        for address in [4096, 8191, 12288, u64::MAX] {
            assert!(ram.write_obj(7_u8, GuestAddress(address)).is_err());
        }
        assert!(ram.write_obj(7_u32, GuestAddress(4094)).is_err());
        ram.write_obj(7_u32, GuestAddress(8192)).unwrap();
    }
}
