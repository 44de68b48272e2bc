//! Frames to the host, as many at a time as the queue holds.

use alloc::vec;

use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::DeviceType;

use super::device::{Device, open};
use super::measure;
use crate::Failure;
use crate::memory::Payload;
use crate::pci::explain;

const QUEUE: usize = 256;
const HEADER: usize = 12;
/// Fewer than 65,536: with EVENT_IDX the driver of `virtio-drivers` forgets a kick where its index wraps.
const FRAMES: usize = 60_000;
/// Ethertype for local experiments (IEEE 802), which nobody on the host listens to.
const EXPERIMENT: [u8; 2] = [0x88, 0xB5];

/// Sends small frames, and those of 1500-byte packets.
pub fn run(line: &str) -> Result<(), Failure> {
    for (name, length) in [("send-60", 60), ("send-1514", 1514)] {
        let transport = open(line, DeviceType::Network)?;
        let mut driver = VirtIONetRaw::<Payload, Device, QUEUE>::new(transport).map_err(explain)?;
        measure(name, FRAMES, FRAMES * length, || send(&mut driver, length))?;
    }
    Ok(())
}

fn send(driver: &mut VirtIONetRaw<Payload, Device, QUEUE>, length: usize) -> Result<(), Failure> {
    let mut message = vec![0; HEADER + length];
    message[HEADER..HEADER + 6].fill(0xFF);
    message[HEADER + 6] = 2;
    message[HEADER + 12..HEADER + 14].copy_from_slice(&EXPERIMENT);
    let (mut offered, mut done) = (0, 0);
    while done < FRAMES {
        while offered < FRAMES && offered - done < QUEUE {
            // SAFETY: `message` is only read, by anybody, until it was returned for the last time.
            unsafe { driver.transmit_begin(&message) }.map_err(explain)?;
            offered += 1;
        }
        while let Some(token) = driver.poll_transmit() {
            // SAFETY: each token is of the one buffer.
            unsafe { driver.transmit_complete(token, &message) }.map_err(explain)?;
            done += 1;
        }
        core::hint::spin_loop();
    }
    Ok(())
}
