use super::*;
use fief_devices::pci::hotplug;

const WINDOW: PciWindow64 = PciWindow64 {
    start: 0x40_0000_0000,
    end: 0xFD_0000_0000,
};

fn block(vcpus: u8, window: Option<PciWindow64>) -> Vec<u8> {
    tables(Platform {
        vcpus,
        pci_window_64: window,
        wired_interrupts: false,
    })
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The table at a guest-physical address, its checksum verified.
fn table(block: &[u8], address: u64) -> &[u8] {
    let at = (address - layout::ACPI_START) as usize;
    let length = u32_at(block, at + 4) as usize;
    let table = &block[at..at + length];
    assert_eq!(sum(table), 0, "{:?}", &table[..4]);
    table
}

/// What the XSDT lists, by signature.
fn find<'a>(block: &'a [u8], signature: &[u8; 4]) -> &'a [u8] {
    let xsdt = table(block, u64_at(block, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let entries = xsdt[36..].chunks(8).map(|entry| u64_at(entry, 0));
    entries
        .map(|address| table(block, address))
        .find(|table| &table[..4] == signature)
        .unwrap()
}

fn dsdt(block: &[u8]) -> &[u8] {
    table(block, u64_at(find(block, b"FACP"), 140))
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn every_table_is_reached_from_the_rsdp_with_a_valid_checksum() {
    for vcpus in [1, 2, 32] {
        let block = block(vcpus, Some(WINDOW));
        assert_eq!(&block[..8], b"RSD PTR ");
        assert_eq!(sum(&block[..20]), 0);
        assert_eq!(sum(&block[..36]), 0);
        for signature in [b"FACP", b"APIC", b"MCFG"] {
            find(&block, signature);
        }
        assert_eq!(&dsdt(&block)[..4], b"DSDT");
        assert!((block.len() as u64) < layout::ACPI_END - layout::ACPI_START);
    }
}

#[test]
fn the_madt_lists_every_vcpu_once_and_the_io_apic() {
    for vcpus in 1..=32_u8 {
        let block = block(vcpus, None);
        let madt = find(&block, b"APIC");
        assert_eq!(u32_at(madt, 36), layout::LOCAL_APIC_START);
        let mut apic_ids = Vec::new();
        let mut io_apics = Vec::new();
        let mut at = 44;
        while at < madt.len() {
            match madt[at] {
                0 => {
                    assert_eq!(u32_at(madt, at + 4), 1, "enabled");
                    apic_ids.push(madt[at + 3]);
                }
                1 => io_apics.push((u32_at(madt, at + 4), u32_at(madt, at + 8))),
                other => panic!("unexpected structure {other}"),
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(apic_ids, (0..vcpus).collect::<Vec<_>>());
        assert_eq!(io_apics, [(layout::IO_APIC_START, 0)]);
    }
}

#[test]
fn the_mcfg_covers_buses_0_and_1() {
    let block = block(1, None);
    let mcfg = find(&block, b"MCFG");
    assert_eq!(u64_at(mcfg, 44), layout::ECAM_START);
    assert_eq!(mcfg[52..56], [0, 0, 0, 1], "segment 0, buses 0 to 1");
    assert_eq!(mcfg.len(), 60);
}

#[test]
fn the_fadt_is_hardware_reduced_and_names_the_power_registers() {
    let block = block(1, None);
    let fadt = find(&block, b"FACP");
    let flags = u32_at(fadt, 112);
    assert_ne!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
    assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
    let register = |at: usize| (fadt[at], fadt[at + 1], u64_at(fadt, at + 4));
    assert_eq!(register(116), (1, 8, power::RESET));
    assert_eq!(fadt[128], power::RESET_VALUE);
    assert_eq!(register(244), (1, 8, power::SLEEP_CONTROL));
    assert_eq!(register(256), (1, 8, power::SLEEP_STATUS));
}

#[test]
fn the_dsdt_has_the_devices_that_linux_binds_to() {
    let block = block(1, Some(WINDOW));
    let dsdt = dsdt(&block);
    for name in [
        &b"PCI0"[..],
        b"COM1",
        b"PWRB",
        b"GED_",
        b"ACPI0013\0",
        b"QEMU0001\0",
        b"_S5_",
        b"_EVT",
    ] {
        assert!(contains(dsdt, name), "{}", String::from_utf8_lossy(name));
    }
    // Value of an EISA id in AML: PNP0A08, PNP0501, PNP0C0C (ACPI 6.5 §19.6.36).
    for id in [0x080A_D041_u32, 0x0105_D041, 0x0C0C_D041] {
        assert!(contains(dsdt, &id.to_le_bytes()), "{id:#x}");
    }
    let off = [
        b'_',
        b'S',
        b'5',
        b'_',
        0x12,
        0x07,
        0x04,
        0x0A,
        power::SLEEP_TYPE_S5,
    ];
    assert!(contains(dsdt, &off));
}

#[test]
fn the_host_bridge_has_the_windows_of_the_layout() {
    let with = block(1, Some(WINDOW));
    // QWord memory descriptor: minimum and maximum (ACPI 6.5 §6.4.3.5.1).
    let range = |window: PciWindow64| {
        let mut range = window.start.to_le_bytes().to_vec();
        range.extend_from_slice(&(window.end - 1).to_le_bytes());
        range
    };
    let (first, second) = WINDOW.halves();
    assert!(contains(dsdt(&with), &range(first)));
    // The other half is the second bus's, in a table of its own.
    assert!(!contains(dsdt(&with), &range(second)));
    assert!(contains(&with, &range(second)));
    let mut range_32 = (layout::PCI_WINDOW_32.start as u32).to_le_bytes().to_vec();
    range_32.extend_from_slice(&(layout::PCI_WINDOW_32.end as u32 - 1).to_le_bytes());
    assert!(contains(dsdt(&with), &range_32));
    let without = block(1, None);
    assert!(!contains(dsdt(&without), &WINDOW.start.to_le_bytes()));
    assert!(contains(dsdt(&without), &range_32));
}

#[test]
fn the_panic_device_has_the_one_port_of_pvpanic() {
    let block = block(1, None);
    // IO descriptor: decode 16, minimum, maximum, alignment, length (ACPI 6.5 §6.4.2.5).
    let port = PVPANIC_PORT.to_le_bytes();
    let descriptor = [0x47, 1, port[0], port[1], port[0], port[1], 1, 1];
    assert!(contains(dsdt(&block), &descriptor));
}

/// The table of hot-plug slots, from where the event device's region says it is.
fn slots(block: &[u8]) -> &[u8] {
    let dsdt = dsdt(block);
    // DefOpRegion: name, SystemMemory, a dword address, a word length (ACPI 6.5 §20.2.5.2).
    let region = [b"\x5B\x80HPTB\x00\x0C".as_slice()].concat();
    let at = dsdt.windows(region.len()).position(|w| w == region);
    let at = at.unwrap() + region.len();
    let table = table(block, u64::from(u32_at(dsdt, at)));
    assert_eq!(dsdt[at + 4], 0x0B);
    let length = u16::from_le_bytes([dsdt[at + 5], dsdt[at + 6]]);
    assert_eq!(usize::from(length), table.len());
    table
}

#[test]
fn the_hot_plug_slots_are_in_a_table_that_nothing_lists_and_the_event_device_loads() {
    let block = block(1, Some(WINDOW));
    let slots = slots(&block);
    assert_eq!(&slots[..4], b"SSDT");
    let xsdt = table(&block, u64_at(&block, 24));
    let listed = xsdt[36..].chunks(8).map(|entry| u64_at(entry, 0));
    for address in listed {
        assert_ne!(&table(&block, address)[..4], b"SSDT");
    }
    let dsdt = dsdt(&block);
    // Load of that region into Local1, and a bus check of the host bridge.
    assert!(contains(dsdt, b"\x5B\x20HPTB\x61"));
    assert!(contains(dsdt, b"\x86\\\x2E_SB_PCI0\x00"));
    assert!(
        !contains(dsdt, b"_EJ0"),
        "slots cost a guest that never uses them nothing"
    );
}

#[test]
fn every_slot_of_the_hot_plug_bus_has_an_address_an_eject_method_and_its_two_notifications() {
    let block = block(1, None);
    let slots = slots(&block);
    for slot in 0..32_u32 {
        let name = format!("SL{slot:02}");
        let name = name.as_bytes();
        let bit = (1_u32 << slot).to_le_bytes();
        // Name (_ADR, address).
        let address = [b"\x08_ADR\x0C", &(slot << 16).to_le_bytes()[..]].concat();
        // Store (bit, EJCT) in a method.
        let eject = [b"_EJ0\x09\x70\x0C", &bit[..], b"EJCT"].concat();
        let method = package(&[0x14], &eject);
        let device = package(&[0x5B, 0x82], &[name, &address, &method].concat());
        assert!(contains(slots, &device), "{slot}");
        for (local, event) in [(0x60, 1), (0x61, 3)] {
            // And (Local, bit), then Notify (slot, event).
            let condition = [&[0x7B, local, 0x0C][..], &bit, &[0]].concat();
            let notify = [&[0x86][..], name, &[0x0A, event]].concat();
            let notification = package(&[0xA0], &[condition, notify].concat());
            assert!(contains(slots, &notification), "{slot} {event}");
        }
    }
    // The bus and its window: word bus number and dword memory descriptors (ACPI 6.5 §6.4.3.5).
    assert!(contains(slots, &[0x88, 0x0D, 0, 2]));
    let window = layout::HOT_PLUG_WINDOW;
    let mut range = (window.start as u32).to_le_bytes().to_vec();
    range.extend_from_slice(&(window.end as u32 - 1).to_le_bytes());
    assert!(contains(slots, &range));
    assert!(contains(
        slots,
        &(hotplug::HOT_PLUG_PORT as u16).to_le_bytes()
    ));
}

#[test]
fn wired_interrupts_are_told_of_only_where_there_are_some() {
    let with = |wired_interrupts| {
        tables(Platform {
            vcpus: 1,
            pci_window_64: None,
            wired_interrupts,
        })
    };
    // The table of the second bus always has them: what comes there is not known yet.
    let count = |bytes: &[u8]| bytes.windows(4).filter(|name| name == b"_PRT").count();
    assert_eq!((count(&with(false)), count(&with(true))), (1, 2));
    // Slot 5, all functions, pin A, no link, GSI 21 (ACPI 6.5 §6.2.13): Package (4) {dword, zero, zero, byte or dword}.
    let route = [0x04, 0x0C, 0xFF, 0xFF, 0x05, 0x00, 0x00, 0x00];
    let tables = with(true);
    let place = tables.windows(8).position(|bytes| bytes == route).unwrap();
    assert_eq!(tables[place + 8..place + 10], [0x0A, 21]);
}

/// A short object with its length, which counts itself (ACPI 6.5 §20.2.4).
fn package(opcode: &[u8], content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len() + 1).unwrap();
    assert!(length < 64, "one byte holds 63");
    [opcode, &[length], content].concat()
}
