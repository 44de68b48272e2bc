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

use std::time::{Duration, Instant};

pub use beside::{BESIDE_NAME, CONTAINER, become_image_init};
pub use device_nodes::make as make_device_nodes;
pub use modules::{
    Module, insert as insert_modules, insert_beside as insert_modules_beside,
    later as later_modules, load as load_modules, take_network_driver,
};
pub use mounts::{mount_kernel_file_systems, prepare_without_init};
pub use root::{Root, find_drive};

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

/// A container ends with the process that keeps it, and its console is nobody's terminal, as a machine's is nobody's:
/// a Ctrl-C there is no signal to PID 1. Whoever's init PID 1 becomes, this stays.
pub fn belong_to_container() {
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    // SAFETY: TIOCNOTTY takes no argument. The SIGHUP that it brings ends no PID 1, and without a terminal it fails.
    unsafe { libc::ioctl(0, libc::TIOCNOTTY) };
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
