//! The fief monitor: one process, one virtual machine. It knows nothing of hosts or tenants.
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

pub mod boot;
pub mod cli;
pub mod config;
pub mod events;
pub mod kvm;
pub mod logger;
pub mod machine;
pub mod probe;
pub mod server;
