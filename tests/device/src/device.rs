//! The function: what messages do to it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_REGIONS, VFIO_PCI_ROM_REGION_INDEX,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};

use crate::config::Config;
use crate::dma::GuestMemory;
use crate::interrupts::{INTX, Interrupts};
use crate::layout::Layout;
use crate::registers::{self as register, *};

/// Most bytes of one DMA.
const MOST_DMA: u32 = 1 << 20;

/// What a test can ask the process to do to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// It dies halfway through the next DMA.
    DieInDma,
    /// It never ends the next DMA.
    HangInDma,
}

/// Messages of a region.
#[derive(Debug, Clone, Copy, Default)]
struct Messages {
    reads: u32,
    writes: u32,
}

/// The function.
#[derive(Debug)]
pub struct Device {
    config: Config,
    interrupts: Interrupts,
    guest: GuestMemory,
    bar2: File,
    bar4: File,
    memory: u64,
    messages: [Messages; VFIO_PCI_NUM_REGIONS as usize],
    resets: u32,
    scratch: u32,
    status: u32,
    address: u64,
    offset: u32,
    length: u32,
    trouble: Trouble,
}

impl Device {
    pub fn new(layout: &Layout, bar2: File, bar4: File) -> Self {
        Self {
            config: Config::new(layout),
            interrupts: Interrupts::default(),
            guest: GuestMemory::default(),
            bar2,
            bar4,
            memory: layout.memory,
            messages: Default::default(),
            resets: 0,
            scratch: 0,
            status: 0,
            address: 0,
            offset: 0,
            length: 0,
            trouble: Trouble::None,
        }
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            ID => WHO,
            SCRATCH => self.scratch,
            RESETS => self.resets,
            register::STATUS => self.status,
            ADDRESS_LOW => self.address as u32,
            ADDRESS_HIGH => (self.address >> 32) as u32,
            OFFSET => self.offset,
            LENGTH => self.length,
            ENABLED => {
                let [msi, msix] = self.interrupts.enabled();
                u32::from(msi) | u32::from(msix) << 8
            }
            COUNTERS..COUNTERS_END => {
                let at = offset - COUNTERS;
                let messages = self.messages[(at / COUNTERS_SIZE) as usize];
                if at.is_multiple_of(COUNTERS_SIZE) {
                    messages.reads
                } else {
                    messages.writes
                }
            }
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        match offset {
            SCRATCH => self.scratch = value,
            ADDRESS_LOW => self.address = self.address >> 32 << 32 | u64::from(value),
            ADDRESS_HIGH => {
                self.address = self.address & u64::from(u32::MAX) | u64::from(value) << 32;
            }
            OFFSET => self.offset = value,
            LENGTH => self.length = value,
            START => self.status = if self.dma(value) { DONE } else { DONE | FAILED },
            RAISE => self.interrupts.raise(value),
            LINE => self.assert(value != 0),
            TROUBLE => {
                self.trouble = match value {
                    1 => std::process::exit(9),
                    2 => hang(),
                    3 => Trouble::DieInDma,
                    4 => Trouble::HangInDma,
                    _ => {
                        self.misuse(value);
                        Trouble::None
                    }
                }
            }
            _ => {}
        }
    }

    /// Does to what it shares with the machine what it should not. The status tells whether it could.
    fn misuse(&mut self, how: u32) {
        let done = match how {
            5 => self.bar2.set_len(0).is_ok(),
            6 => self.guest.shrink(),
            7 => self.interrupts.wait_at_events(),
            _ => return,
        };
        self.status = if done { DONE } else { DONE | FAILED };
    }

    fn assert(&mut self, asserted: bool) {
        self.config.show_intx(asserted);
        let line = asserted && self.config.has_intx();
        self.interrupts.set_line(line);
    }

