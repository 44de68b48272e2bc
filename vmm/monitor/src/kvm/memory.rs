//! Guest RAM: what is behind it, and how KVM gets to see it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fief_devices::GuestRam;
use fief_devices::ram::{GuestRegion, ReleasePages};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{KvmError, refused};
use crate::boot::layout;
use crate::config::{MemoryBacking, MemoryConfig};
use crate::machine::files::Files;

/// Alignment of guest RAM in the host, so that a guest's 2 MiB page can be one of the host's (Intel SDM 3A §4.5).
const HUGE_PAGE: usize = 2 << 20;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("mem_size_mib is {0}, which is more than this computer can address")]
    TooLarge(u64),
    #[error(
        "cannot reserve {mib} MiB for the guest: {source}; ask for less memory or free some on the host"
    )]
    Map { mib: u64, source: io::Error },
    #[error(
        "cannot reserve {mib} MiB of 2 MiB pages for the guest: {source}; let the host keep more of them with \
         `sysctl vm.nr_hugepages=N`, or leave huge_pages out"
    )]
    HugePages { mib: u64, source: io::Error },
    #[error("cannot make a memfd of {mib} MiB for the guest: {source}")]
    Memfd { mib: u64, source: io::Error },
    #[error("cannot open {}, which is to be the guest's memory: {source}", path.display())]
    OpenFile { path: PathBuf, source: io::Error },
    #[error("{} has {got} bytes, but the guest's memory has {need}; it is truncated or of another machine", path.display())]
    FileSize { path: PathBuf, got: u64, need: u64 },
    #[error("guest memory pieces do not fit together: {0}")]
    Layout(String),
    #[error("cannot clear the guest's memory: {0}")]
    Clear(io::Error),
}

/// The RAM of a machine. It is unmapped with the last of its users: a device's or a vCPU's clone of [`GuestRam`].
pub struct GuestMemory {
    ram: GuestRam,
    size: u64,
    backing: MemoryBacking,
    /// The file that RAM is a mapping of.
    file: Option<File>,
    /// How many have pinned it. Locked while pages are given back, so that none is that somebody is about to pin.
    pins: Mutex<usize>,
}

impl GuestMemory {
    /// Reserves RAM as `config` says. Pages are allocated when they are first touched.
    ///
    /// # Errors
    /// See [`MemoryError`].
    pub fn new(config: &MemoryConfig, files: &Files) -> Result<Self, MemoryError> {
        let size = config
            .size_mib
            .checked_mul(1 << 20)
            .filter(|size| isize::try_from(*size).is_ok())
            .ok_or(MemoryError::TooLarge(config.size_mib))?;
        let file = open_backing(config, size, files)?;
        let mut regions = Vec::new();
        let mut offset = 0_u64;
        for (start, length) in layout::ram_ranges(size) {
            regions.push(map_region(config, file.as_ref(), offset, start, length)?);
            offset = offset.saturating_add(length);
        }
        let ram =
            GuestRam::from_regions(regions).map_err(|e| MemoryError::Layout(e.to_string()))?;
        Ok(Self {
            ram,
            size,
            backing: config.backing.clone(),
            file,
            pins: Mutex::new(0),
        })
    }

    /// The file that other processes can map to share RAM, if there is one; its pieces lie in it one after another.
    pub fn shared_file(&self) -> Option<&File> {
        self.file
            .as_ref()
            .filter(|_| self.backing == MemoryBacking::Memfd)
    }

    /// Keeps pages where they are until the pin is dropped: something of the host's writes to them by itself.
    pub fn pin(self: &Arc<Self>) -> Pin {
        *self.pins() += 1;
        Pin(Arc::clone(self))
    }

