//! The few devices from before PCI that a Linux guest needs: a serial port, ways to switch off and reset, and to report
//! a panic. What is not here (PIT, PIC, IOAPIC) is KVM's; RTC, keyboard and the rest do not exist and read as ones.

pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod uart;

use std::sync::Arc;

pub use i8042::I8042;
pub use power::Power;
pub use pvpanic::Pvpanic;
pub use serial::{SerialEnds, SerialHandler};
pub use uart::Uart;

/// What a guest asked for or reported about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// Switch the machine off (ACPI S5).
    PowerOff,
    /// Reset the machine (ACPI reset register or keyboard controller).
    Reset,
    /// The kernel panicked (pvpanic).
    Panicked,
    /// The kernel panicked and a crash kernel takes over: it goes on running (pvpanic).
    CrashLoaded,
}

/// Receives guest events. Called on the vCPU thread of the access: it must only note the event and return.
pub type EventSink = Arc<dyn Fn(GuestEvent) + Send + Sync>;

/// First port of the first serial port, COM1.
pub const SERIAL_PORT: u64 = 0x3F8;
/// Number of ports of a 16550.
pub const SERIAL_PORT_COUNT: u64 = 8;
/// Interrupt of COM1.
pub const SERIAL_GSI: u32 = 4;
/// Command and status port of the keyboard controller.
pub const I8042_PORT: u64 = 0x64;
/// Port of pvpanic, where QEMU has it too.
pub const PVPANIC_PORT: u64 = 0x505;
/// First port of the ACPI power registers; see [`power`].
pub const POWER_PORT: u64 = 0x600;
/// Number of ports from [`POWER_PORT`].
pub const POWER_PORT_COUNT: u64 = 4;
/// Interrupt of the ACPI Generic Event Device, edge-triggered, active high.
pub const POWER_GSI: u32 = 9;

#[cfg(test)]
pub(crate) mod tests;
