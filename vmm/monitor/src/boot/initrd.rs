//! Loads the initrd: as high as it can be below 4 GiB, so that the kernel can grow upwards.

use std::fs::File;
use std::io;

use fief_devices::GuestRam;

use super::kernel::LoadedKernel;
use super::{copy, layout};

const PAGE: u64 = 4096;

/// Why an initrd cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error("it is empty")]
    Empty,
    #[error(
        "it has {size} bytes, but only {room} are free above the kernel; give the guest more memory"
    )]
    TooLarge { size: u64, room: u64 },
}

/// An initrd in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedInitrd {
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// Loads `file` behind `kernel` into the RAM of a guest with `ram_size` bytes of it.
///
/// # Errors
/// See [`InitrdError`].
pub fn load(
    file: &File,
    ram: &GuestRam,
    ram_size: u64,
    kernel: &LoadedKernel,
) -> Result<LoadedInitrd, InitrdError> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Err(InitrdError::Empty);
    }
    let mut top = layout::low_ram_end(ram_size);
    if let Some(header) = &kernel.setup_header {
        // The highest address that an initrd byte may have (Documentation/arch/x86/boot.rst).
        top = top.min(u64::from(header.initrd_addr_max).saturating_add(1));
    }
    let room = top.saturating_sub(kernel.end);
    let start = top
        .checked_sub(size)
        .map(|start| start & !(PAGE - 1))
        .filter(|start| *start >= kernel.end)
        .ok_or(InitrdError::TooLarge { size, room })?;
    copy::into_ram(file, 0, size, ram, start)?;
    Ok(LoadedInitrd { start, size })
}

#[cfg(test)]
mod tests;
