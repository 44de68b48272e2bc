//! The orderly end of a system whose PID 1 is the agent.

use std::fs::File;
use std::time::{Duration, Instant};

use fief_agent_proto::{Shutdown, ShutdownAction};
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::boot::Root;
use crate::log;
use crate::settings::Place;

/// How long programs may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ends every process, makes the file systems clean, and powers off or reboots.
pub fn end_system(root: &Root, place: Place, request: Shutdown) -> ! {
    if !request.force {
        // A shell ignores SIGTERM and leaves on SIGHUP; a stopped program can act on neither.
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCONT] {
            let _ = kill(Pid::from_raw(-1), signal);
        }
        let deadline = Instant::now() + PATIENCE;
        if !all_ended(Some(deadline)) {
            log::info("some programs did not end on SIGTERM; killing them");
        }
    }
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    // What SIGKILL does not end is stuck in the kernel: do not wait for it for ever.
    all_ended(Some(Instant::now() + PATIENCE));
    if place == Place::Machine {
        nix::unistd::sync();
        root.make_read_only();
    }
    end_at_once(place, request.action)
}

/// Powers off or reboots without asking anybody. The kernel ends a container's processes, and its PID 1 with SIGINT for a
/// power-off, with SIGHUP for a reboot (reboot(2)).
pub fn end_at_once(place: Place, action: ShutdownAction) -> ! {
    match place {
        Place::Machine => nix::unistd::sync(),
        // Only its own: `sync` would wait for all that the host has to write.
        Place::Container => drop(File::open("/").map(nix::unistd::syncfs)),
    }
    let mode = match action {
        ShutdownAction::Poweroff => RebootMode::RB_POWER_OFF,
        ShutdownAction::Reboot => RebootMode::RB_AUTOBOOT,
    };
    let Err(error) = reboot(mode);
    if place == Place::Container && std::process::id() == 1 {
        // Not allowed to, so its end says the same.
        std::process::exit(match action {
            ShutdownAction::Poweroff => 0,
            ShutdownAction::Reboot => 128 + libc::SIGHUP,
        });
    }
    log::error(format!("the kernel refuses to end the system: {error}"));
    loop {
        // PID 1 must not end; nothing else is left to do.
        nix::unistd::pause();
    }
}

/// Reaps until there is no process left; false when the deadline passed before.
fn all_ended(deadline: Option<Instant>) -> bool {
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            // Every orphan is a child of PID 1: no child, no process.
            Err(Errno::ECHILD) => return true,
            Ok(status) if status.pid().is_some() => {}
            _ => {
                let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                if left.is_some_and(|left| left.is_zero()) {
                    return false;
                }
                wait_for_child(&child, left.unwrap_or(PATIENCE));
            }
        }
    }
}

/// SIGCHLD is blocked since the server started, so none is missed between the check and the wait.
fn wait_for_child(child: &SigSet, left: Duration) {
    let time = libc::timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    // SAFETY: both pointers are valid for the call; a null siginfo is allowed.
    unsafe {
        libc::sigtimedwait(
            std::ptr::from_ref(child.as_ref()),
            std::ptr::null_mut(),
            &raw const time,
        )
    };
}
