//! Boot parameters: Linux's zero page, PVH's start info, the memory map of both, and the first page tables.

use fief_devices::GuestRam;
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::cmdline::Cmdline;
use super::initrd::LoadedInitrd;
use super::kernel::LoadedKernel;
use super::layout;

/// Memory map types (ACPI 6.5 §15, table 15.1).
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

/// "Some loader without a number of its own" (Documentation/arch/x86/boot.rst, type_of_loader).
const LOADER_UNDEFINED: u8 = 0xFF;
const BOOT_FLAG: u16 = 0xAA55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// The protocol version that a zero page made here follows.
const PROTOCOL_2_15: u16 = 0x20F;
/// XEN_HVM_START_MAGIC_VALUE (xen/include/public/arch-x86/hvm/start_info.h).
const PVH_MAGIC: u32 = 0x336E_C578;

/// One line of the memory map: start, length, type.
pub type MapEntry = (u64, u64, u32);

/// The memory map of a guest with `size` bytes of RAM.
pub fn memory_map(size: u64) -> Vec<MapEntry> {
    // Few entries: while it maps its RAM, Linux searches the whole map for every 2 MiB of the first GiB, several times.
    // It takes page 0 out of the RAM by an entry of its own, if it finds it there.
    let mut map = vec![(
        layout::LOW_RAM_START,
        layout::LOW_RAM_END - layout::LOW_RAM_START,
        E820_RAM,
    )];
    for (start, length) in layout::ram_ranges(size) {
        let skipped = if start == 0 {
            layout::HIGH_RAM_START
        } else {
            0
        };
        if let Some(length) = length.checked_sub(skipped).filter(|length| *length > 0) {
            map.push((start.saturating_add(skipped), length, E820_RAM));
        }
    }
    // Linux uses the memory-mapped configuration space only where the memory map reserves it.
    map.push((layout::ECAM_START, layout::ECAM_SIZE, E820_RESERVED));
    map.sort_unstable_by_key(|(start, ..)| *start);
    map
}

/// Writes the zero page of Linux's boot protocol.
///
/// # Errors
/// RAM ends before it.
pub fn write_zero_page(
    ram: &GuestRam,
    size: u64,
    kernel: &LoadedKernel,
    initrd: Option<LoadedInitrd>,
    cmdline: &Cmdline,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params::default();
    if let Some(header) = kernel.setup_header {
        params.hdr = header;
    } else {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HEADER_MAGIC;
        params.hdr.version = PROTOCOL_2_15;
        params.hdr.kernel_alignment = 0x20_0000;
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    let (low, high) = halves(layout::CMDLINE_START);
    params.hdr.cmd_line_ptr = low;
    params.ext_cmd_line_ptr = high;
    params.hdr.cmdline_size = u32::try_from(cmdline.len()).unwrap_or(0);
    if let Some(initrd) = initrd {
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(initrd.start);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(initrd.size);
    }
    params.acpi_rsdp_addr = layout::ACPI_START;
    let map = memory_map(size);
    let mut count = 0_u8;
    for (place, (addr, size, type_)) in params.e820_table.iter_mut().zip(map) {
        *place = boot_e820_entry {
            addr,
            size,
            r#type: type_,
        };
        count = count.saturating_add(1);
    }
    params.e820_entries = count;
    ram.write_obj(params, GuestAddress(layout::BOOT_PARAMS_START))
}

/// Writes the start info of the PVH boot protocol, version 1.
///
/// # Errors
/// RAM ends before it.
pub fn write_start_info(
    ram: &GuestRam,
    size: u64,
    initrd: Option<LoadedInitrd>,
) -> Result<(), GuestMemoryError> {
    let map = memory_map(size);
    let modules_at = layout::PVH_TABLES_START;
    let map_at = modules_at.saturating_add(size_of::<hvm_modlist_entry>() as u64);
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { modules_at } else { 0 },
        cmdline_paddr: layout::CMDLINE_START,
        rsdp_paddr: layout::ACPI_START,
        memmap_paddr: map_at,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    ram.write_obj(info, GuestAddress(layout::BOOT_PARAMS_START))?;
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.size,
            ..Default::default()
        };
        ram.write_obj(module, GuestAddress(modules_at))?;
    }
    let places = (map_at..).step_by(size_of::<hvm_memmap_table_entry>());
    for ((addr, size, type_), at) in map.into_iter().zip(places) {
        let entry = hvm_memmap_table_entry {
            addr,
            size,
            type_,
            reserved: 0,
        };
        ram.write_obj(entry, GuestAddress(at))?;
    }
    Ok(())
}

fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

/// Writes page tables that map the first 4 GiB to themselves with 2 MiB pages (Intel SDM 3A §4.5).
///
/// # Errors
/// RAM ends before them.
pub fn write_page_tables(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    const PAGE: u64 = 0x1000;
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const GIBS: u64 = 4;
    let pml4 = layout::PAGE_TABLES_START;
    let pointers = pml4 + PAGE;
    let directories = pointers + PAGE;
    ram.write_obj(pointers | PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..GIBS {
        let directory = directories + gib * PAGE;
        ram.write_obj(
            directory | PRESENT_WRITABLE,
            GuestAddress(pointers + gib * 8),
        )?;
    }
    let mut entries = Vec::with_capacity(512 * 4 * 8);
    for page in 0..GIBS * 512 {
        entries.extend_from_slice(&(page << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes());
    }
    ram.write_slice(&entries, GuestAddress(directories))
}

#[cfg(test)]
mod tests;
