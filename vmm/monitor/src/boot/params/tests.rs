use super::*;
use crate::boot::kernel::EntryPoint;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn ram(size: u64) -> GuestRam {
    fief_devices::ram::anonymous(&[(GuestAddress(0), size as usize)]).unwrap()
}

#[test]
fn the_memory_map_lists_all_ram_but_the_firmware_area_and_nothing_twice() {
    for size in [2 * MIB, 128 * MIB, 3 * GIB, 3 * GIB + MIB, 64 * GIB] {
        let map = memory_map(size);
        for pair in map.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
        let usable: u64 = map.iter().filter(|e| e.2 == E820_RAM).map(|e| e.1).sum();
        assert_eq!(
            usable,
            size - layout::LOW_RAM_START - (layout::HIGH_RAM_START - layout::LOW_RAM_END)
        );
        assert!(map.contains(&(layout::ECAM_START, layout::ECAM_SIZE, E820_RESERVED)));
        let tables = [layout::ACPI_START, layout::MP_TABLE_START];
        assert!(!map.iter().any(|(start, length, kind)| *kind == E820_RAM
            && tables.iter().any(|t| (*start..start + length).contains(t))));
    }
}

#[test]
fn the_zero_page_names_initrd_command_line_and_acpi() {
    let ram = ram(4 * MIB);
    let kernel = LoadedKernel {
        entry: EntryPoint::Linux64(0x10_0000),
        end: 0x20_0000,
        setup_header: None,
    };
    let initrd = LoadedInitrd {
        start: 0x1_2345_6000,
        size: 0x1_0000_0007,
    };
    let cmdline = Cmdline::new("quiet", &[]).unwrap();
    write_zero_page(&ram, 4 * MIB, &kernel, Some(initrd), &cmdline).unwrap();
    let page: boot_params = ram
        .read_obj(GuestAddress(layout::BOOT_PARAMS_START))
        .unwrap();
    let header = page.hdr;
    let (magic, flag, loader) = (header.header, header.boot_flag, header.type_of_loader);
    assert_eq!((magic, flag, loader), (HEADER_MAGIC, BOOT_FLAG, 0xFF));
    let (image, size, line) = (
        header.ramdisk_image,
        header.ramdisk_size,
        header.cmd_line_ptr,
    );
    let (image_high, size_high) = (page.ext_ramdisk_image, page.ext_ramdisk_size);
    assert_eq!((image, image_high), (0x2345_6000, 1));
    assert_eq!((size, size_high), (7, 1));
    assert_eq!(u64::from(line), layout::CMDLINE_START);
    let rsdp = page.acpi_rsdp_addr;
    assert_eq!(rsdp, layout::ACPI_START);
    let map: Vec<MapEntry> = page.e820_table[..usize::from(page.e820_entries)]
        .iter()
        .map(|e| ({ e.addr }, { e.size }, { e.r#type }))
        .collect();
    assert_eq!(map, memory_map(4 * MIB));
}

#[test]
fn the_start_info_leads_to_map_and_module() {
    let ram = ram(4 * MIB);
    let initrd = LoadedInitrd {
        start: 0x30_0000,
        size: 77,
    };
    write_start_info(&ram, 4 * MIB, Some(initrd)).unwrap();
    let info: hvm_start_info = ram
        .read_obj(GuestAddress(layout::BOOT_PARAMS_START))
        .unwrap();
    assert_eq!(
        (info.magic, info.version, info.nr_modules),
        (PVH_MAGIC, 1, 1)
    );
    let module: hvm_modlist_entry = ram.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (0x30_0000, 77));
    let map: Vec<MapEntry> = (0..u64::from(info.memmap_entries))
        .map(|i| {
            ram.read_obj(GuestAddress(info.memmap_paddr + i * 24))
                .unwrap()
        })
        .map(|e: hvm_memmap_table_entry| (e.addr, e.size, e.type_))
        .collect();
    assert_eq!(map, memory_map(4 * MIB));
}

#[test]
fn page_tables_map_every_address_below_4_gib_to_itself() {
    let ram = ram(MIB);
    write_page_tables(&ram).unwrap();
    let entry = |table: u64, index: u64| -> u64 {
        let value: u64 = ram.read_obj(GuestAddress(table + index * 8)).unwrap();
        assert_eq!(value & 3, 3, "present and writable");
        value
    };
    for address in [
        0,
        0x1F_FFFF,
        0x100_0000,
        0x7FFF_FFFF,
        0xC000_0000,
        0xFFFF_FFFF_u64,
    ] {
        let pointers = entry(layout::PAGE_TABLES_START, 0) & !0xFFF;
        let directory = entry(pointers, address >> 30) & !0xFFF;
        let page = entry(directory, address >> 21 & 0x1FF);
        assert_eq!(page & 0x80, 0x80, "2 MiB page");
        assert_eq!(page & !0x1F_FFFF, address & !0x1F_FFFF);
    }
}

#[test]
fn ram_too_small_for_boot_data_is_an_error() {
    assert!(write_page_tables(&ram(0x9000)).is_err());
    assert!(write_start_info(&ram(0x1000), MIB, None).is_err());
}
