//! The device that is measured, where the monitor has it: on the PCI bus, or, if the command line names virtio-mmio devices as
//! Firecracker's does (Documentation/admin-guide/kernel-parameters.txt, `virtio_mmio.device`), in memory.

use core::ptr::NonNull;

use virtio_drivers::transport::mmio::{MmioError, MmioTransport};
use virtio_drivers::transport::{DeviceType, SomeTransport, Transport};

use crate::memory::registers;
use crate::{Failure, pci};

pub type Device = SomeTransport<'static>;

/// The first device of a type. It asks for no interrupts.
///
/// # Errors
/// There is none, or what the command line names is no device.
pub fn open(line: &str, wanted: DeviceType) -> Result<Device, Failure> {
    let mut described = line
        .split(' ')
        .filter_map(|word| word.strip_prefix("virtio_mmio.device="))
        .peekable();
    if described.peek().is_none() {
        return Ok(pci::open(wanted, 0, false)?.into_polled().into());
    }
    for words in described {
        let (address, size) =
            place(words).ok_or_else(|| alloc::format!("'{words}' is no place of a device"))?;
        let header = NonNull::new(registers(address)).ok_or("a device at address 0")?;
        // SAFETY: the monitor says that registers are there, and that many.
        match unsafe { MmioTransport::new(header.cast(), size) } {
            Ok(device) if device.device_type() == wanted => return Ok(device.into()),
            // Another one, or nobody's place.
            Ok(_) | Err(MmioError::InvalidDeviceID(_)) => {}
            Err(error) => return Err(alloc::format!("{words}: {error}")),
        }
    }
    Err(alloc::format!("no device of type {wanted:?}"))
}

/// Address and bytes of `SIZE@ADDRESS:INTERRUPT`.
fn place(words: &str) -> Option<(u64, usize)> {
    let (size, rest) = words.split_once('@')?;
    let (digits, unit) = match size.as_bytes().last()? {
        b'K' | b'k' => (&size[..size.len() - 1], 1024),
        _ => (size, 1),
    };
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16).ok(),
        None => text.parse().ok(),
    };
    let size = number(digits)?.checked_mul(unit)?;
    let address = rest.split(':').next()?;
    Some((number(address)?, usize::try_from(size).ok()?))
}
