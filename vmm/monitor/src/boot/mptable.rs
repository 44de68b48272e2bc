//! MultiProcessor Specification 1.4 table: how kernels without ACPI find CPUs and the I/O APIC.
//!
//! It pays even for kernels that have ACPI and ignore its contents: Linux looks for the floating pointer before it reads
//! any ACPI table, 16 bytes at a time with a mapping of its own for each, and the search through 64 KiB of BIOS memory
//! that is not there takes it 3.5 million instructions. The pointer is therefore where Linux looks first.

use super::layout;

/// Address of the floating pointer: the first paragraph of the first KiB, which is searched first (MP 1.4 §4).
pub const POINTER_START: u64 = 0;

/// MP 1.4.
const REVISION: u8 = 4;
/// Version registers of the local APICs and of the I/O APIC (Intel SDM 3A §11.4.8, 82093AA §3.2.2).
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
/// Processor entry: enabled; the bootstrap processor (MP 1.4 §4.3.1).
const CPU_ENABLED: u8 = 1;
const CPU_BOOTSTRAP: u8 = 2;
/// Number of the ISA bus, the only one listed: PCI functions here raise MSIs only.
const ISA_BUS: u8 = 0;
/// Interrupt types (MP 1.4 table 4-10).
const INTERRUPT: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;
/// All local APICs.
const EVERY_APIC: u8 = 0xFF;
const ISA_IRQS: u8 = 16;

/// Byte that makes `bytes` sum up to 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn low_u32(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

/// The floating pointer structure (MP 1.4 §4.1), to be placed at [`POINTER_START`].
pub fn pointer() -> [u8; 16] {
    let mut bytes = [0; 16];
    let [a, b, c, d] = low_u32(layout::MP_TABLE_START);
    bytes.copy_from_slice(&[
        b'_', b'M', b'P', b'_', a, b, c, d, 1, REVISION, 0, 0, 0, 0, 0, 0,
    ]);
    if let (sum, Some(place)) = (checksum(&bytes), bytes.get_mut(10)) {
        *place = sum;
    }
    bytes
}

/// The configuration table (MP 1.4 §4.2), to be placed at [`layout::MP_TABLE_START`].
pub fn table(vcpus: u8) -> Vec<u8> {
    let mut entries: Vec<u8> = Vec::new();
    let mut count = 0_u16;
    let mut add = |entry: &[u8]| {
        entries.extend_from_slice(entry);
        count = count.saturating_add(1);
    };
    for index in 0..vcpus {
        let bootstrap = if index == 0 { CPU_BOOTSTRAP } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[0, index, LOCAL_APIC_VERSION, CPU_ENABLED | bootstrap]);
        add(&entry);
    }
    add(b"\x01\x00ISA   ");
    let io_apic = vcpus;
    let [a, b, c, d] = layout::IO_APIC_START.to_le_bytes();
    add(&[2, io_apic, IO_APIC_VERSION, 1, a, b, c, d]);
    for irq in 0..ISA_IRQS {
        add(&[3, INTERRUPT, 0, 0, ISA_BUS, irq, io_apic, irq]);
    }
    add(&[4, EXTERNAL, 0, 0, ISA_BUS, 0, EVERY_APIC, 0]);
    add(&[4, NMI, 0, 0, ISA_BUS, 0, EVERY_APIC, 1]);

    let mut table = Vec::with_capacity(HEADER_BYTES.saturating_add(entries.len()));
    table.extend_from_slice(b"PCMP");
    let length = u16::try_from(HEADER_BYTES.saturating_add(entries.len())).unwrap_or(u16::MAX);
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[REVISION, 0]);
    table.extend_from_slice(b"FIEF    FIEFVM      ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&layout::LOCAL_APIC_START.to_le_bytes());
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    if let (sum, Some(place)) = (checksum(&table), table.get_mut(7)) {
        *place = sum;
    }
    table
}

const HEADER_BYTES: usize = 44;

#[cfg(test)]
mod tests;
