//! The interrupts that a test listens for, vectors 0x40 to 0x47.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

/// The first vector that `start` has a handler for; that of virtio's queues.
pub const VECTOR: u32 = 0x40;

/// How many there are, one after the other.
pub const VECTORS: usize = 8;

unsafe extern "C" {
    /// Counted up by the handlers in `start`.
    static interrupt_counts: [AtomicU32; VECTORS];
}

/// Interrupts of the first vector since the start.
pub fn count() -> u32 {
    counts()[0]
}

/// Interrupts of each vector since the start.
pub fn counts() -> [u32; VECTORS] {
    // SAFETY: the handlers change each with one locked instruction; atomics read them.
    let counts = unsafe { &interrupt_counts };
    core::array::from_fn(|index| counts[index].load(Ordering::SeqCst))
}

/// Waits until more than `before` interrupts of the first vector came; false after some milliseconds without.
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
