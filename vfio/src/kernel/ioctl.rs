//! The calls of VFIO that this crate makes (linux/vfio.h). Those of `vfio-ioctls` give no errors of resets and accesses, open
//! their own files, and leave out what addresses an IOMMU can translate and the hot reset.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IO(VFIO_TYPE, VFIO_BASE + n)`: no call says its argument's size.
const fn number(n: libc::Ioctl) -> libc::Ioctl {
    (b';' as libc::Ioctl) << 8 | (100 + n)
}

pub const GET_API_VERSION: libc::Ioctl = number(0);
pub const CHECK_EXTENSION: libc::Ioctl = number(1);
pub const SET_IOMMU: libc::Ioctl = number(2);
pub const GROUP_GET_STATUS: libc::Ioctl = number(3);
pub const GROUP_SET_CONTAINER: libc::Ioctl = number(4);
pub const GROUP_UNSET_CONTAINER: libc::Ioctl = number(5);
pub const GROUP_GET_DEVICE_FD: libc::Ioctl = number(6);
pub const DEVICE_GET_INFO: libc::Ioctl = number(7);
pub const DEVICE_GET_REGION_INFO: libc::Ioctl = number(8);
pub const DEVICE_GET_IRQ_INFO: libc::Ioctl = number(9);
pub const DEVICE_SET_IRQS: libc::Ioctl = number(10);
pub const DEVICE_RESET: libc::Ioctl = number(11);
pub const DEVICE_GET_PCI_HOT_RESET_INFO: libc::Ioctl = number(12);
pub const DEVICE_PCI_HOT_RESET: libc::Ioctl = number(13);
pub const IOMMU_GET_INFO: libc::Ioctl = number(12);
pub const IOMMU_MAP_DMA: libc::Ioctl = number(13);
pub const IOMMU_UNMAP_DMA: libc::Ioctl = number(14);

/// Makes a call whose argument is a number, or nothing.
///
/// # Errors
/// What the kernel said.
pub fn with_value(fd: impl AsFd, call: libc::Ioctl, value: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the calls that are made by this take no pointer.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), call, value) };
    checked(result)
}

/// Makes a call whose argument is a pointer to `argument`.
///
/// # Errors
/// What the kernel said.
///
/// # Safety
/// The call reads and writes at most `argument`, and leaves it valid; where that has a field with its size, as most have,
/// the field says no more than there is.
pub unsafe fn with<T: ?Sized>(
    fd: impl AsFd,
    call: libc::Ioctl,
    argument: &mut T,
) -> io::Result<i32> {
    let pointer: *mut libc::c_void = std::ptr::from_mut(argument).cast();
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), call, pointer) };
    checked(result)
}

fn checked(result: libc::c_int) -> io::Result<i32> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes of a structure, as its `argsz` says them.
pub fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// A structure of a size that only the kernel knows: `argsz` first, then what the call is about.
pub struct Sized32(Vec<u32>);

impl Sized32 {
    /// One that begins with `fields` after its size, and has room for `bytes` in all.
    pub fn new(fields: &[u32], bytes: usize) -> Self {
        let mut words = vec![0; bytes.div_ceil(4).max(fields.len() + 1)];
        let size = u32::try_from(words.len() * 4).unwrap_or(u32::MAX);
        for (place, value) in words.iter_mut().zip([size].iter().chain(fields)) {
            *place = *value;
        }
        Self(words)
    }

    /// The words, `argsz` among them.
    pub fn words(&self) -> &[u32] {
        &self.0
    }

    pub fn as_mut(&mut self) -> &mut [u32] {
        &mut self.0
    }

    /// The bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// The size that the kernel says it needs.
    pub fn needed(&self) -> usize {
        let needed = self.0.first().copied().unwrap_or(0);
        // Nothing that the kernel answers is that long.
        usize::try_from(needed).unwrap_or(0).min(1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_header() {
        // As `printf("%#x")` of the header's own macros gives them.
        assert_eq!(GET_API_VERSION, 0x3B64);
        assert_eq!(IOMMU_UNMAP_DMA, 0x3B72);
    }

    #[test]
    fn a_structure_says_its_size() {
        let structure = Sized32::new(&[7, 8], 20);
        assert_eq!(structure.words(), [20, 7, 8, 0, 0]);
        assert_eq!(Sized32::new(&[7, 8], 0).words(), [12, 7, 8]);
    }
}
