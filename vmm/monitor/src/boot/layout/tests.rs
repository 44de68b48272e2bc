use super::*;

#[test]
fn ram_that_fits_below_the_hole_is_one_piece() {
    assert_eq!(ram_ranges(128 * MIB), [(0, 128 * MIB)]);
    assert_eq!(ram_ranges(3 * GIB), [(0, 3 * GIB)]);
}

#[test]
fn ram_beyond_the_hole_goes_on_at_4_gib() {
    assert_eq!(ram_ranges(3 * GIB + MIB), [(0, 3 * GIB), (4 * GIB, MIB)]);
    assert_eq!(ram_ranges(16 * GIB), [(0, 3 * GIB), (4 * GIB, 13 * GIB)]);
}

#[test]
fn the_64_bit_window_takes_a_128_gib_bar_where_addresses_reach() {
    for bits in [39, 40, 43, 46, 48, 52] {
        let window = pci_window_64(128 * MIB, 0, bits).unwrap();
        assert_eq!(window.start % (128 * GIB), 0, "{bits} bits");
        assert!(window.end - window.start >= 128 * GIB, "{bits} bits");
        let (first, second) = window.halves();
        assert_eq!((first.start, first.end), (window.start, second.start));
        assert_eq!(second.end, window.end);
        for half in [first, second] {
            let aligned = half.start.next_multiple_of(128 * GIB);
            assert!(aligned + 128 * GIB <= half.end, "{bits} bits: {half:x?}");
        }
    }
}

#[test]
fn large_bars_move_the_64_bit_window_to_where_they_fit() {
    let small = pci_window_64(128 * MIB, 256 * GIB, 46).unwrap();
    assert!(small.end <= HYPERTRANSPORT_START);
    let large = pci_window_64(128 * MIB, 8 * 256 * GIB, 46).unwrap();
    assert!(large.start >= HYPERTRANSPORT_END);
    let half = large.halves().0;
    assert!(half.end - half.start >= 8 * 256 * GIB);
    // A CPU that does not reach so far: the window is as it would be, and the BARs are refused one by one.
    let narrow = pci_window_64(128 * MIB, 8 * 256 * GIB, 40).unwrap();
    assert_eq!(Some(narrow), pci_window_64(128 * MIB, 0, 40));
}

#[test]
fn the_64_bit_window_never_overlaps_ram_or_the_hypertransport_range() {
    for bits in 36..=52 {
        for ram in [
            MIB,
            GIB,
            3 * GIB,
            8 * GIB,
            24 * GIB,
            300 * GIB,
            1100 * GIB,
            3000 * GIB,
        ] {
            let ram_end = ram_ranges(ram).last().map(|(s, l)| s + l).unwrap();
            let Some(window) = pci_window_64(ram, 0, bits) else {
                continue;
            };
            assert!(window.start >= ram_end, "{ram:#x} {bits}");
            assert!(window.end <= 1 << bits, "{ram:#x} {bits}");
            assert!(
                window.end <= HYPERTRANSPORT_START || window.start >= HYPERTRANSPORT_END,
                "{ram:#x} {bits}"
            );
        }
    }
}

#[test]
fn ram_that_fills_the_address_space_leaves_no_window() {
    assert_eq!(pci_window_64(64 * GIB, 0, 36), None);
}

#[test]
fn fixed_places_do_not_overlap() {
    let mut places = [
        (GDT_START, 0x100),
        (BOOT_PARAMS_START, 0x1000),
        (PVH_TABLES_START, 0x1000),
        (PAGE_TABLES_START, 6 * 0x1000),
        (CMDLINE_START, CMDLINE_MAX as u64),
        (0, 16),
        (ACPI_START, ACPI_END - ACPI_START),
        (MP_TABLE_START, 0x1000),
        (PCI_WINDOW_32.start, PCI_WINDOW_32.end - PCI_WINDOW_32.start),
        (
            HOT_PLUG_WINDOW.start,
            HOT_PLUG_WINDOW.end - HOT_PLUG_WINDOW.start,
        ),
        (ECAM_START, ECAM_SIZE),
        (u64::from(IO_APIC_START), 0x1000),
        (u64::from(LOCAL_APIC_START), 0x1000),
        (IDENTITY_MAP_START, 0x1000),
        (TSS_START, 0x3000),
    ];
    places.sort_unstable();
    for pair in places.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
    }
}
