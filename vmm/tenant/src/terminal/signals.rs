//! Signals as things to read, so that no handler runs in the midst of anything.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What a command elsewhere shall hear of.
const FORWARDED: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Signals to this process, taken from it for as long as it lives.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Takes them over. To be called before any other thread is started: each thread inherits the blocked signals.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn take_over() -> io::Result<Self> {
        let mut set = SigSet::empty();
        for signal in FORWARDED.into_iter().chain([Signal::SIGWINCH]) {
            set.add(signal);
        }
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(
            &set,
            SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
        )?))
    }

    /// The next signal, if one has come.
    pub fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo.cast_signed()).ok()
    }

    /// The next signal that asks this process to end, if one has come.
    pub fn asked_to_end(&self) -> Option<Signal> {
        while let Some(signal) = self.next() {
            if signal != Signal::SIGWINCH {
                return Some(signal);
            }
        }
        None
    }

    /// Waits for a signal, or until `stop` is readable or closed: then none.
    pub fn wait(&self, stop: BorrowedFd<'_>) -> Option<Signal> {
        loop {
            let mut fds = [
                PollFd::new(self.0.as_fd(), PollFlags::POLLIN),
                PollFd::new(stop, PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return None,
            }
            if fds[1].revents().is_some_and(|events| !events.is_empty()) {
                return None;
            }
            if let Some(signal) = self.next() {
                return Some(signal);
            }
        }
    }
}
