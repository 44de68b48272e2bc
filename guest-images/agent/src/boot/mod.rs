//! From the initramfs to the tenant's root; in a container, what its runtime does not do.

mod beside;
mod device_nodes;
mod interface;
mod modules;
mod mounts;
mod netlink;
mod network;
mod resolver;
mod root;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use beside::{BESIDE_NAME, CONTAINER, become_image_init};
pub use device_nodes::make as make_device_nodes;
pub use modules::{
    Module, insert as insert_modules, insert_beside as insert_modules_beside,
    later as later_modules, load as load_modules, take_network_driver,
};
pub use mounts::{mount_kernel_file_systems, prepare_without_init};
pub use root::{Root, find_drive, mount_drive};

use crate::log;
use crate::settings::{Place, Settings};

/// How long a device may take to appear.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks. Devices are probed while the kernel boots, so mostly the first look finds them.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Looks until something is there, or [`DEVICE_PATIENCE`] is over.
pub fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + DEVICE_PATIENCE;
    loop {
        match look() {
            Some(found) => return Some(found),
            None if Instant::now() >= deadline => return None,
            None => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Where a container's agent is told to go on, by a byte: the second descriptor after the standard ones, a pipe.
const GO: RawFd = 4;

/// Waits until the process that keeps the container lets it go on: by then that is this one's parent, not the runtime any
/// more. A container ends with it, and its console is nobody's terminal, as a machine's is nobody's: a Ctrl-C there is no
/// signal to PID 1. Whoever's init PID 1 becomes, this stays.
///
/// # Errors
/// One line: nobody keeps it.
pub fn belong_to_container() -> Result<(), String> {
    // SAFETY: only looked at until it is known to be open. Nothing here has opened it.
    let found = unsafe { BorrowedFd::borrow_raw(GO) };
    fcntl(found, FcntlArg::F_GETFD).map_err(|_| {
        format!(
            "descriptor {GO} is not open; a container's runtime passes it with --preserve-fds 2"
        )
    })?;
    // SAFETY: it is open, and from here on this file's alone.
    let mut go = File::from(unsafe { OwnedFd::from_raw_fd(GO) });
    let ended = |_| "the process that keeps this container has ended".to_owned();
    go.read_exact(&mut [0]).map_err(ended)?;
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    // It keeps its end open: if that is closed, it ended before it could take this process along.
    let mut fds = [PollFd::new(go.as_fd(), PollFlags::POLLIN)];
    if poll(&mut fds, PollTimeout::ZERO) != Ok(0) {
        return Err(ended(std::io::ErrorKind::UnexpectedEof.into()));
    }
    // SAFETY: TIOCNOTTY takes no argument. The SIGHUP that it brings ends no PID 1, and without a terminal it fails.
    unsafe { libc::ioctl(0, libc::TIOCNOTTY) };
    Ok(())
}

/// What every tenant needs, whoever its init is.
pub fn prepare(settings: &Settings) {
    if settings.place == Place::Machine {
        mounts::mount_common();
    }
    network::loopback_up();
    crate::provide::forget_names();
    if let Some(network) = &settings.network {
        for problem in interface::set_up(network) {
            log::error(format!("the network is not all there: {problem}"));
        }
        if let Err(error) = resolver::set_up(&network.dns, std::path::Path::new("/")) {
            log::error(format!("names cannot be looked up: {error}"));
        }
    }
    if let Some(name) = &settings.hostname
        && let Err(error) = network::set_name(name)
    {
        log::error(format!("cannot set the host name to {name}: {error}"));
    }
}
