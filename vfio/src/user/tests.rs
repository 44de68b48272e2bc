//! The client against the server of the crate `vfio_user`, which others wrote, and against one that misbehaves by script.

mod genuine;
mod hostile;
mod random;

use std::fs::File;
use std::os::fd::FromRawFd;

/// Memory of a device process.
fn memfd(size: u64) -> File {
    // SAFETY: a name and flags; the descriptor is new.
    let file = unsafe {
        File::from_raw_fd(libc::memfd_create(
            c"device".as_ptr(),
            libc::MFD_ALLOW_SEALING,
        ))
    };
    file.set_len(size).unwrap();
    file
}
