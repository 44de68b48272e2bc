//! A page that nothing but its process should write to.

use std::io::Read;

use crate::memory::Mapping;
use crate::{Result, failed};

const BYTE: u8 = 0x5a;

/// Prints where the page is; when the input ends, prints how many of its bytes are others.
pub fn run() -> Result<()> {
    let page = Mapping::page(BYTE)?;
    println!("{:#x}", page.physical()?);
    let mut rest = Vec::new();
    let read = std::io::stdin().read_to_end(&mut rest);
    read.map_err(failed("cannot read the input"))?;
    let changed = page.bytes().iter().filter(|byte| **byte != BYTE).count();
    println!("{changed} changed");
    Ok(())
}
