use super::*;
use crate::fake::FakeFunction;

/// A type 0 header, and then some.
pub fn header(length: usize) -> Vec<u8> {
    let mut config = vec![0; length];
    config[..4].copy_from_slice(&[0x36, 0x1B, 0x10, 0x00]);
    config[8..12].copy_from_slice(&[2, 0x00, 0x00, 0x03]);
    config[0x2C..0x30].copy_from_slice(&[0xF4, 0x1A, 0x00, 0x11]);
    config[0x3D] = 2;
    config
}

#[test]
fn kinds_come_from_the_registers_and_sizes_from_the_regions() {
    let mut config = header(CONVENTIONAL);
    config[0x10] = 0x0C; // 64-bit, prefetchable
    config[0x18] = 0x00; // 32-bit
    config[0x1C] = 0x01; // I/O
    let function = FakeFunction::new(
        config,
        &[
            (Region::Bar(0), 1 << 20),
            (Region::Bar(2), 0x1000),
            (Region::Bar(3), 8),
            (Region::Rom, 0xC000),
        ],
    );
    let configuration = Configuration::of(&function).unwrap();
    let bar = |index| {
        configuration
            .space
            .bar(index)
            .map(|b| (b.kind, b.size, b.prefetchable))
    };
    assert_eq!(bar(0), Some((BarKind::Memory64, 1 << 20, true)));
    assert_eq!(bar(1), None);
    assert_eq!(bar(2), Some((BarKind::Memory32, 0x1000, false)));
    assert_eq!(bar(3), Some((BarKind::Io, 8, false)));
    assert_eq!(
        bar(ROM_BAR),
        Some((BarKind::Rom, 0x1_0000, false)),
        "rounded up"
    );
    assert_eq!(configuration.space.dword(0), 0x0010_1B36);
    assert_eq!(configuration.space.dword(8), 0x0300_0002);
    assert_eq!(configuration.space.dword(0x2C), 0x1100_1AF4);
    assert!(configuration.pin);
    assert_eq!(
        configuration.space.dword(0x3C) >> 8,
        1,
        "pin A, whatever it was"
    );
}

#[test]
fn what_is_no_function_is_refused_with_the_reason() {
    let refused = |config: Vec<u8>, sizes: &[(Region, u64)]| {
        let function = FakeFunction::new(config, sizes);
        Configuration::of(&function).unwrap_err().to_string()
    };
    let mut bridge = header(CONVENTIONAL);
    bridge[0x0E] = 0x81;
    assert!(refused(bridge, &[]).contains("header type 0x1"));
    assert!(refused(vec![0xFF; 256], &[]).contains("0xffff"));
    assert!(refused(vec![0x11; 64], &[]).contains("64 bytes"));
    // A BAR of an odd size.
    assert!(refused(header(CONVENTIONAL), &[(Region::Bar(0), 0x1800)]).contains("BAR 0"));
    // MSI-X in a BAR that is too small, and in one that is I/O.
    for (low, size) in [(0, 0x1000), (1, 256)] {
        let mut config = header(CONVENTIONAL);
        config[6] = 0x10;
        config[0x34] = 0x40;
        config[0x40..0x4C].copy_from_slice(&[0x11, 0, 0xFF, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        config[0x10] = low;
        let said = refused(config, &[(Region::Bar(0), size)]);
        assert!(said.contains("MSI-X table"), "{said}");
    }
}
