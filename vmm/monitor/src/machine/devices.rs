//! The machine's devices and the buses that they are on.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use fief_devices::bus::{Bus, BusDevice, BusError};
use fief_devices::irq::InterruptLine;
use fief_devices::pci::{
    CONFIG_PORT, CONFIG_PORT_COUNT, HostBridge, PciError, PciRoot, PciWindows, Window,
};
use kvm_ioctls::VmFd;

use super::ExitReason;
use super::build::end_with;
use super::control::Control;
use super::files::Files;
use crate::boot::acpi::{EVENT_POWER_BUTTON, SLEEP_TYPE_OFF};
use crate::boot::layout::{self, PciWindow64};
use crate::config::VmConfig;
use crate::kvm::irq::GsiTable;
use crate::kvm::memory::GuestMemory;
use crate::kvm::vcpu::Buses;

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("two devices want the same addresses: {0}")]
    Bus(#[from] BusError),
    #[error(transparent)]
    Pci(#[from] PciError),
}

/// Port and memory bus of a machine. Fixed once the machine is built, so looking up takes no lock.
pub struct MachineBuses {
    ports: Bus,
    memory: Bus,
}

impl Buses for MachineBuses {
    fn port_in(&self, port: u16, data: &mut [u8]) {
        self.ports.read(u64::from(port), data);
    }

    fn port_out(&self, port: u16, data: &[u8]) {
        self.ports.write(u64::from(port), data);
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        self.memory.read(address, data);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        self.memory.write(address, data);
    }
}

/// What the control side needs of the devices.
pub struct Devices {
    power: Arc<Power>,
    event_line: Arc<dyn InterruptLine>,
}

impl Devices {
    /// Makes every device of `config` and puts it on its bus.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn new(
        _config: &VmConfig,
        _files: &Files,
        _memory: &GuestMemory,
        vm: &Arc<VmFd>,
        window: Option<PciWindow64>,
        control: &Arc<Control>,
    ) -> Result<(Arc<Self>, MachineBuses), DeviceError> {
        let gsis = GsiTable::new(Arc::clone(vm));
        let mut ports = Bus::new();
        let mut memory = Bus::new();
        let power = Arc::new(Power {
            pending: AtomicU8::new(0),
            off: Box::new(end_with(control, ExitReason::PowerOff)),
            reset: {
                let control = Arc::clone(control);
                Box::new(move || control.reset())
            },
        });
        ports.insert(u64::from(layout::ACPI_SLEEP_PORT), 16, power.clone())?;
        let keyboard = Arc::new(Keyboard {
            control: Arc::clone(control),
        });
        ports.insert(u64::from(layout::I8042_PORT), 5, keyboard)?;
        ports.insert(
            u64::from(layout::SERIAL_PORT),
            8,
            Arc::new(Serial {
                line: gsis.line(layout::SERIAL_GSI),
                ier: AtomicU8::new(0),
                pending: AtomicU8::new(0),
                lcr: AtomicU8::new(0),
                mcr: AtomicU8::new(0),
            }),
        )?;
        let windows = PciWindows {
            io: u64::from(layout::PCI_IO_WINDOW.start)..u64::from(layout::PCI_IO_WINDOW.end),
            mmio32: layout::PCI_WINDOW_32,
            mmio64: window.map_or(0..0, |w| w.start..w.end),
        };
        let pci = PciRoot::new(windows.clone());
        pci.add(Arc::new(HostBridge))?;
        ports.insert(CONFIG_PORT, CONFIG_PORT_COUNT, pci.config_ports())?;
        ports.insert(
            windows.io.start,
            windows.io.end.saturating_sub(windows.io.start),
            pci.window(Window::Io),
        )?;
        memory.insert(layout::ECAM_START, layout::ECAM_SIZE, pci.ecam())?;
        for (range, window) in [
            (windows.mmio32, Window::Mmio32),
            (windows.mmio64, Window::Mmio64),
        ] {
            if !range.is_empty() {
                memory.insert(
                    range.start,
                    range.end.saturating_sub(range.start),
                    pci.window(window),
                )?;
            }
        }
        let devices = Arc::new(Self {
            power,
            event_line: gsis.line(layout::ACPI_EVENT_GSI),
        });
        Ok((devices, MachineBuses { ports, memory }))
    }

    pub fn press_power_button(&self) {
        self.power
            .pending
            .fetch_or(EVENT_POWER_BUTTON, Ordering::AcqRel);
        if let Err(error) = self.event_line.trigger() {
            tracing::error!("the power button's interrupt was not delivered: {error}");
        }
    }

    /// Lets the workers of the devices work.
    ///
    /// # Errors
    /// A worker could not be started.
    pub fn resume(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Stops the workers of the devices.
    pub fn pause(&self) {}

    /// Brings all devices to their state after power-on, workers stopped.
    ///
    /// # Errors
    /// A device refused.
    pub fn reset(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

struct Power {
    pending: AtomicU8,
    off: Box<dyn Fn() + Send + Sync>,
    reset: Box<dyn Fn() + Send + Sync>,
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == 8
            && let Some(byte) = data.first_mut()
        {
            *byte = self.pending.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [value, ..]) if *value == 0x20 | SLEEP_TYPE_OFF << 2 => (self.off)(),
            (4, [value, ..]) if *value == layout::ACPI_RESET_VALUE => (self.reset)(),
            _ => {}
        }
    }
}

struct Keyboard {
    control: Arc<Control>,
}

impl BusDevice for Keyboard {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 4 && data == [0xFE] {
            self.control.reset();
        }
    }
}

struct Serial {
    line: Arc<dyn InterruptLine>,
    ier: AtomicU8,
    lcr: AtomicU8,
    mcr: AtomicU8,
    pending: AtomicU8,
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(byte) = data.first_mut() else { return };
        *byte = match offset {
            1 => self.ier.load(Ordering::Relaxed),
            2 => {
                if self.pending.swap(0, Ordering::Relaxed) != 0 {
                    0xC2
                } else {
                    0xC1
                }
            }
            3 => self.lcr.load(Ordering::Relaxed),
            4 => self.mcr.load(Ordering::Relaxed),
            5 => 0x60,
            6 => {
                if self.mcr.load(Ordering::Relaxed) & 0x10 != 0 {
                    0x90
                } else {
                    0xB0
                }
            }
            _ => 0,
        };
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [byte, ..] = data else { return };
        let dlab = self.lcr.load(Ordering::Relaxed) & 0x80 != 0;
        match offset {
            0 if !dlab => {
                let _ = std::io::stdout().write_all(&[*byte]);
                let _ = std::io::stdout().flush();
                if self.ier.load(Ordering::Relaxed) & 2 != 0 {
                    self.pending.store(1, Ordering::Relaxed);
                    let _ = self.line.trigger();
                }
            }
            1 if !dlab => {
                self.ier.store(*byte & 0xF, Ordering::Relaxed);
                if *byte & 2 != 0 {
                    self.pending.store(1, Ordering::Relaxed);
                    let _ = self.line.trigger();
                }
            }
            3 => self.lcr.store(*byte, Ordering::Relaxed),
            4 => self.mcr.store(*byte, Ordering::Relaxed),
            _ => {}
        }
    }
}
