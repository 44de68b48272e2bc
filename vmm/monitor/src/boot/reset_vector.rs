//! What is at the reset vector, where a PC has its BIOS: instructions that write the ACPI reset register.
//!
//! A kernel that finds no better way to reset jumps there in real mode, and Linux does so on this machine: with CONFIG_EFI
//! it takes hardware-reduced ACPI for a sign of EFI (arch/x86/kernel/reboot.c, `reboot_init`), finds no EFI to ask for a
//! reset, and goes on to the BIOS; the FADT's RESET_REG comes before both in its order and is never looked at. Without
//! this code the CPU would run through zeros for ever.

use fief_devices::legacy::power;

/// Real-mode code, to be placed at [`layout::RESET_VECTOR`](super::layout::RESET_VECTOR).
pub const CODE: [u8; 9] = {
    let [low, high, ..] = power::RESET.to_le_bytes();
    [
        0xBA,
        low,
        high, // mov dx, RESET
        0xB0,
        power::RESET_VALUE, // mov al, RESET_VALUE
        0xEE,               // out dx, al
        0xF4,               // hlt
        0xEB,
        0xFD, // jmp back to hlt
    ]
};

/// It ends before 1 MiB, and the register is a port.
const _: () = assert!(CODE.len() <= 16 && power::RESET <= 0xFFFF);
