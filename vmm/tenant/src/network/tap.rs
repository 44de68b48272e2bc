//! The tap device that a tenant's monitor opens.

use std::fs::OpenOptions;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

use nix::libc::{self, c_int, ifreq};
use nix::unistd::Uid;

/// Every tenant's has the same name: each is in a namespace of its own.
pub const TAP: &str = "tap0";

// Linux, include/uapi/linux/if_tun.h.
const TYPE: u8 = b'T';
nix::ioctl_write_ptr_bad!(
    set_interface,
    nix::request_code_write!(TYPE, 202, size_of::<c_int>()),
    ifreq
);
nix::ioctl_write_int_bad!(
    set_persistent,
    nix::request_code_write!(TYPE, 203, size_of::<c_int>())
);
nix::ioctl_write_int_bad!(
    set_owner,
    nix::request_code_write!(TYPE, 204, size_of::<c_int>())
);

/// Makes [`TAP`] in the namespace of this thread, for processes of `owner` to open.
///
/// # Errors
/// No permission, or this kernel has no tap devices.
pub fn make(owner: Uid) -> io::Result<()> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: an ifreq is integers and bytes, for which zeroes are values.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or_default();
    let owner = c_int::try_from(owner.as_raw()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, `request` lives through the calls, the other arguments are numbers.
    unsafe {
        set_interface(device.as_raw_fd(), &raw const request)?;
        set_owner(device.as_raw_fd(), owner)?;
        set_persistent(device.as_raw_fd(), 1)?;
    }
    Ok(())
}
