//! virtio-blk: device 0 is a writable disk of 1 MiB whose sector N starts with N as 8 bytes, device 1 is read-only.

use alloc::vec;

use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;

use crate::Failure;
use crate::memory::Payload;
use crate::pci::{Pci, explain, open};

/// The sectors from here to the end are written, full of this byte.
const REWRITTEN: usize = 2045;
const FILL: u8 = 0xA5;

fn device(index: usize) -> Result<VirtIOBlk<Payload, Pci>, Failure> {
    VirtIOBlk::new(open(DeviceType::Block, index, false)?).map_err(explain)
}

/// Size, identity, content, writes read back, flush, and an error beyond the end.
pub fn check() -> Result<(), Failure> {
    let mut disk = device(0)?;
    if disk.capacity() != 2048 || disk.readonly() {
        return Err(alloc::format!(
            "{} sectors, read-only {}",
            disk.capacity(),
            disk.readonly()
        ));
    }
    let mut id = [0; 20];
    let length = disk.device_id(&mut id).map_err(explain)?;
    if !id[..length.min(20)].starts_with(b"disk") {
        return Err(alloc::format!("its id is {:?}", &id));
    }
    let mut sectors = vec![0; 64 * SECTOR_SIZE];
    for first in (0..2048).step_by(64) {
        disk.read_blocks(first, &mut sectors).map_err(explain)?;
        for (index, sector) in sectors.chunks(SECTOR_SIZE).enumerate() {
            let expected = ((first + index) as u64).to_le_bytes();
            // After a restart in place the check finds what it wrote before.
            let rewritten = first + index >= REWRITTEN && sector[..8] == [FILL; 8];
            if sector[..8] != expected && !rewritten {
                return Err(alloc::format!(
                    "sector {} starts with {:?}",
                    first + index,
                    &sector[..8]
                ));
            }
        }
    }
    let written = [FILL; SECTOR_SIZE * 3];
    disk.write_blocks(REWRITTEN, &written).map_err(explain)?;
    disk.flush().map_err(explain)?;
    let mut back = [0; SECTOR_SIZE * 3];
    disk.read_blocks(REWRITTEN, &mut back).map_err(explain)?;
    if back != written {
        return Err("what was written is not what is read".into());
    }
    if disk.read_blocks(2047, &mut back).is_ok() || disk.write_blocks(2047, &back).is_ok() {
        return Err("a request beyond the end succeeded".into());
    }
    // The device goes on serving after errors.
    disk.read_blocks(0, &mut back).map_err(explain)
}

/// The second disk says that it is read-only, serves reads and refuses writes.
pub fn check_read_only() -> Result<(), Failure> {
    let mut disk = device(1)?;
    if !disk.readonly() {
        return Err("the device does not say that it is read-only".into());
    }
    let mut sector = [0; SECTOR_SIZE];
    disk.read_blocks(1, &mut sector).map_err(explain)?;
    if disk.write_blocks(1, &sector).is_ok() {
        return Err("a write succeeded".into());
    }
    disk.read_blocks(1, &mut sector).map_err(explain)
}
