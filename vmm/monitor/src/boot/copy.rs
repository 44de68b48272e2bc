//! Reads a piece of a file into guest RAM.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use fief_devices::GuestRam;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Reads `length` bytes at `offset` of `file` straight to the guest-physical `address`, without a copy in between.
///
/// Mapping the file and copying from there was measured too: making and unmaking the page tables costs more than the
/// faster copy gains.
///
/// # Errors
/// The file cannot be read or ends before, or RAM does.
pub fn into_ram(
    file: &File,
    offset: u64,
    length: u64,
    ram: &GuestRam,
    address: u64,
) -> io::Result<()> {
    let count = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut reader = file;
    reader.seek(SeekFrom::Start(offset))?;
    ram.read_exact_volatile_from(GuestAddress(address), &mut reader, count)
        .map_err(|error| match error {
            GuestMemoryError::IOError(error) => error,
            other => io::Error::other(other),
        })
}
