//! DMA of QEMU's teaching device (its docs/specs/edu.rst): one page of buffer, and registers that say from where to where.

use std::time::{Duration, Instant};

use crate::function::Function;
use crate::memory::{Mapping, PAGE};
use crate::{Failure, Result};

/// Registers: source, destination, number of bytes, command.
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;
/// Bytes at once: QEMU 7.2 takes a transfer that fills the whole buffer for one that goes beyond it, and ends.
const SIZE: usize = PAGE / 2;
/// Bits of the command: start (set until it has ended), and from the device to memory.
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// Where the device's own buffer is in what it takes for addresses.
const BUFFER: u64 = 0x4_0000;
/// Far longer than the tenth of a second that the device takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Half a page through the device into another page.
pub fn copy(function: &Function) -> Result<()> {
    let registers = function.bar(0)?;
    let (from, to) = (Mapping::page(0xc3)?, Mapping::page(0)?);
    transfer(&registers, from.physical()?, BUFFER, 0)?;
    transfer(&registers, BUFFER, to.physical()?, TO_MEMORY)?;
    let (mut to, expected) = (to.bytes(), from.bytes());
    // What was not copied stayed as it was.
    let rest = to.split_off(SIZE);
    if expected.get(..SIZE) != Some(&to) || rest.iter().any(|byte| *byte != 0) {
        return Err(Failure::Wrong(
            "the second page has not what the first one has".to_owned(),
        ));
    }
    println!("copied");
    Ok(())
}

/// Half a page from the device to a physical address, whatever is there.
pub fn store(function: &Function, physical: u64) -> Result<()> {
    let registers = function.bar(0)?;
    let from = Mapping::page(0xa5)?;
    transfer(&registers, from.physical()?, BUFFER, 0)?;
    transfer(&registers, BUFFER, physical, TO_MEMORY)?;
    println!("stored");
    Ok(())
}

fn transfer(registers: &Mapping, source: u64, destination: u64, direction: u64) -> Result<()> {
    registers.write64(SOURCE, source)?;
    registers.write64(DESTINATION, destination)?;
    registers.write64(COUNT, SIZE as u64)?;
    registers.write64(COMMAND, START | direction)?;
    let deadline = Instant::now() + PATIENCE;
    while registers.read64(COMMAND)? & START != 0 {
        if Instant::now() >= deadline {
            return Err(Failure::Wrong("the DMA does not end".to_owned()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
