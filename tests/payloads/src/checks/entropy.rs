//! virtio-rng.

use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

use crate::Failure;
use crate::memory::Payload;
use crate::pci::{Pci, explain, open};

/// Two requests are served and differ.
pub fn check() -> Result<(), Failure> {
    let transport = open(DeviceType::EntropySource, 0, false)?;
    let mut device = VirtIORng::<Payload, Pci>::new(transport).map_err(explain)?;
    let (mut first, mut second) = ([0; 64], [0; 64]);
    for buffer in [&mut first, &mut second] {
        let count = device.request_entropy(buffer).map_err(explain)?;
        if count == 0 || count > buffer.len() {
            return Err(alloc::format!("{count} bytes of entropy"));
        }
    }
    if first == second || first == [0; 64] {
        Err("not random".into())
    } else {
        Ok(())
    }
}
