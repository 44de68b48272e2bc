//! MSI-X: a completed request raises the vector that the table names.

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

use crate::memory::Payload;
use crate::pci::{Pci, explain, open};
use crate::{Failure, interrupt};

/// Ten requests, each of which interrupts.
pub fn check() -> Result<(), Failure> {
    let transport = open(DeviceType::EntropySource, 0, true)?;
    let mut device = VirtIORng::<Payload, Pci>::new(transport).map_err(explain)?;
    device.enable_interrupts();
    for round in 0..10 {
        let before = interrupt::count();
        device.request_entropy(&mut [0; 16]).map_err(explain)?;
        if !interrupt::arrived(before) {
            return Err(alloc::format!("no interrupt for request {round}"));
        }
    }
    Ok(())
}
