//! A deadline as a descriptor (timerfd).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

/// Shows as readable when its deadline has passed.
pub(crate) struct Timer {
    descriptor: TimerFd,
    armed: Option<Instant>,
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// The timerfd cannot be made.
    pub fn new() -> io::Result<Self> {
        let descriptor =
            TimerFd::new().map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(Self {
            descriptor,
            armed: None,
        })
    }

    /// Goes off at `deadline` or earlier.
    pub fn by(&mut self, deadline: Instant) {
        if self.armed.is_none_or(|armed| deadline < armed) {
            self.set(Some(deadline));
        }
    }

    /// Goes off at `deadline`, or never; one that has gone off is quiet again.
    pub fn set(&mut self, deadline: Option<Instant>) {
        let result = match deadline {
            // A time of zero would switch it off.
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                let left = left.max(Duration::from_millis(1));
                self.descriptor.reset(left, None)
            }
            None => self.descriptor.clear(),
        };
        self.armed = deadline;
        if let Err(error) = result {
            tracing::error!("cannot set a timer: {error}");
            self.armed = None;
        }
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}
