//! Devices that come to the running machine and go from it, beside one that was there from the start.

use super::function::{Function, IDENTITY, register};
use super::must;
use crate::Failure;
use crate::checks::hot_plug;
use crate::console::print;

/// Uses what comes and lets go of what is to go, until the power button is pressed.
pub fn check_plugged() -> Result<(), Failure> {
    hot_plug::serve(arrived, let_go)
}

fn arrived(slot: u8, came: usize) -> Result<(), Failure> {
    must(
        hot_plug::identity(slot) == IDENTITY,
        format_args!("slot {slot} has {:#x}", hot_plug::identity(slot)),
    )?;
    super::check()?;
    super::check_msix()?;
    super::check_msi()?;
    super::check_intx()?;
    Function::find()?.set(register::SCRATCH, came as u32);
    // Only now will the test ask for it.
    print(format_args!("PLUGGED {came}\n"));
    Ok(())
}

fn let_go(slot: u8, left: usize) -> Result<(), Failure> {
    hot_plug::eject(slot)?;
    let first = Function::find()?;
    must(
        first.get(register::ID) == register::WHO,
        "the device that stays does not answer",
    )?;
    // Only now will the test bring the next one.
    print(format_args!("GONE {left}\n"));
    Ok(())
}
