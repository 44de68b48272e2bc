//! What the payload measures, a file for each device. The host knows the time, so it is told when a measurement begins
//! and when it ends; the clock here is the processor's time-stamp counter, whose rate only the host can find out.

pub mod block;
mod device;
pub mod net;
pub mod vsock;

use crate::Failure;
use crate::console::print;

/// The time-stamp counter.
fn ticks() -> u64 {
    // SAFETY: reads a register, which CR4.TSD permits at CPL3 since reset.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Tells the host about `work`, which does `operations` of `bytes` in all.
fn measure(
    name: &str,
    operations: usize,
    bytes: usize,
    work: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    print(format_args!("BEGIN {name}\n"));
    let start = ticks();
    work()?;
    let took = ticks() - start;
    print(format_args!(
        "DONE {name} operations {operations} bytes {bytes} ticks {took}\n"
    ));
    Ok(())
}
