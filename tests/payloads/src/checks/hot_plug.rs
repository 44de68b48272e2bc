//! Devices that come and go while the guest runs: the registers that the monitor's AML drives Linux with. The content of
//! disks is that of the disk that the check `block` knows.

use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Cam, ConfigurationAccess, DeviceFunction, MmioCam};

use crate::console::print;
use crate::memory::Payload;
use crate::pci::{ECAM, explain, open, open_on};
use crate::{Failure, port};

/// Pending events, cleared by reading, and the bits in it; see docs/devices.md.
const EVENT: u16 = 0x603;
const POWER_BUTTON: u8 = 1 << 0;
const HOT_PLUG: u8 = 1 << 1;
/// The hot-plug controller.
const UP: u16 = 0x610;
const DOWN: u16 = 0x614;
const EJECT: u16 = 0x618;
/// virtio-blk.
const DISK: u32 = 0x1042_1AF4;
/// The bus that they come to.
const BUS: u8 = 1;
/// Rounds with a driver. The heap only grows; later disks are switched on and routed, and driven by nobody.
const DRIVEN: usize = 50;

/// Serves disks that come and lets go of those that are to go, until the power button is pressed.
pub fn check() -> Result<(), Failure> {
    serve(arrived, let_go)
}

/// Calls `arrived` for each device that comes and `let_go` for each that is to go, with its slot and with how many there were
/// before, until the power button is pressed.
pub fn serve(
    arrived: impl Fn(u8, usize) -> Result<(), Failure>,
    let_go: impl Fn(u8, usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut came, mut left) = (0, 0);
    loop {
        let event = port::read8(EVENT);
        if event & HOT_PLUG != 0 {
            let up = port::read32(UP);
            if up != 0 {
                arrived(slot(up)?, came)?;
                came += 1;
            }
            let down = port::read32(DOWN);
            if down != 0 {
                let_go(slot(down)?, left)?;
                left += 1;
            }
        }
        if event & POWER_BUTTON != 0 {
            print(format_args!("CAME {came} LEFT {left}\n"));
            return Ok(());
        }
        core::hint::spin_loop();
    }
}

/// The one slot in a bitmap.
fn slot(bits: u32) -> Result<u8, Failure> {
    if bits.count_ones() != 1 {
        return Err(alloc::format!("{bits:#x} is not one slot"));
    }
    Ok(bits.trailing_zeros() as u8)
}

/// Ejects what is in `slot` of bus 1; nothing is there afterwards.
pub fn eject(slot: u8) -> Result<(), Failure> {
    port::write32(EJECT, 1 << slot);
    match identity(slot) {
        u32::MAX => Ok(()),
        still => Err(alloc::format!("slot {slot} still has {still:#x}")),
    }
}

/// Device and vendor of what is in `slot` of bus 1.
pub fn identity(slot: u8) -> u32 {
    // SAFETY: only reads, from the configuration space of bus 1.
    let memory = unsafe { MmioCam::new(ECAM as *mut u8, Cam::Ecam) };
    let function = DeviceFunction {
        bus: BUS,
        device: slot,
        function: 0,
    };
    memory.read_word(function, 0)
}

fn arrived(slot: u8, came: usize) -> Result<(), Failure> {
    if identity(slot) != DISK {
        return Err(alloc::format!("slot {slot} has {:#x}", identity(slot)));
    }
    // Nobody was asked to let go: nothing happens, nor by accesses that are none.
    port::write32(EJECT, u32::MAX);
    port::write32(UP, u32::MAX);
    port::write8(EJECT, u8::MAX);
    if port::read8(UP) != 0 || port::read32(EJECT) != 0 || identity(slot) != DISK {
        return Err("a disk left that was not asked to".into());
    }
    let transport = open_on(BUS, DeviceType::Block, 0, true)?;
    if came < DRIVEN {
        let mut disk = VirtIOBlk::<Payload, _>::new(transport).map_err(explain)?;
        let mut sector = [0; SECTOR_SIZE];
        disk.read_blocks(5, &mut sector).map_err(explain)?;
        if sector[..8] != 5_u64.to_le_bytes() {
            return Err(alloc::format!("sector 5 starts with {:?}", &sector[..8]));
        }
        sector.fill(0xA5);
        disk.write_blocks(2047, &sector).map_err(explain)?;
        // It is not reset: it goes as it is.
        core::mem::forget(disk);
    }
    // Only now will the test ask for the disk.
    print(format_args!("PLUGGED {came}\n"));
    Ok(())
}

fn let_go(slot: u8, left: usize) -> Result<(), Failure> {
    eject(slot)?;
    if open_on(BUS, DeviceType::Block, 0, false).is_ok()
        || open(DeviceType::Block, 1, false).is_err()
    {
        return Err("another disk than the one that was to go has left".into());
    }
    // Only now will the test bring the next one.
    print(format_args!("GONE {left}\n"));
    Ok(())
}
