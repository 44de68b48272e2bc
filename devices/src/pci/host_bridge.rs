//! The host bridge's own function.

use super::PciFunction;
use super::config::{ConfigSpace, Identity};

/// A host bridge: identity only. Linux does not need it; it makes the bus look as people (and `lspci`) expect.
pub struct HostBridge;

impl PciFunction for HostBridge {
    fn config_space(&self) -> ConfigSpace {
        ConfigSpace::new(Identity {
            // Red Hat's generic PCIe host bridge: no driver or quirk of any guest looks for more behind it.
            vendor: 0x1B36,
            device: 0x0008,
            class: 0x06_00_00,
            revision: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        })
    }

    fn bar_read(&self, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
    }

    fn bar_write(&self, _bar: u8, _offset: u64, _data: &[u8]) {}
}
