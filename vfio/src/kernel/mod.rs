//! Functions of the host's hardware, through the kernel's VFIO (Documentation/driver-api/vfio.rst).

mod container;
mod error;
mod function;
mod ioctl;
mod reset;
mod sysfs;

pub use container::{Container, Group, Host};
pub use error::{KernelError, Member};
pub use function::KernelFunction;
