//! PCI: buses of devices, the config space access, BARs and MSI-X of their functions (PCI Local Bus 3.0; PCI Express Base
//! 5.0 for ECAM).

pub mod bar;
pub mod capability;
pub mod config;
pub mod host_bridge;
pub mod hotplug;
pub mod msix;
pub mod root;

mod access;
mod place;
mod window;

pub use bar::{BAR_COUNT, Bar, BarKind, ROM_BAR, Window};
pub use config::{ConfigError, ConfigSpace, Identity};
pub use host_bridge::HostBridge;
pub use hotplug::{HotPlug, HotPlugState};
pub use msix::{Msix, MsixState};
pub use root::{FunctionState, PciError, PciRoot, PciRootState, PciWindows};

/// Number of device slots on a bus (PCI 3.0 §3.2.2.3.2: five bits of device number).
pub const SLOTS: u8 = 32;

/// Number of functions of a device (three bits of function number).
pub const FUNCTIONS: u8 = 8;

/// Bytes of ECAM for one bus: 32 devices × 8 functions × 4 KiB (PCIe 5.0 §7.2.2).
pub const ECAM_SIZE: u64 = 1 << 20;

/// First of the eight ports of configuration mechanism #1: CONFIG_ADDRESS and CONFIG_DATA (PCI 3.0 §3.2.2.3.2).
pub const CONFIG_PORT: u64 = 0xCF8;

/// Number of ports from [`CONFIG_PORT`].
pub const CONFIG_PORT_COUNT: u64 = 8;

/// A PCI function: a virtio device, or one of the host's that is passed through.
///
/// The root keeps the function's config space: it answers reads, applies the write masks, sizes and moves BARs, and
/// tells the function. The hooks below let the function add what only it knows. All of them run on vCPU threads or the
/// control thread; the config hooks and `bar_moved` of one function one at a time, under the root's lock for that slot.
/// A function never calls back into the root.
pub trait PciFunction: Send + Sync {
    /// The function's config space as it is after reset, with its BARs declared. Asked once, when it is added.
    fn config_space(&self) -> ConfigSpace;

    /// `data` holds what `space` holds at `offset`; replace what the function knows better. The access lies within one
    /// aligned dword and never touches the BARs, the expansion ROM's register or the command register.
    fn config_read(&self, _space: &ConfigSpace, _offset: u16, _data: &mut [u8]) {}

    /// `data` was written at `offset`; `space` already holds the result under the write masks. The access lies within
    /// one aligned dword.
    fn config_write(&self, _space: &ConfigSpace, _offset: u16, _data: &[u8]) {}

    /// Reads `data.len()` (1–8) bytes inside BAR `bar` ([`ROM_BAR`]: the expansion ROM). May come shortly after the BAR has moved.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes `data` (1–8 bytes) inside BAR `bar`. May come shortly after the BAR has moved.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);

    /// BAR `bar` now answers at `address`, or nowhere: its space is disabled or it lies outside the windows. Connect
    /// doorbells here and undo earlier connections. Called only when something changed; nowhere is the state at start.
    fn bar_moved(&self, _bar: u8, _address: Option<u64>) {}

    /// The machine is reset, or the function was taken off the bus: it is to be as after power-on. Its BARs answer nowhere
    /// any more.
    fn reset(&self) {}
}
