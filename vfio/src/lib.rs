//! Passthrough: PCI functions that live elsewhere, in the host's hardware or in another process, given to a guest.
//!
//! [`RemoteFunction`] is what such a function looks like, whoever provides it. [`Passthrough`] puts one on a guest's PCI
//! bus: configuration space, BARs and interrupts as the guest sees them are written once, over that trait. What it needs of
//! the hypervisor it gets through traits too, so there is no KVM in this crate.
//!
//! What a guest writes is hostile, and so is what a device process answers: nothing here panics, hangs or grows on it.
#![deny(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

#[cfg(test)]
mod fake;
pub mod kernel;
pub mod mapping;
pub mod passthrough;
pub mod region;
pub mod remote;
pub mod user;
pub mod watch;

pub use mapping::{Mapping, MemorySlots};
pub use passthrough::{Passthrough, PassthroughError, Platform};
pub use region::{Region, RegionInfo};
pub use remote::{DmaMemory, DmaSpace, Interrupt, RemoteFunction};
pub use user::UserFunction;
