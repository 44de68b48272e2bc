//! Capability ids (PCI Code and ID Assignment §2).

/// Message-signalled interrupts.
pub const MSI: u8 = 0x05;
/// Vendor-specific; virtio uses it for its structures.
pub const VENDOR: u8 = 0x09;
/// PCI Express.
pub const PCI_EXPRESS: u8 = 0x10;
/// MSI-X.
pub const MSIX: u8 = 0x11;
/// Power management.
pub const POWER_MANAGEMENT: u8 = 0x01;
/// Advanced features: function-level reset of conventional functions.
pub const ADVANCED_FEATURES: u8 = 0x13;
