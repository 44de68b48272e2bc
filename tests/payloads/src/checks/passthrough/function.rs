//! The device on the bus: configuration space, BARs, registers.

use crate::Failure;
use crate::memory::registers;
use crate::pci::ECAM;

/// What finds it on the bus: device and vendor.
pub const IDENTITY: u32 = 0x7E57_F1EF;

/// Registers of configuration space.
const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
const ROM: u16 = 0x30;
const LIST: u16 = 0x34;
/// Bits of the command register.
const MEMORY: u32 = 1 << 1;
const MASTER: u32 = 1 << 2;
const INTX_DISABLE: u32 = 1 << 10;

/// The registers of BAR 0 and what is in them.
pub mod register {
    pub const ID: u64 = 0x00;
    pub const SCRATCH: u64 = 0x04;
    pub const RESETS: u64 = 0x08;
    pub const STATUS: u64 = 0x0C;
    pub const ADDRESS_LOW: u64 = 0x10;
    pub const ADDRESS_HIGH: u64 = 0x14;
    pub const OFFSET: u64 = 0x18;
    pub const LENGTH: u64 = 0x1C;
    pub const START: u64 = 0x20;
    pub const RAISE: u64 = 0x24;
    pub const LINE: u64 = 0x28;
    pub const ENABLED: u64 = 0x2C;
    pub const TROUBLE: u64 = 0x30;
    pub const COUNTERS: u64 = 0x40;

    pub const WHO: u32 = 0x6665_6966;
    pub const DONE: u32 = 1;
    pub const REFUSED: u32 = 3;
    pub const FROM_GUEST: u32 = 1;
    pub const TO_GUEST: u32 = 2;
    pub const DIE_IN_DMA: u32 = 3;
    pub const HANG_IN_DMA: u32 = 4;
    pub const SHRINK_BAR2: u32 = 5;
    pub const SHRINK_GUEST: u32 = 6;
    pub const WAIT_AT_EVENTS: u32 = 7;
}

/// The device.
pub struct Function {
    /// Its configuration space.
    space: *mut u8,
    /// Its registers.
    registers: *mut u8,
}

impl Function {
    /// Finds it on bus 1, or else on bus 0, and switches it on.
    pub fn find() -> Result<Self, Failure> {
        let mut slots = (0..512).rev().map(|slot| registers(ECAM + (slot << 15)));
        // SAFETY: configuration space of buses 0 and 1; where nothing is it reads as ones.
        let space = slots.find(|space| unsafe { space.cast::<u32>().read_volatile() } == IDENTITY);
        let mut function = Self {
            space: space.ok_or("the device is not on the bus")?,
            registers: core::ptr::null_mut(),
        };
        function.enable();
        let (address, _) = function.bar(0);
        function.registers = registers(address);
        Ok(function)
    }

    /// Memory space and bus mastering on, the wired line off.
    pub fn enable(&self) {
        self.set_config(COMMAND, MEMORY | MASTER | INTX_DISABLE);
    }

    /// Switches the BARs on or off.
    pub fn decode(&self, on: bool) {
        self.change_command(MEMORY, on);
    }

    /// Lets it access memory, or not.
    pub fn master(&self, on: bool) {
        self.change_command(MASTER, on);
    }

    /// Lets it use its wired line, or not.
    pub fn wire(&self, on: bool) {
        self.change_command(INTX_DISABLE, !on);
    }

    fn change_command(&self, bit: u32, on: bool) {
        let command = self.config(COMMAND) & 0xFFFF & !bit;
        self.set_config(COMMAND, command | if on { bit } else { 0 });
    }

    /// Reads 32 bits of configuration space.
    pub fn config(&self, offset: u16) -> u32 {
        // SAFETY: configuration space of the device, 4096 bytes.
        unsafe { self.space.add(offset.into()).cast::<u32>().read_volatile() }
    }

    /// Writes 32 bits of configuration space.
    pub fn set_config(&self, offset: u16, value: u32) {
        // SAFETY: as above.
        unsafe {
            self.space
                .add(offset.into())
                .cast::<u32>()
                .write_volatile(value);
        }
    }

