//! Configuration space: bytes, and which of their bits can be written.

use crate::layout::{BAR0, BAR4, CONFIG, Layout, MSI_VECTORS, MSIX_VECTORS, ROM};

/// What finds the function on the bus. No vendor has this number.
pub const VENDOR: u16 = 0xF1EF;
pub const DEVICE: u16 = 0x7E57;

/// Registers of the header (PCI 3.0 §6.1).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BUS_MASTER: u8 = 1 << 2;
const INTX_DISABLE: u8 = 1 << 2;
const INTX_STATUS: u8 = 1 << 3;

/// Where the capabilities are: power management, MSI with 64-bit addresses and mask bits, MSI-X, PCI Express.
const POWER: usize = 0x40;
const MSI: usize = 0x50;
const MSIX: usize = 0x70;
const EXPRESS: usize = 0x80;
/// Extended capabilities: SR-IOV and ARI, a serial number, resizable BARs.
const SR_IOV: usize = 0x100;
const ARI: usize = 0x140;
const SERIAL: usize = 0x150;
const RESIZABLE: usize = 0x160;

/// Device capabilities and control of PCI Express: function-level reset (PCIe 5.0 §7.5.3.3, §7.5.3.4).
const EXPRESS_CAPABILITIES: usize = EXPRESS + 4;
const EXPRESS_CONTROL: usize = EXPRESS + 8;
const FLR_CAPABLE: u32 = 1 << 28;
const FLR: u8 = 1 << 7;

/// The serial number, by which a test sees that what is harmless of extended space is there.
const SERIAL_NUMBER: u64 = 0x0123_4567_89AB_CDEF;

/// Configuration space.
#[derive(Debug)]
pub struct Config {
    at_reset: Vec<u8>,
    now: Vec<u8>,
    writable: Vec<u8>,
}

impl Config {
    pub fn new(layout: &Layout) -> Self {
        let empty = vec![0; CONFIG as usize];
        let mut config = Self {
            at_reset: empty.clone(),
            now: Vec::new(),
            writable: empty,
        };
        config.header(layout);
        config.capabilities(layout);
        config.extended();
        config.now = config.at_reset.clone();
        config
    }

    fn header(&mut self, layout: &Layout) {
        self.set(0, &VENDOR.to_le_bytes());
        self.set(2, &DEVICE.to_le_bytes());
        // It has capabilities. Its class is none that a driver knows.
        self.set(STATUS, &[1 << 4]);
        self.set(0x08, &[1, 0, 0, 0xFF]);
        self.set(0x2C, &VENDOR.to_le_bytes());
        self.set(0x2E, &[1, 0]);
        self.set(0x34, &[POWER as u8]);
        // INTA.
        self.set(0x3D, &[1]);
        self.allow(COMMAND, &[0b111, 0b100]);
        self.allow(0x3C, &[0xFF]);
        self.bar(0x10, 0, BAR0);
        // BARs of 64 bits; that of memory is prefetchable.
        self.bar(0x18, 0b1100, layout.memory);
        self.bar(0x20, 0b0100, BAR4);
        self.allow(0x30, &(!(ROM as u32 - 1) | 1).to_le_bytes());
    }

    fn bar(&mut self, at: usize, kind: u8, size: u64) {
        self.set(at, &[kind]);
        let mask = (!(size - 1)).to_le_bytes();
        let wide = kind & 0b100 != 0;
        self.allow(at, if wide { &mask } else { &mask[..4] });
    }

    fn capabilities(&mut self, layout: &Layout) {
        self.set(POWER, &[0x01, MSI as u8, 3, 0]);
        self.allow(POWER + 4, &[0b11]);

        let count = MSI_VECTORS.trailing_zeros() as u8;
        self.set(MSI, &[0x05, MSIX as u8, count << 1 | 1 << 7, 1]);
        self.allow(MSI + 2, &[0b111_0001]);
        self.allow(MSI + 4, &[0xFC]);
        self.allow(MSI + 5, &[0xFF; 9]);
        self.allow(MSI + 16, &[0xFF]);

        let [size, _] = (MSIX_VECTORS - 1).to_le_bytes();
        self.set(MSIX, &[0x11, EXPRESS as u8, size, 0]);
        self.set(MSIX + 4, &(layout.table | 4).to_le_bytes());
        self.set(MSIX + 8, &(layout.pending() | 4).to_le_bytes());
        self.allow(MSIX + 3, &[0b1100_0000]);

        // An endpoint, version 2.
        self.set(EXPRESS, &[0x10, 0, 2, 0]);
        self.set(EXPRESS_CAPABILITIES, &FLR_CAPABLE.to_le_bytes());
        self.allow(EXPRESS_CONTROL, &[0xFF, 0x7F]);
    }

    fn extended(&mut self) {
        // Id, version, next.
        let header = |id: u32, next: usize| (id | 1 << 16 | (next as u32) << 20).to_le_bytes();
        self.set(SR_IOV, &header(0x10, ARI));
        // Initial and total virtual functions.
        self.set(SR_IOV + 0x0C, &[8, 0, 8, 0]);
        self.set(ARI, &header(0x0E, SERIAL));
        self.set(SERIAL, &header(0x03, RESIZABLE));
        self.set(SERIAL + 4, &SERIAL_NUMBER.to_le_bytes());
        self.set(RESIZABLE, &header(0x15, 0));
        // One BAR, which is BAR 2, of 1 MiB or more.
        self.set(RESIZABLE + 4, &0x3F0_u32.to_le_bytes());
        self.set(RESIZABLE + 8, &(1 << 5 | 2_u32).to_le_bytes());
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.at_reset[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    /// Reads; what lies outside reads as ones.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        for (at, byte) in (at..).zip(data) {
            *byte = self.now.get(at as usize).copied().unwrap_or(0xFF);
        }
    }

    /// Writes what can be written. True if the write asks for a reset of the function.
    pub fn write(&mut self, at: u64, data: &[u8]) -> bool {
        let mut reset = false;
        for (at, byte) in (at..).zip(data) {
            let at = at as usize;
            if let (Some(now), Some(mask)) = (self.now.get_mut(at), self.writable.get(at)) {
                *now = *now & !mask | byte & mask;
            }
            reset |= at == EXPRESS_CONTROL + 1 && byte & FLR != 0;
        }
        reset
    }

    pub fn reset(&mut self) {
        self.now = self.at_reset.clone();
    }

    /// It may access memory.
    pub fn is_bus_master(&self) -> bool {
        self.now[COMMAND] & BUS_MASTER != 0
    }

    /// It may use its line.
    pub fn has_intx(&self) -> bool {
        self.now[COMMAND + 1] & INTX_DISABLE == 0
    }

    /// Its line is asserted, or not.
    pub fn show_intx(&mut self, asserted: bool) {
        self.now[STATUS] = self.now[STATUS] & !INTX_STATUS | if asserted { INTX_STATUS } else { 0 };
    }
}
