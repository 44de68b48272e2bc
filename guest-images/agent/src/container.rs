//! As process 1 of a container: the same system, on a kernel and under limits that are the host's.
//!
//! The settings come as arguments, not from the kernel's command line, which is the host's; clients come by a listening
//! socket that is handed over as a descriptor, to which no path leads in the container.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use fief_agent_proto::ShutdownAction;
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Where the listening socket is: the first descriptor after the standard ones.
pub const LISTENER: RawFd = 3;
/// Exit code that stands for a restart where reboot(2) is refused: that of a process ended by the signal that the kernel
/// would have sent, SIGHUP.
const RESTART: i32 = 128 + 1;

static HERE: AtomicBool = AtomicBool::new(false);

/// Whether this agent is in a container.
pub fn is_here() -> bool {
    HERE.load(Ordering::Relaxed)
}

/// This agent is in a container, and ends when its parent, the shim, does.
pub fn enter() {
    HERE.store(true, Ordering::Relaxed);
    // Refused by no kernel; the shim's successor ends what outlived it.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
}

/// Writes out what the tenant's file systems hold: sync(2) would write out all of the host's.
pub fn sync() {
    if let Ok(root) = File::open("/") {
        // SAFETY: takes a descriptor that is open.
        unsafe { libc::syncfs(root.as_raw_fd()) };
    }
}

/// Ends process 1, and all others with it.
pub fn exit(action: ShutdownAction) -> ! {
    std::process::exit(match action {
        ShutdownAction::Poweroff => 0,
        ShutdownAction::Reboot => RESTART,
    })
}
