use super::*;
use crate::fake::Random;

fn header(first: u8) -> Vec<u8> {
    let mut config = vec![0; EXTENDED];
    config[STATUS] = STATUS_CAPABILITIES;
    config[LIST] = first;
    config
}

/// The conventional capabilities, as a guest walks them.
fn walk(config: &[u8]) -> Vec<(usize, u8)> {
    let mut list = Vec::new();
    let mut at = usize::from(config[LIST]);
    while at != 0 {
        list.push((at, config[at]));
        assert!(list.len() < 100, "it goes round");
        at = usize::from(config[at + 1]);
    }
    list
}

/// The extended ones.
fn walk_extended(config: &[u8]) -> Vec<(usize, u16)> {
    let mut list = Vec::new();
    let mut at = CONVENTIONAL;
    while at != 0 {
        let header = dword(config, at);
        list.push((at, (header & 0xFFFF) as u16));
        assert!(list.len() < 1100, "it goes round");
        // The two lowest bits are reserved, and guests leave them out (PCIe 5.0 §7.6.3).
        at = (header >> 20 & 0xFFC) as usize;
    }
    list
}

fn put(config: &mut [u8], at: usize, bytes: &[u8]) {
    config[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn capabilities_that_matter_are_found_where_they_are() {
    let mut config = header(0x40);
    put(&mut config, 0x40, &[1, 0x50, 3, 0]);
    // MSI: 8 vectors, 64-bit, maskable.
    put(&mut config, 0x50, &[5, 0x70, 0x86, 0x01]);
    // MSI-X: 3 vectors, table at 0x2000 of BAR 4, pending bits at 0x3008 of BAR 2.
    put(
        &mut config,
        0x70,
        &[0x11, 0x80, 2, 0, 4, 0x20, 0, 0, 0x0A, 0x30, 0, 0],
    );
    put(&mut config, 0x80, &[0x10, 0xC0, 2, 0]);
    put(&mut config, 0xC0, &[0x13, 0, 6, 3]);
    let before = config.clone();
    let found = conventional(&mut config);
    assert_eq!(config, before);
    let msi = found.msi.unwrap();
    assert_eq!(
        (msi.at, msi.vectors, msi.wide, msi.maskable),
        (0x50, 8, true, true)
    );
    assert_eq!(
        (msi.data(), msi.mask(), msi.length()),
        (0x5C, Some(0x60), 24)
    );
    let msix = found.msix.unwrap();
    assert_eq!((msix.at, msix.vectors), (0x70, 3));
    let place = |bar, offset, length| InBar {
        bar,
        offset,
        length,
    };
    assert_eq!(msix.table, place(4, 0x2000, 48));
    assert_eq!(msix.pending, place(2, 0x3008, 8));
    assert_eq!(
        (found.power, found.express, found.advanced),
        (Some(0x40), Some(0x80), Some(0xC0))
    );
}

#[test]
fn a_list_that_goes_round_or_leads_into_the_header_ends_there() {
    let mut config = header(0x40);
    put(&mut config, 0x40, &[9, 0x48]);
    put(&mut config, 0x48, &[9, 0x40]);
    conventional(&mut config);
    assert_eq!(walk(&config), [(0x40, 9), (0x48, 9)]);
    let mut config = header(0x42);
    put(&mut config, 0x40, &[9, 0x3F]);
    conventional(&mut config);
    assert_eq!(
        walk(&config),
        [(0x40, 9)],
        "and the reserved bits do not count"
    );
    let mut config = header(0x40);
    config[STATUS] = 0;
    conventional(&mut config);
    assert_eq!(walk(&config), [], "there is no list at all");
}

fn extended_list(config: &mut [u8], list: &[(usize, u16)]) {
    for (n, (at, id)) in list.iter().enumerate() {
        let next = list.get(n + 1).map_or(0, |(next, _)| *next);
        let value = u32::from(*id) | 1 << 16 | (next as u32) << 20;
        put(config, *at, &value.to_le_bytes());
        config[*at + 4] = 0xAA;
    }
}

#[test]
fn what_is_to_be_hidden_is_gone_from_the_extended_list() {
    let mut config = header(0);
    let all = [
        (0x100, 0x01),
        (0x150, 0x10),
        (0x190, 0x0E),
        (0x1A0, 0x15),
        (0x200, 0x19),
    ];
    extended_list(&mut config, &all);
    // Two BARs of Resizable BAR.
    config[0x1A8] = 2 << 5;
    let hidden = extended(&mut config);
    assert_eq!(walk_extended(&config), [(0x100, 0x01), (0x200, 0x19)]);
    assert_eq!(hidden, [0x150..0x190, 0x190..0x198, 0x1A0..0x1B4]);
    assert!(config[0x150..0x190].iter().all(|byte| *byte == 0));
    assert_eq!(config[0x104], 0xAA);
    // The first one keeps its place, and says nothing.
    let mut config = header(0);
    extended_list(&mut config, &[(0x100, 0x10), (0x140, 0x15), (0x180, 0x01)]);
    extended(&mut config);
    assert_eq!(walk_extended(&config), [(0x100, 0), (0x180, 0x01)]);
    let mut config = header(0);
    extended_list(&mut config, &[(0x100, 0x10)]);
    extended(&mut config);
    assert_eq!(walk_extended(&config), [(0x100, 0)]);
}

#[test]
fn whatever_is_in_there_both_lists_end_and_hide_what_they_must() {
    let mut random = Random::new(5);
    for _ in 0..2000 {
        let mut config = vec![
            0;
            if random.next() & 1 == 0 {
                EXTENDED
            } else {
                CONVENTIONAL
            }
        ];
        config
            .iter_mut()
            .for_each(|byte| *byte = random.next() as u8);
        // Ids and links that mean something are rare among random ones.
        for _ in 0..40 {
            let at = (random.next() as usize % config.len()) & !3;
            let id = [0x10, 0x0E, 0x15, 0x24, 0x01, 0x05, 0x11][random.next() as usize % 7];
            let next = (random.next() as u32 % 0x400) << 2;
            put(&mut config, at, &(id | 1 << 16 | next << 20).to_le_bytes());
        }
        conventional(&mut config[..CONVENTIONAL]);
        walk(&config);
        let hidden = extended(&mut config);
        if config.len() == EXTENDED {
            for (at, id) in walk_extended(&config) {
                let is_hidden = [ARI, SR_IOV, RESIZABLE_BAR, VF_RESIZABLE_BAR].contains(&id);
                let inside = hidden.iter().any(|range| range.contains(&at));
                assert!(!is_hidden || inside, "{id:#x} at {at:#x}");
            }
        }
    }
}
