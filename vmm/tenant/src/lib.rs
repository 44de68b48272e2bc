//! fief: tenants on one machine, from one command line. `docs/architecture.md` is the map.
//!
//! [`store`] keeps tenants in the file system and cleans up after the killed; [`shim`] is the process that a running
//! tenant has; [`backend`] runs it; [`network`] gives it one; [`cli`] is what people meet; [`carry`] takes a command line into the emulated host.

pub mod agent;
pub mod backend;
mod carry;
pub mod cgroup;
pub mod cli;
mod devices;
mod failure;
pub mod network;
mod process;
mod progress;
mod provide;
pub mod shim;
pub mod spec;
pub mod store;
pub mod table;
mod terminal;