    /// Where the capability `id` is.
    pub fn capability(&self, id: u8) -> Option<u16> {
        let mut at = (self.config(LIST) & 0xFC) as u16;
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let header = self.config(at);
            if header as u8 == id {
                return Some(at);
            }
            at = (header >> 8 & 0xFC) as u16;
        }
        None
    }

    /// Where the extended capability `id` is.
    pub fn extended_capability(&self, id: u16) -> Option<u16> {
        let mut at = 0x100;
        for _ in 0..64 {
            let header = self.config(at);
            if header != u32::MAX && header as u16 == id {
                return Some(at);
            }
            at = (header >> 20 & 0xFFC) as u16;
            if at < 0x100 {
                break;
            }
        }
        None
    }

    /// Address and size of a memory BAR, found out as PCI has it: with ones in its registers while it is off.
    pub fn bar(&self, index: u16) -> (u64, u64) {
        let at = BAR0 + 4 * index;
        let command = self.config(COMMAND) & 0xFFFF;
        let low = self.config(at);
        let wide = low & 0b110 == 0b100;
        let high = if wide { self.config(at + 4) } else { 0 };
        self.set_config(COMMAND, command & !MEMORY);
        self.set_config(at, u32::MAX);
        let mut mask = u64::from(self.config(at) & !0xF) | u64::from(u32::MAX) << 32;
        self.set_config(at, low);
        if wide {
            self.set_config(at + 4, u32::MAX);
            mask = mask & u64::from(u32::MAX) | u64::from(self.config(at + 4)) << 32;
            self.set_config(at + 4, high);
        }
        self.set_config(COMMAND, command);
        let address = u64::from(low & !0xF) | u64::from(high) << 32;
        (address, (!mask).wrapping_add(1))
    }

    /// Puts a BAR of 64 bits elsewhere, while it is off.
    pub fn move_bar(&self, index: u16, address: u64) {
        let at = BAR0 + 4 * index;
        self.decode(false);
        self.set_config(at, address as u32);
        self.set_config(at + 4, (address >> 32) as u32);
        self.decode(true);
    }

    /// Puts the expansion ROM somewhere, or switches it off.
    pub fn place_rom(&self, address: Option<u32>) {
        self.set_config(ROM, address.map_or(0, |address| address | 1));
    }

    /// Reads a register.
    pub fn get(&self, register: u64) -> u32 {
        let place = self.registers.wrapping_add(register as usize);
        // SAFETY: a register in BAR 0, which is mapped one to one.
        unsafe { place.cast::<u32>().read_volatile() }
    }

    /// Writes a register.
    pub fn set(&self, register: u64, value: u32) {
        let place = self.registers.wrapping_add(register as usize);
        // SAFETY: as above.
        unsafe { place.cast::<u32>().write_volatile(value) }
    }

    /// How many messages have read and written a BAR.
    pub fn messages(&self, bar: u64) -> (u32, u32) {
        let at = register::COUNTERS + 8 * bar;
        (self.get(at), self.get(at + 4))
    }

    /// Copies between guest memory at `address` and BAR 2 at `offset`. True if it was done without an error.
    pub fn dma(&self, direction: u32, address: u64, offset: u32, length: u32) -> bool {
        self.set(register::ADDRESS_LOW, address as u32);
        self.set(register::ADDRESS_HIGH, (address >> 32) as u32);
        self.set(register::OFFSET, offset);
        self.set(register::LENGTH, length);
        // What the buffer has is in memory before the device looks.
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        self.set(register::START, direction);
        self.get(register::STATUS) == register::DONE
    }

    /// Where MSI-X's table is in BAR 4.
    pub fn table(&self) -> u64 {
        let msix = self.capability(0x11).unwrap_or(0);
        u64::from(self.config(msix + 4) & !7)
    }

    /// Where what comes after table and pending bits begins in BAR 4.
    pub fn table_end(&self) -> u64 {
        let msix = self.capability(0x11).unwrap_or(0);
        u64::from(self.config(msix + 8) & !7) + 8
    }
}