    fn pins(&self) -> MutexGuard<'_, usize> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Guest RAM as devices see it.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// How many of KVM's memory slots it takes, from number 0 on.
    pub fn slot_count(&self) -> u32 {
        u32::try_from(self.ram.num_regions()).unwrap_or(u32::MAX)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Tells KVM where guest RAM is.
    ///
    /// # Errors
    /// KVM refused a memory slot.
    pub fn attach(&self, vm: &VmFd) -> Result<(), KvmError> {
        for (slot, region) in (0_u32..).zip(self.ram.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: every vCPU, through which alone KVM uses a slot, has a clone of the RAM; and nothing but the guest
            // and the volatile accesses of vm-memory use it.
            unsafe { vm.set_user_memory_region(slot) }
                .map_err(refused("take the guest's memory"))?;
        }
        Ok(())
    }

    /// Makes all RAM read as zero and gives its pages back to the host: what a reset does to memory here. vCPUs and
    /// devices must stand still.
    ///
    /// # Errors
    /// The host refused; the contents are then undefined.
    pub fn clear(&self) -> Result<(), MemoryError> {
        let pins = self.pins();
        for region in self.ram.iter() {
            let length = usize::try_from(region.len()).unwrap_or(0);
            // A private mapping of a file shows the file again once its pages are dropped; and a device goes on writing to
            // pages that were dropped while it had them pinned.
            if matches!(self.backing, MemoryBacking::File(_)) || *pins > 0 {
                // SAFETY: the range is exactly one mapped, writable region and no reference into it exists; vm-memory
                // hands out none.
                unsafe { std::ptr::write_bytes(region.as_ptr(), 0, length) };
                continue;
            }
            // SAFETY: the range is exactly one mapped region.
            unsafe { self.drop_pages(region.as_ptr(), length) }.map_err(MemoryError::Clear)?;
        }
        Ok(())
    }

    /// Memory can be given back in parts. Not so pages of hugetlbfs: either the host keeps them reserved for the guest, or
    /// it lets others have them, and the guest dies (SIGBUS) when it touches one again and there is none left. Nor while it
    /// is pinned.
    pub fn can_release(&self) -> bool {
        self.backing != MemoryBacking::HugeTlb && *self.pins() == 0
    }

    /// Gives the pages of a range back to the host.
    ///
    /// # Safety
    /// The range is mapped guest RAM of this machine.
    unsafe fn drop_pages(&self, start: *mut u8, length: usize) -> io::Result<()> {
        let advice = match self.backing {
            // Pages of a shared mapping stay in its file unless they are removed from that.
            MemoryBacking::Memfd => libc::MADV_REMOVE,
            MemoryBacking::Anonymous { .. } | MemoryBacking::HugeTlb | MemoryBacking::File(_) => {
                libc::MADV_DONTNEED
            }
        };
        // SAFETY: the caller's promise; only contents change, and nobody has references into guest RAM.
        match unsafe { libc::madvise(start.cast(), length, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Guest RAM is pinned as long as this is there.
pub struct Pin(Arc<GuestMemory>);

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.0.pins();
        *pins = pins.saturating_sub(1);
    }
}

impl ReleasePages for GuestMemory {
    fn release(&self, start: GuestAddress, length: u64) -> io::Result<()> {
        let pins = self.pins();
        if self.backing == MemoryBacking::HugeTlb || *pins > 0 {
            return Ok(());
        }
        let length = usize::try_from(length).map_err(io::Error::other)?;
        for slice in self.ram.get_slices(start, length) {
            let slice = slice.map_err(io::Error::other)?;
            // SAFETY: the slice is mapped guest RAM for as long as `self.ram` is there.
            unsafe { self.drop_pages(slice.ptr_guard_mut().as_ptr(), slice.len()) }?;
        }
        Ok(())
    }
}

fn open_backing(
    config: &MemoryConfig,
    size: u64,
    files: &Files,
) -> Result<Option<File>, MemoryError> {
    match &config.backing {
        MemoryBacking::Anonymous { .. } | MemoryBacking::HugeTlb => Ok(None),
        MemoryBacking::Memfd => memfd(size).map(Some).map_err(|source| MemoryError::Memfd {
            mib: config.size_mib,
            source,
        }),
        MemoryBacking::File(path) => {
            let open = || -> io::Result<(File, u64)> {
                let file = files.open_read(path)?;
                let length = file.metadata()?.len();
                Ok((file, length))
            };
            let (file, got) = open().map_err(|source| MemoryError::OpenFile {
                path: path.clone(),
                source,
            })?;
            if got < size {
                return Err(MemoryError::FileSize {
                    path: path.clone(),
                    got,
                    need: size,
                });
            }
            Ok(Some(file))
        }
    }
}

fn memfd(size: u64) -> io::Result<File> {
    // SAFETY: the name is a valid C string; the flags ask for nothing that touches memory.
    let fd = unsafe {
        libc::memfd_create(
            c"guest-ram".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    // Whoever gets the descriptor must not be able to shrink it: touching the missing pages would be SIGBUS here.
    // SAFETY: plain fcntl on an open descriptor.
    let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) };
    if sealed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

fn map_region(
    config: &MemoryConfig,
    file: Option<&File>,
    offset: u64,
    start: u64,
    length: u64,
) -> Result<GuestRegion, MemoryError> {
    let mib = config.size_mib;
    let failed = |source| match config.backing {
        MemoryBacking::HugeTlb => MemoryError::HugePages { mib, source },
        _ => MemoryError::Map { mib, source },
    };
    let size = usize::try_from(length).map_err(|_| MemoryError::TooLarge(config.size_mib))?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let lazy = libc::MAP_NORESERVE;
    let flags = match config.backing {
        MemoryBacking::Anonymous { .. } => lazy | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        MemoryBacking::Memfd => lazy | libc::MAP_SHARED,
        MemoryBacking::File(_) => lazy | libc::MAP_PRIVATE,
        // Reserved now: a guest that runs out of huge pages later cannot go on.
        MemoryBacking::HugeTlb => {
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB
        }
    };
    let address = map_aligned(size, prot, flags, file, offset).map_err(failed)?;
    if config.backing == (MemoryBacking::Anonymous { huge: true }) {
        // Refused where the host's kernel has no transparent huge pages; RAM is then made of small ones.
        // SAFETY: the range was just mapped; the advice does not change contents.
        let _ = unsafe { libc::madvise(address.cast(), size, libc::MADV_HUGEPAGE) };
    }
    if file.is_none() {
        name_mapping(address, size);
    }
    // SAFETY: the range was just mapped, readable and writable, and is known to nobody else.
    unsafe { GuestRegion::from_mapping(address, size, GuestAddress(start)) }
        .map_err(|e| MemoryError::Layout(format!("the RAM at {start:#x}: {e}")))
}

/// Gives guest RAM a name in `/proc/PID/smaps`, so that what the monitor itself takes can be told from it.
fn name_mapping(address: *mut u8, size: usize) {
    let name = c"guest RAM";
    // SAFETY: the range was just mapped and the name is a terminated string; only a label changes. Kernels without
    // CONFIG_ANON_VMA_NAME refuse, and the mapping stays nameless.
    let _ = unsafe {
        libc::prctl(
            libc::PR_SET_VMA,
            libc::PR_SET_VMA_ANON_NAME,
            address,
            size,
            name.as_ptr(),
        )
    };
}

/// Maps `size` bytes at an address that is a multiple of 2 MiB.
fn map_aligned(
    size: usize,
    prot: i32,
    flags: i32,
    file: Option<&File>,
    offset: u64,
) -> io::Result<*mut u8> {
    let overflow = || io::Error::from_raw_os_error(libc::ENOMEM);
    let room = size.checked_add(HUGE_PAGE).ok_or_else(overflow)?;
    // Reserve more than needed, put the mapping at the aligned place in it, and give both ends back.
    // SAFETY: a fresh reservation at a place of the kernel's choice touches no existing mapping.
    let reserved = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            room,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if reserved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let reserved: *mut u8 = reserved.cast();
    let lead = reserved.align_offset(HUGE_PAGE);
    let tail = room
        .checked_sub(lead)
        .and_then(|rest| rest.checked_sub(size))
        .ok_or_else(overflow)?;
    let start = reserved.wrapping_add(lead);
    let end = start.wrapping_add(size);
    let unmap = |at: *mut u8, length: usize| {
        if length > 0 {
            // SAFETY: the range is part of the reservation made above and used by nothing.
            unsafe { libc::munmap(at.cast(), length) };
        }
    };
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    let offset = i64::try_from(offset).map_err(|_| overflow())?;
    // SAFETY: MAP_FIXED replaces only pages of the reservation made above.
    let mapped = unsafe {
        libc::mmap(
            start.cast(),
            size,
            prot,
            flags | libc::MAP_FIXED,
            fd,
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        unmap(reserved, room);
        return Err(error);
    }
    unmap(reserved, lead);
    // The end of a huge mapping is a page boundary too: its size is a multiple of 2 MiB or the mapping failed.
    unmap(end, tail);
    Ok(start)
}

#[cfg(test)]
mod tests;
