//! The one interrupt that a test listens for, vector 0x40.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

/// The vector that `start` has a handler for.
pub const VECTOR: u32 = 0x40;

unsafe extern "C" {
    /// Counted up by the handler in `start`.
    static interrupt_count: AtomicU32;
}

/// Interrupts since the start.
pub fn count() -> u32 {
    // SAFETY: the handler changes it with one locked instruction; an atomic reads it.
    unsafe { interrupt_count.load(Ordering::SeqCst) }
}

/// Waits until more than `before` interrupts came; false after some milliseconds without.
pub fn arrived(before: u32) -> bool {
    (0..1_000_000_u64).any(|_| {
        core::hint::spin_loop();
        count() > before
    })
}

/// Makes the CPU shut down: an exception for which no handler, nor one for its failure, exists.
pub fn triple_fault() {
    // SAFETY: ends the machine, which is its purpose.
    unsafe { asm!("ud2") };
}
