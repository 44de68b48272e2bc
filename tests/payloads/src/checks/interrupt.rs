//! MSI-X: a completed request raises the vector that the table names.

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

use crate::memory::Payload;
use crate::pci::{Pci, explain, open};
use crate::{Failure, interrupt};

/// Interrupts that must arrive.
const WANTED: u32 = 10;
/// Requests made for them. Not each need interrupt: the driver polls as well, and a device leaves out an interrupt for
/// what the driver has taken already (virtio 1.3 §2.7.10).
const REQUESTS: u32 = 1000;

/// Makes requests until enough of them have interrupted.
pub fn check() -> Result<(), Failure> {
    let transport = open(DeviceType::EntropySource, 0, true)?;
    let mut device = VirtIORng::<Payload, Pci>::new(transport).map_err(explain)?;
    device.enable_interrupts();
    let mut came = 0;
    for _ in 0..REQUESTS {
        let before = interrupt::count();
        device.request_entropy(&mut [0; 16]).map_err(explain)?;
        came += u32::from(interrupt::arrived(before));
        if came == WANTED {
            return Ok(());
        }
    }
    Err(alloc::format!("{came} interrupts for {REQUESTS} requests"))
}
