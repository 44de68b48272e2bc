//! Guest memory as the machine has shared it, and copies from and to it.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// A part of guest memory.
#[derive(Debug)]
struct Part {
    iova: u64,
    size: u64,
    file: File,
    offset: u64,
}

/// All that the function may reach.
#[derive(Debug, Default)]
pub struct GuestMemory(Vec<Part>);

impl GuestMemory {
    pub fn map(&mut self, iova: u64, size: u64, file: File, offset: u64) {
        self.0.push(Part {
            iova,
            size,
            file,
            offset,
        });
    }

    /// True if there was such a part.
    pub fn unmap(&mut self, iova: u64, size: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|part| part.iova != iova || part.size != size);
        self.0.len() < before
    }

    /// Tries to make the guest's memory smaller. True if it is.
    pub fn shrink(&self) -> bool {
        self.0.iter().any(|part| part.file.set_len(0).is_ok())
    }

    /// The file and the offset of `length` bytes at `iova`, if they lie in one part.
    fn find(&self, iova: u64, length: u64) -> Option<(&File, u64)> {
        self.0.iter().find_map(|part| {
            let within = iova.checked_sub(part.iova)?;
            let end = within.checked_add(length)?;
            (end <= part.size).then_some((&part.file, part.offset + within))
        })
    }

    /// True if all of it could be read.
    pub fn read(&self, iova: u64, into: &mut [u8]) -> bool {
        let found = self.find(iova, into.len() as u64);
        found.is_some_and(|(file, offset)| file.read_exact_at(into, offset).is_ok())
    }

    /// True if all of it could be written.
    pub fn write(&self, iova: u64, from: &[u8]) -> bool {
        let found = self.find(iova, from.len() as u64);
        found.is_some_and(|(file, offset)| file.write_all_at(from, offset).is_ok())
    }
}
