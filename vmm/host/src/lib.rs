//! Hosts: what this machine can do, and the emulated host that stands in where its KVM cannot run Linux guests.
//! Used by the command line, the tests and the benchmarks.

pub mod choice;
pub mod doctor;
pub mod emulated;
pub mod pci;
pub mod qemu;
mod remembered;

pub use choice::{Decision, HostChoice, HostKind, choose};
pub use emulated::{EmulatedError, EmulatedHost, Status};
