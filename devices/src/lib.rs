//! Device models of the fief monitor: buses, PCI, virtio and the few legacy devices that Linux needs.
//!
//! There is no KVM in this crate. What a device needs of the hypervisor (an interrupt, a doorbell) it gets through the
//! traits in [`irq`] and [`doorbell`]; the monitor implements them with irqfd and ioeventfd, the tests with fakes.
//!
//! Everything that a guest writes is hostile: nothing here panics, hangs or grows on it. Out-of-range accesses read as
//! all ones and ignore writes; malformed requests end with an error status, are counted, and the device goes on.
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

pub mod bus;
pub mod doorbell;
#[cfg(test)]
mod fakes;
pub mod irq;
pub mod legacy;
pub mod limiter;
pub mod pci;
pub mod ram;
mod timer;
pub mod virtio;
pub mod worker;

pub use ram::GuestRam;
