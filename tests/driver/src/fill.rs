//! Memory behind a BAR: what is written is there.

use std::time::SystemTime;

use crate::memory::Mapping;
use crate::{Failure, Result};

/// Writes `count` words of eight bytes, evenly over the BAR up to its end, then reads all of them.
pub fn run(bar: &Mapping, count: usize) -> Result<()> {
    let words = bar.size() / 8;
    if count == 0 || count > words {
        return Err(Failure::Misuse(format!(
            "the BAR has {words} words, not {count}"
        )));
    }
    let offset = |n: usize| (words - 1 - n * (words / count)) * 8;
    // What an earlier run left there is not what this one expects.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = now.map_or(1, |since| u64::from(since.subsec_nanos()) | 1);
    let value = |n: usize| (n as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for n in 0..count {
        bar.write64(offset(n), value(n))?;
    }
    for n in 0..count {
        let read = bar.read64(offset(n))?;
        if read != value(n) {
            return Err(Failure::Wrong(format!(
                "at {:#x} there is {read:#x} instead of {:#x}",
                offset(n),
                value(n)
            )));
        }
    }
    println!("{count} words are there");
    Ok(())
}
