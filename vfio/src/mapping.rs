//! Parts of a function's BARs, mapped into this process and from there into the guest.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// Largest alignment that a mapping gets: the largest page of the CPU and of an IOMMU.
const MOST_ALIGNED: usize = 1 << 30;

/// Size of a page.
pub const PAGE: u64 = 4096;

/// A mapping of device memory. It is unmapped when this is dropped.
///
/// This process never reads or writes it: it is there for the hypervisor, and for an IOMMU.
#[derive(Debug)]
pub struct Mapping {
    address: *mut u8,
    size: usize,
}

// SAFETY: the address is only handed on; nothing in this process accesses the memory behind it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes of `file` from `offset` on, shared. The address is as far into a page of up to 1 GiB as `within` is,
    /// so that the hypervisor can use pages as large as the guest-physical address allows.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn new(
        file: &File,
        offset: u64,
        size: u64,
        within: u64,
        writable: bool,
    ) -> io::Result<Self> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let size = usize::try_from(size).map_err(|_| invalid())?;
        let align = size
            .checked_next_power_of_two()
            .map_or(MOST_ALIGNED, |all| all.min(MOST_ALIGNED));
        let room = size.checked_add(align).ok_or_else(invalid)?;
        let reserved = map(std::ptr::null_mut(), room, libc::PROT_NONE, None)?;
        let within = usize::try_from(within).unwrap_or(0) % align;
        let lead = reserved.wrapping_sub(within).align_offset(align);
        let start = reserved.wrapping_add(lead);
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        let offset = libc::off_t::try_from(offset).map_err(|_| invalid());
        let mapped = offset.and_then(|offset| map(start, size, protection, Some((file, offset))));
        if let Err(error) = mapped {
            unmap(reserved, room);
            return Err(error);
        }
        unmap(reserved, lead);
        let tail = room.saturating_sub(lead).saturating_sub(size);
        unmap(start.wrapping_add(size), tail);
        Ok(Self {
            address: start,
            size,
        })
    }

    /// Where it is in this process.
    pub fn address(&self) -> *mut u8 {
        self.address
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size as u64
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.address, self.size);
    }
}

/// Maps pages: of a file at exactly `place`, or fresh ones that nothing may touch, wherever there is room.
fn map(
    place: *mut u8,
    size: usize,
    protection: libc::c_int,
    file: Option<(&File, libc::off_t)>,
) -> io::Result<*mut u8> {
    let (flags, descriptor, offset) = match file {
        None => (
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        ),
        // Only pages of the reservation that the caller made are replaced.
        Some((file, offset)) => (libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd(), offset),
    };
    // SAFETY: without MAP_FIXED no existing mapping is touched; with it, one that belongs to the caller.
    let address = unsafe { libc::mmap(place.cast(), size, protection, flags, descriptor, offset) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(address.cast())
}

fn unmap(address: *mut u8, size: usize) {
    if size == 0 {
        return;
    }
    // SAFETY: callers give a range that they mapped and that nothing uses any more.
    let result = unsafe { libc::munmap(address.cast(), size) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::error!("cannot unmap {size} bytes of device memory: {error}");
    }
}

/// Puts device memory into the guest's physical address space (KVM: memory slots).
pub trait MemorySlots: Send + Sync {
    /// From now on guest accesses to the guest-physical addresses from `start` on reach `memory`, without an exit. It is
    /// kept until the slot is removed. `start` and the size are multiples of [`PAGE`].
    ///
    /// # Errors
    /// No slot is left, or something else is there.
    fn insert(&self, start: u64, memory: &Arc<Mapping>) -> io::Result<u32>;

    /// Undoes [`insert`](Self::insert).
    ///
    /// # Errors
    /// The hypervisor refused; the memory is then kept for ever.
    fn remove(&self, slot: u32) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_lies_as_in_its_bar_and_shows_its_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        let mapping = Mapping::new(&file, 2 << 20, 4 << 20, 1 << 20, true).unwrap();
        assert_eq!(mapping.address().addr() % (4 << 20), 1 << 20);
        assert_eq!(mapping.size(), 4 << 20);
        // SAFETY: the test's own memory.
        unsafe { mapping.address().write_volatile(7) };
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, 2 << 20).unwrap();
        assert_eq!(byte, [7]);
        assert!(
            Mapping::new(&file, 1, PAGE, 0, true).is_err(),
            "no page's start"
        );
        assert!(Mapping::new(&file, u64::MAX, PAGE, 0, true).is_err());
        assert!(Mapping::new(&file, 0, u64::MAX, 0, true).is_err());
    }
}
