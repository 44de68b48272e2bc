//! Message signalled interrupts without a driver: the message is one that the kernel does not expect, and so tells of.

use crate::function::Function;
use crate::{Failure, Result};

/// First capability, by its offset in config space (PCI 3.0 §6.7).
const CAPABILITIES: u64 = 0x34;
/// The MSI capability, its enable bit, and the bit that says that addresses have 64 bits (PCI 3.0 §6.8.1).
const MSI: u8 = 5;
const ENABLE: u16 = 1;
const WIDE: u16 = 1 << 7;
/// Address of messages to CPU 0 (Intel SDM 3A §11.11.1).
const TO_CPU_0: u32 = 0xfee0_0000;
/// More capabilities than fit.
const MOST: usize = 48;

/// Makes the function's message an interrupt of CPU 0 with `vector`, and switches messages on.
pub fn enable(function: &Function, vector: u8) -> Result<()> {
    let at = find(function)?;
    let control = function.config16(at + 2)?;
    let data = if control & WIDE == 0 { at + 8 } else { at + 12 };
    function.set_config(at + 4, &TO_CPU_0.to_le_bytes())?;
    if control & WIDE != 0 {
        function.set_config(at + 8, &0_u32.to_le_bytes())?;
    }
    function.set_config(data, &u16::from(vector).to_le_bytes())?;
    function.set_config(at + 2, &(control | ENABLE).to_le_bytes())
}

fn find(function: &Function) -> Result<u64> {
    let mut at = u64::from(function.config8(CAPABILITIES)?);
    for _ in 0..MOST {
        if at == 0 {
            break;
        }
        if function.config8(at)? == MSI {
            return Ok(at);
        }
        at = u64::from(function.config8(at + 1)?);
    }
    Err(Failure::Wrong("the function has no MSI".to_owned()))
}
