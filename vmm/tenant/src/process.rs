//! Other processes, without mistaking one for another: a process id may have been given to a new process, a pidfd is
//! always the same one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::store::Pid;

/// A process that was alive when this was made.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process with this id, if there is one now.
    pub fn open(pid: i32) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(pid)?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(Self)
    }

    /// Whether a process with this id lives: one that has ended, and that its parent has not taken notice of yet, does not.
    pub fn lives(pid: i32) -> bool {
        Self::open(pid).is_some_and(|process| !process.wait(Duration::ZERO))
    }

    /// The process that is meant, not a later one with its number.
    pub fn open_exactly(pid: Pid) -> Option<Self> {
        let process = Self::open(pid.pid)?;
        // Looked at after it was opened: if the start is right now, the descriptor is of the right one.
        (start_ticks(pid.pid) == Some(pid.start_ticks)).then_some(process)
    }

    /// Sends a signal; a process that has ended needs none.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(&self.0, signal) {
            Err(error) if error != rustix::io::Errno::SRCH => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Waits until it has ended, at most `patience`. True if it has.
    pub fn wait(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut fds, timeout), Ok(1..))
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Describes a process of ours so that it can be found again.
pub fn identify(pid: u32) -> Option<Pid> {
    let pid = i32::try_from(pid).ok()?;
    Some(Pid {
        pid,
        start_ticks: start_ticks(pid)?,
    })
}

fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold spaces and parentheses; it ends at the last ')'.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_found_again_by_number_and_start_and_a_stranger_is_not() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = identify(child.id()).unwrap();
        assert!(
            Process::open_exactly(Pid {
                start_ticks: pid.start_ticks + 1,
                ..pid
            })
            .is_none()
        );
        let process = Process::open_exactly(pid).unwrap();
        assert!(!process.wait(Duration::ZERO));
        let number = child.id().cast_signed();
        assert!(Process::lives(number));
        process.signal(Signal::KILL).unwrap();
        assert!(process.wait(Duration::from_secs(60)));
        // Not waited for yet, it still has its number.
        assert!(Process::open(number).is_some() && !Process::lives(number));
        child.wait().unwrap();
        process.signal(Signal::KILL).unwrap();
        assert!(Process::open_exactly(pid).is_none());
    }
}