    /// Copies between the guest's memory and BAR 2. False if something of it is not there, or it may not.
    fn dma(&mut self, direction: u32) -> bool {
        let (offset, length) = (u64::from(self.offset), self.length);
        let inside = offset
            .checked_add(length.into())
            .is_some_and(|end| end <= self.memory);
        if !inside || length > MOST_DMA || !self.config.is_bus_master() {
            return false;
        }
        // In two halves, so that there is a middle.
        let first = u64::from(length / 2);
        let halves = [(0, first), (first, u64::from(length) - first)];
        halves.into_iter().all(|(at, length)| {
            let mut bytes = vec![0; length as usize];
            let iova = self.address.wrapping_add(at);
            let copied = match direction {
                FROM_GUEST => {
                    self.guest.read(iova, &mut bytes)
                        && self.bar2.write_all_at(&bytes, offset + at).is_ok()
                }
                TO_GUEST => {
                    self.bar2.read_exact_at(&mut bytes, offset + at).is_ok()
                        && self.guest.write(iova, &bytes)
                }
                _ => false,
            };
            match self.trouble {
                Trouble::DieInDma => std::process::exit(9),
                Trouble::HangInDma => hang(),
                Trouble::None => copied,
            }
        })
    }

    /// The state after power-on, but for what counts the resets and the events.
    fn power_on(&mut self) {
        self.resets += 1;
        self.config.reset();
        self.interrupts.set_line(false);
        (self.scratch, self.status) = (0, 0);
        (self.address, self.offset, self.length) = (0, 0, 0);
        self.trouble = Trouble::None;
    }
}

/// Answers nothing any more.
fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

fn rom(offset: u64) -> u8 {
    // The signature of an expansion ROM (PCI 3.0 §6.3.1.1), then a pattern.
    match offset {
        0 => 0x55,
        1 => 0xAA,
        _ => offset as u8,
    }
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.messages[region as usize].reads += 1;
        match region {
            0 => {
                let value = self.register(offset & !3).to_le_bytes();
                let within = value.get(offset as usize & 3..).unwrap_or_default();
                for (place, byte) in data.iter_mut().zip(within) {
                    *place = *byte;
                }
                Ok(())
            }
            2 => self.bar2.read_exact_at(data, offset),
            4 => self.bar4.read_exact_at(data, offset),
            VFIO_PCI_ROM_REGION_INDEX => {
                for (offset, byte) in (offset..).zip(data) {
                    *byte = rom(offset);
                }
                Ok(())
            }
            VFIO_PCI_CONFIG_REGION_INDEX => {
                self.config.read(offset, data);
                Ok(())
            }
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        self.messages[region as usize].writes += 1;
        match region {
            0 => {
                if let Ok(value) = data.try_into() {
                    self.set_register(offset, u32::from_le_bytes(value));
                }
                Ok(())
            }
            2 => self.bar2.write_all_at(data, offset),
            4 => self.bar4.write_all_at(data, offset),
            VFIO_PCI_CONFIG_REGION_INDEX => {
                if self.config.write(offset, data) {
                    self.power_on();
                }
                Ok(())
            }
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        let file = file.ok_or(io::ErrorKind::Unsupported)?;
        self.guest.map(address, size, file, offset);
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        if self.guest.unmap(address, size) {
            return Ok(());
        }
        Err(io::ErrorKind::NotFound.into())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.power_on();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        _: u32,
        mut events: Vec<File>,
    ) -> io::Result<()> {
        let events_given = flags & VFIO_IRQ_SET_DATA_EVENTFD != 0;
        if flags & VFIO_IRQ_SET_ACTION_UNMASK != 0 && index == INTX {
            if let Some(event) = events.pop() {
                self.interrupts.unmask_by(event);
            }
        } else if flags & VFIO_IRQ_SET_ACTION_TRIGGER != 0 && events_given {
            self.interrupts.connect(index, start, events);
        } else {
            self.interrupts.disconnect(index);
        }
        Ok(())
    }
}
