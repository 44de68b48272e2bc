//! Port I/O; allowed at CPL3 because `start` sets IOPL to 3.

use core::arch::asm;

/// pvpanic's port.
pub const PVPANIC: u16 = 0x505;
/// ACPI sleep control register; see docs/devices.md.
pub const SLEEP_CONTROL: u16 = 0x600;
/// What powers off: SLP_TYPx 5 in bits 4:2, SLP_EN in bit 5 (ACPI 6.5 §4.8.3.7).
pub const POWER_OFF: u8 = 5 << 2 | 1 << 5;

pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: port reads have no effect on memory; the devices behind these ports are the ones under test.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

pub fn write8(port: u16, value: u8) {
    // SAFETY: as for reads.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

pub fn read32(port: u16) -> u32 {
    let value;
    // SAFETY: as for reads.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

pub fn write32(port: u16, value: u32) {
    // SAFETY: as for reads.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}
