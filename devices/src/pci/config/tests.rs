use super::*;

fn space() -> ConfigSpace {
    ConfigSpace::new(Identity {
        vendor: 0x1234,
        device: 0x5678,
        class: 0x01_02_03,
        revision: 4,
        subsystem_vendor: 0xAABB,
        subsystem: 0xCCDD,
    })
}

#[test]
fn the_header_holds_the_identity_where_the_specification_has_it() {
    let space = space();
    assert_eq!(space.dword(0x00), 0x5678_1234);
    assert_eq!(space.dword(0x04), 0);
    assert_eq!(space.dword(0x08), 0x0102_0304);
    assert_eq!(space.dword(0x0C), 0, "single-function, type 0");
    assert_eq!(space.dword(0x2C), 0xCCDD_AABB);
    assert_eq!(space.dword(0x34), 0, "no capabilities");
    assert_eq!(space.dword(0x3C), 0, "no interrupt pin");
}

#[test]
fn sizing_by_all_ones_gives_the_size_and_leaves_the_type_bits() {
    let mut space = space();
    let kinds = [
        (0, BarKind::Memory32, 0x1000, false, 0x0),
        (1, BarKind::Memory64, 0x4000, false, 0x4),
        (3, BarKind::Io, 0x20, false, 0x1),
        (4, BarKind::Memory64, 1 << 34, true, 0xC),
    ];
    for (index, kind, size, prefetchable, flags) in kinds {
        let bar = Bar {
            kind,
            size,
            prefetchable,
        };
        space.add_bar(index, bar).unwrap();
        let at = bar_register(index);
        assert_eq!(space.dword(at), flags);
        space.write(at, &[0xFF; 4]);
        let low = space.dword(at);
        assert_eq!(
            low,
            u32::try_from(!(size - 1) & 0xFFFF_FFFF).unwrap() | flags,
            "{bar:?}"
        );
        if kind == BarKind::Memory64 {
            space.write(at + 4, &[0xFF; 4]);
            let high = space.dword(at + 4);
            let mask = u64::from(high) << 32 | u64::from(low & !0xF);
            assert_eq!(!mask + 1, size);
        }
    }
    assert_eq!(space.command(), 0);
}

#[test]
fn a_bar_that_is_not_there_reads_zero_whatever_is_written() {
    let mut space = space();
    for offset in (0x10..0x28).chain(0x30..0x34) {
        space.write(offset, &[0xFF]);
    }
    for offset in (0x10..0x28).step_by(4).chain([0x30]) {
        assert_eq!(space.dword(offset), 0);
    }
}

#[test]
fn bars_of_impossible_size_or_place_are_refused() {
    let bar = |kind, size| Bar {
        kind,
        size,
        prefetchable: false,
    };
    let mut space = space();
    for (index, bar) in [
        (0, bar(BarKind::Memory32, 0x3000)),
        (0, bar(BarKind::Memory32, 0)),
        (0, bar(BarKind::Memory32, 8)),
        (0, bar(BarKind::Memory32, 1 << 32)),
        (0, bar(BarKind::Memory64, 1 << 63)),
        (0, bar(BarKind::Io, 512)),
        (5, bar(BarKind::Memory64, 0x1000)),
        (6, bar(BarKind::Memory32, 0x1000)),
        (255, bar(BarKind::Memory64, 0x1000)),
    ] {
        assert!(space.add_bar(index, bar).is_err(), "BAR {index} {bar:?}");
    }
    space.add_bar(1, bar(BarKind::Memory64, 0x1000)).unwrap();
    for index in 0..3 {
        let kind = if index == 0 {
            BarKind::Memory64
        } else {
            BarKind::Memory32
        };
        assert!(
            space.add_bar(index, bar(kind, 0x1000)).is_err(),
            "overlaps BAR 1"
        );
    }
    assert_eq!(space.dword(0x10), 0);
}

#[test]
fn capabilities_are_linked_aligned_and_bounded() {
    let mut space = space();
    let first = space.add_capability(0x11, &[1, 2, 3], &[0, 0xF0]).unwrap();
    let second = space.add_capability(0x09, &[4; 14], &[]).unwrap();
    assert_eq!((first, second), (0x40, 0x48));
    assert_eq!(space.dword(0x34), 0x40);
    assert_eq!(space.dword(0x04) >> 16, 0x10);
    assert_eq!(space.dword(0x40), 0x0201_4811);
    assert_eq!(space.dword(0x48), 0x0404_0009);
    space.write(0x40, &[0xFF; 8]);
    assert_eq!(
        space.dword(0x40),
        0xF201_4811,
        "only what is writable changes"
    );
    while space.add_capability(0x09, &[0; 30], &[]).is_ok() {}
    let before = space.clone();
    let full = space.add_capability(0x09, &[0; 300], &[]);
    assert!(matches!(full, Err(ConfigError::CapabilitiesFull { .. })));
    assert_eq!(space, before);
}

#[test]
fn beyond_its_end_the_space_reads_ones_and_ignores_writes() {
    let mut space = space();
    for offset in [0x100, 0x102, 0xFFF, u16::MAX] {
        space.write(offset, &[0; 4]);
        let mut data = [0; 8];
        space.read(offset, &mut data);
        assert_eq!(data, [0xFF; 8]);
    }
    space.extend();
    assert_eq!(space.dword(0x100), 0);
    assert_eq!(space.dword(0x1000), u32::MAX);
    assert_eq!(space.size(), 4096);
}
