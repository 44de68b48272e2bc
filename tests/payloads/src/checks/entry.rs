//! The state in which the monitor starts a kernel (Linux's 64-bit boot protocol, boot.rst).

use crate::Failure;

/// Offset and value of the boot protocol's magic number in the zero page's setup header.
const HEADER_MAGIC: u64 = 0x202;
/// Offset of the number of memory map entries, and of the entries.
const E820_ENTRIES: u64 = 0x1E8;
const E820_TABLE: u64 = 0x2D0;
/// Memory map type of usable RAM.
const RAM: u32 = 1;

/// Checks the setup header's magic, the loader type, and a memory map that holds this payload.
pub fn check(zero_page: u64) -> Result<(), Failure> {
    // SAFETY: the zero page is RAM below 4 GiB.
    let magic = unsafe { ((zero_page + HEADER_MAGIC) as *const [u8; 4]).read() };
    if &magic != b"HdrS" {
        return Err(alloc::format!("setup header says {magic:?}"));
    }
    // SAFETY: as above.
    let count = unsafe { ((zero_page + E820_ENTRIES) as *const u8).read() };
    let here = (check as *const ()) as u64;
    let holds_us = (0..u64::from(count)).any(|index| {
        let entry = zero_page + E820_TABLE + index * 20;
        // SAFETY: entries of 20 bytes, not aligned, inside the zero page.
        let (start, size, kind) = unsafe {
            (
                (entry as *const u64).read_unaligned(),
                ((entry + 8) as *const u64).read_unaligned(),
                ((entry + 16) as *const u32).read_unaligned(),
            )
        };
        kind == RAM && (start..start + size).contains(&here)
    });
    if holds_us {
        Ok(())
    } else {
        Err(alloc::format!(
            "none of {count} memory map entries is RAM around {here:#x}"
        ))
    }
}
