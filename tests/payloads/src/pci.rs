//! The PCI bus through its memory-mapped configuration space, and a transport that asks for interrupts.

use core::fmt::Debug;

use virtio_drivers::transport::pci::bus::{
    Cam, ConfigurationAccess, DeviceFunction, MmioCam, PciRoot,
};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{PhysAddr, Result};

use crate::memory::{Payload, registers};
use crate::{Failure, interrupt};

/// Where the monitor puts the configuration space of bus 0; what the MCFG table tells Linux.
pub const ECAM: u64 = 0xEC00_0000;
/// Capability id of MSI-X (PCI 3.0 §6.8.2).
const MSIX: u8 = 0x11;
/// Capability id of vendor-specific, which virtio uses (virtio 1.3 §4.1.4).
const VENDOR: u8 = 0x09;
/// virtio's common configuration.
const COMMON: u8 = 1;
/// Offsets in the common configuration (virtio 1.3 §4.1.4.3).
const QUEUE_SELECT: usize = 22;
const QUEUE_MSIX_VECTOR: usize = 26;

/// The bus.
pub fn root() -> PciRoot<MmioCam<'static>> {
    // SAFETY: the monitor's configuration space is there; only buses 0 and 1 are accessed, and it is mapped one to one.
    PciRoot::new(unsafe { MmioCam::new(ECAM as *mut u8, Cam::Ecam) })
}

/// Addresses of the registers by which interrupts are set up.
struct Vectors {
    /// Common configuration.
    common: *mut u8,
}

/// virtio over PCI, with MSI-X vector 0 for every queue if `interrupts` were asked for.
pub struct Pci {
    inner: PciTransport,
    vectors: Option<Vectors>,
}

impl Pci {
    /// The same without interrupts.
    pub fn into_polled(self) -> PciTransport {
        self.inner
    }
}

/// The virtio devices of a type, in the order of the bus.
///
/// # Errors
/// There are fewer than `index + 1`, or its capabilities make no sense.
pub fn open(
    wanted: DeviceType,
    index: usize,
    interrupts: bool,
) -> core::result::Result<Pci, Failure> {
    open_on(0, wanted, index, interrupts)
}

/// The same of another bus.
///
/// # Errors
/// See [`open`].
pub fn open_on(
    bus: u8,
    wanted: DeviceType,
    index: usize,
    interrupts: bool,
) -> core::result::Result<Pci, Failure> {
    let mut root = root();
    let mut matching = root
        .enumerate_bus(bus)
        .filter(|(_, info)| virtio_device_type(info) == Some(wanted));
    let (function, _) = matching
        .nth(index)
        .ok_or_else(|| alloc::format!("no device {index} of type {wanted:?}"))?;
    drop(matching);
    use virtio_drivers::transport::pci::bus::Command;
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    let vectors = if interrupts {
        Some(set_up_vector(&mut root, function)?)
    } else {
        None
    };
    let inner = PciTransport::new::<Payload, _>(&mut root, function)
        .map_err(|error| alloc::format!("{error}"))?;
    Ok(Pci { inner, vectors })
}

fn bar(
    root: &mut PciRoot<MmioCam<'static>>,
    function: DeviceFunction,
    index: u8,
) -> core::result::Result<u64, Failure> {
    let info = root
        .bar_info(function, index)
        .map_err(|error| alloc::format!("BAR {index}: {error}"))?;
    let address = info
        .and_then(|info| info.memory_address_size())
        .map(|(address, _)| address);
    address.ok_or_else(|| alloc::format!("BAR {index} is not in memory"))
}

/// Routes vector 0 of the function to our handler and switches MSI-X on.
fn set_up_vector(
    root: &mut PciRoot<MmioCam<'static>>,
    function: DeviceFunction,
) -> core::result::Result<Vectors, Failure> {
    // SAFETY: used for reading capabilities and for the one write to MSI-X control below, on one processor.
    let mut access = unsafe { MmioCam::new(ECAM as *mut u8, Cam::Ecam) };
    let (mut msix, mut common) = (None, None);
    for capability in root.capabilities(function) {
        match capability.id {
            MSIX => msix = Some(capability.offset),
            VENDOR if (capability.private_header >> 8) as u8 == COMMON && common.is_none() => {
                common = Some(capability.offset);
            }
            _ => {}
        }
    }
    let msix = msix.ok_or("no MSI-X capability")?;
    let common = common.ok_or("no common configuration")?;
    let table = access.read_word(function, msix + 4);
    let entry =
        registers(bar(root, function, (table & 7) as u8)? + u64::from(table & !7)).cast::<u32>();
    let common_bar = access.read_word(function, common + 4) as u8;
    let common = registers(
        bar(root, function, common_bar)? + u64::from(access.read_word(function, common + 8)),
    );
    // SAFETY: the table's first entry: address, upper address, data, control (PCI 3.0 §6.8.2.6).
    unsafe {
        entry.write_volatile(0xFEE0_0000);
        entry.add(1).write_volatile(0);
        entry.add(2).write_volatile(interrupt::VECTOR);
        entry.add(3).write_volatile(0);
    }
    let control = access.read_word(function, msix);
    // Bit 15 of the control word: enable.
    access.write_word(function, msix, control | 1 << 31);
    Ok(Vectors { common })
}

impl Transport for Pci {
    fn device_type(&self) -> DeviceType {
        self.inner.device_type()
    }

    fn read_device_features(&mut self) -> u64 {
        self.inner.read_device_features()
    }

    fn write_driver_features(&mut self, features: u64) {
        self.inner.write_driver_features(features);
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.inner.max_queue_size(queue)
    }

    fn notify(&mut self, queue: u16) {
        self.inner.notify(queue);
    }

    fn get_status(&self) -> DeviceStatus {
        self.inner.get_status()
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.inner.set_status(status);
    }

    fn set_guest_page_size(&mut self, size: u32) {
        self.inner.set_guest_page_size(size);
    }

    fn requires_legacy_layout(&self) -> bool {
        self.inner.requires_legacy_layout()
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver: PhysAddr,
        device: PhysAddr,
    ) {
        if let Some(vectors) = &self.vectors {
            // Before the queue is enabled: afterwards its vector is frozen.
            // SAFETY: registers of the common configuration, which `set_up_vector` found.
            unsafe {
                vectors
                    .common
                    .add(QUEUE_SELECT)
                    .cast::<u16>()
                    .write_volatile(queue);
                vectors
                    .common
                    .add(QUEUE_MSIX_VECTOR)
                    .cast::<u16>()
                    .write_volatile(0);
            }
        }
        self.inner
            .queue_set(queue, size, descriptors, driver, device);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.inner.queue_unset(queue);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.inner.queue_used(queue)
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        self.inner.ack_interrupt()
    }

    fn read_config_generation(&self) -> u32 {
        self.inner.read_config_generation()
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T> {
        self.inner.read_config_space(offset)
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> Result<()> {
        self.inner.write_config_space(offset, value)
    }
}

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// For error messages of the drivers.
pub fn explain(error: impl Debug) -> Failure {
    alloc::format!("{error:?}")
}
