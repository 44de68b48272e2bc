//! The registers of BAR 0, 32 bits each; docs/testing.md has the table. The payload has the same numbers.

/// Reads as [`WHO`].
pub const ID: u64 = 0x00;
/// Keeps what is written.
pub const SCRATCH: u64 = 0x04;
/// Resets since the process started.
pub const RESETS: u64 = 0x08;
/// Bits of the last DMA: done, failed.
pub const STATUS: u64 = 0x0C;
/// Guest-physical address of a DMA, two halves.
pub const ADDRESS_LOW: u64 = 0x10;
pub const ADDRESS_HIGH: u64 = 0x14;
/// Where in BAR 2, and how many bytes.
pub const OFFSET: u64 = 0x18;
pub const LENGTH: u64 = 0x1C;
/// Starts a DMA: [`FROM_GUEST`] or [`TO_GUEST`]. It is over when the write is.
pub const START: u64 = 0x20;
/// Raises the vector that is written.
pub const RAISE: u64 = 0x24;
/// 1 asserts the wired line, 0 lets go of it.
pub const LINE: u64 = 0x28;
/// Vectors that are enabled: of MSI in the first byte, of MSI-X in the second.
pub const ENABLED: u64 = 0x2C;
/// What goes wrong: see [`crate::device::Trouble`].
pub const TROUBLE: u64 = 0x30;
/// Two counters of each region from BAR 0 on: messages that read it, messages that wrote it.
pub const COUNTERS: u64 = 0x40;
pub const COUNTERS_SIZE: u64 = 8;
pub const COUNTERS_END: u64 = COUNTERS + 9 * COUNTERS_SIZE;

/// "fief".
pub const WHO: u32 = 0x6665_6966;

pub const DONE: u32 = 1;
pub const FAILED: u32 = 2;

pub const FROM_GUEST: u32 = 1;
pub const TO_GUEST: u32 = 2;
