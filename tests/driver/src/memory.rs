//! Memory that is mapped: a BAR, or a page that a device reaches.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use crate::{Failure, Result, failed};

pub const PAGE: usize = 4096;
/// An entry of /proc/self/pagemap: the page is there, and which it is (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

pub struct Mapping {
    start: NonNull<u8>,
    size: usize,
}

impl Mapping {
    /// The first `size` bytes of a file, shared.
    pub fn of_file(file: &File, size: u64) -> Result<Self> {
        let size = usize::try_from(size).unwrap_or(0);
        Self::map(size, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// A page that stays where it is in physical memory, full of `byte`.
    pub fn page(byte: u8) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE;
        let page = Self::map(PAGE, flags, -1)?;
        for at in 0..PAGE {
            page.write8(at, byte);
        }
        Ok(page)
    }

    fn map(size: usize, flags: libc::c_int, file: libc::c_int) -> Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping where the kernel finds room replaces none.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), size, access, flags, file, 0) };
        let start = (start != libc::MAP_FAILED).then(|| NonNull::new(start.cast()));
        match start.flatten() {
            Some(start) => Ok(Self { start, size }),
            None => Err(failed(format!("cannot map {size} bytes"))(
                io::Error::last_os_error(),
            )),
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn read32(&self, offset: usize) -> Result<u32> {
        // SAFETY: `place` gives places within the mapping, aligned; it lives as long as `self`.
        Ok(unsafe { self.place::<u32>(offset)?.read_volatile() })
    }

    pub fn write32(&self, offset: usize, value: u32) -> Result<()> {
        // SAFETY: as in `read32`; nothing in Rust refers to this memory.
        unsafe { self.place::<u32>(offset)?.write_volatile(value) };
        Ok(())
    }

    pub fn read64(&self, offset: usize) -> Result<u64> {
        // SAFETY: as in `read32`.
        Ok(unsafe { self.place::<u64>(offset)?.read_volatile() })
    }

    pub fn write64(&self, offset: usize, value: u64) -> Result<()> {
        // SAFETY: as in `write32`.
        unsafe { self.place::<u64>(offset)?.write_volatile(value) };
        Ok(())
    }

    /// A byte within it.
    fn write8(&self, offset: usize, value: u8) {
        assert!(offset < self.size);
        // SAFETY: within the mapping, as was just made sure; nothing in Rust refers to this memory.
        unsafe { self.start.add(offset).write_volatile(value) };
    }

    /// All of it, as it is now.
    pub fn bytes(&self) -> Vec<u8> {
        let byte = |at| {
            // SAFETY: `at` is below the size of the mapping.
            unsafe { self.start.add(at).read_volatile() }
        };
        (0..self.size).map(byte).collect()
    }

    fn place<T>(&self, offset: usize) -> Result<*mut T> {
        let size = size_of::<T>();
        let end = offset.checked_add(size);
        if !offset.is_multiple_of(size) || end.is_none_or(|end| end > self.size) {
            return Err(Failure::Misuse(format!(
                "offset {offset:#x} is not within {:#x} bytes, or not a multiple of {size}",
                self.size
            )));
        }
        // SAFETY: within the mapping, as was just made sure.
        Ok(unsafe { self.start.add(offset) }.as_ptr().cast())
    }

    /// Where the page is in physical memory: of a guest, where its devices find it.
    pub fn physical(&self) -> Result<u64> {
        let map = File::open("/proc/self/pagemap").map_err(failed("cannot open pagemap"))?;
        let page = (self.start.as_ptr().addr() / PAGE) as u64;
        let mut entry = [0; 8];
        let read = map.read_exact_at(&mut entry, page * 8);
        read.map_err(failed("cannot read pagemap"))?;
        let entry = u64::from_le_bytes(entry);
        match (entry & PRESENT, entry & FRAME) {
            (0, _) | (_, 0) => Err(Failure::Wrong("pagemap hides the page: no root".to_owned())),
            (_, frame) => Ok(frame * PAGE as u64),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping is of this value alone, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}
