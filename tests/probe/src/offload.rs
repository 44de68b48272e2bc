//! Offloads of an interface (ethtool's old commands, which every kernel has).

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd;

use crate::addresses::index;
use crate::{Failure, Result, misuse};

/// linux/ethtool.h: name, get, set.
const FEATURES: [(&str, u32, u32); 3] = [
    ("tso", 0x1e, 0x1f),
    ("gso", 0x23, 0x24),
    ("gro", 0x2b, 0x2c),
];

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches TSO, GSO and GRO, and prints what they are now.
///
/// # Errors
/// GSO is not what was asked for: every interface can do that in software.
pub fn set(interface: &str, on: bool) -> Result<()> {
    index(interface)?;
    let mut wrong = false;
    for (name, get, set) in FEATURES {
        // A device without TSO refuses to have it on; what counts is read below.
        let _ = ethtool(interface, set, u32::from(on));
        let now = ethtool(interface, get, 0).map_err(misuse("cannot ask for offloads"))? != 0;
        println!("{name} {}", if now { "on" } else { "off" });
        wrong |= now != on && (name == "gso" || !on);
    }
    if wrong {
        Err(Failure::Refused(format!(
            "{interface} did not take all of it"
        )))
    } else {
        Ok(())
    }
}

fn ethtool(interface: &str, command: u32, data: u32) -> nix::Result<u32> {
    let control = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut value = Value { command, data };
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.as_bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the ifreq and the value it points to live until the call returns; both commands take an ethtool_value.
    Errno::result(unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            libc::SIOCETHTOOL as _,
            &raw mut request,
        )
    })?;
    Ok(value.data)
}
