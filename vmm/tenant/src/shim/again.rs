//! Between two runs of a tenant whose policy starts it again.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::channel::Channel;
use super::watch::{Heard, heard};

/// docker's: a tenant that cannot live must not take the machine's time.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// A run of this length was a good one.
const LONG_RUN: Duration = Duration::from_secs(10);

/// How long to wait before the next run: twice as long each time, until one run was long.
#[derive(Debug, Default)]
pub struct Pauses {
    last: Option<Duration>,
}

impl Pauses {
    /// The pause after a run of that length.
    pub fn after(&mut self, run: Duration) -> Duration {
        let next = match self.last {
            Some(last) if run < LONG_RUN => (last * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some(next);
        next
    }
}

/// Signals that ask for the end of the tenant, as something to read. To be called before any thread is made: all of
/// them leave these signals to the descriptor.
///
/// # Errors
/// No descriptor is free.
pub fn signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(SignalFd::with_flags(
        &signals,
        SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
    )?)
}

/// Waits; true, at once, if a signal asks for the end, or the `fief` that the tenant lives with, or if that has ended.
///
/// # Errors
/// The kernel does not wait.
pub fn wait(signals: &SignalFd, attached: Option<&Channel>, pause: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + pause;
    loop {
        if matches!(signals.read_signal(), Ok(Some(_))) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = PollTimeout::try_from(left + Duration::from_millis(1));
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(attached.map(|one| PollFd::new(one.stream().as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, left.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_spoken = fds.get(1).and_then(PollFd::any) == Some(true);
        if has_spoken && attached.is_some_and(|one| !matches!(heard(one), Heard::Nothing)) {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::channel::Request;
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_start_anew_after_a_long_run() {
        let mut pauses = Pauses::default();
        let short = Duration::from_secs(1);
        let seen: Vec<_> = (0..12).map(|_| pauses.after(short).as_millis()).collect();
        assert_eq!(
            seen,
            [
                100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200, 60_000, 60_000
            ]
        );
        assert_eq!(pauses.after(LONG_RUN), FIRST);
        assert_eq!(pauses.after(short), FIRST * 2);
    }

    #[test]
    fn a_pause_ends_with_the_fief_that_the_tenant_lives_with() {
        let signals = SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_NONBLOCK).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours);
        let pause = |length| wait(&signals, Some(&channel), length).unwrap();
        assert!(!pause(Duration::from_millis(1)));
        let asks = Channel::new(theirs.try_clone().unwrap());
        asks.send(&Request::Kill).unwrap();
        asks.send(&Request::Kill).unwrap();
        // Far longer than a test may take.
        assert!(pause(Duration::from_secs(3600)));
        drop((asks, theirs));
        assert!(pause(Duration::from_secs(3600)));
    }
}
