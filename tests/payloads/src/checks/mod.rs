//! What the payload checks, a file each.

pub mod balloon;
pub mod block;
pub mod entropy;
pub mod entry;
pub mod hot_plug;
pub mod interrupt;
pub mod net;
pub mod passthrough;
pub mod pci;
pub mod vsock;
