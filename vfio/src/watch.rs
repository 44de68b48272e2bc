//! What a function tells besides its interrupts.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fief_devices::irq::drain;
use fief_devices::worker::{Handler, Interest};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::remote::{Interrupt, RemoteFunction};

/// Something that happened to a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The host saw an uncorrectable error of it (PCIe AER).
    Error,
    /// The host wants it back.
    Requested,
    /// The process that it lives in is gone.
    Gone,
}

/// Called at each notice, from the worker's thread.
pub type OnNotice = Box<dyn Fn(Notice) + Send>;

/// A notice of one kind is told at most this often: a process that the function lives in raises them as it likes.
const LULL: Duration = Duration::from_secs(1);

/// Watches one function.
pub struct Watch {
    remote: Arc<dyn RemoteFunction>,
    events: Vec<Source>,
    on_notice: OnNotice,
}

/// What tells one kind of notice.
struct Source {
    notice: Notice,
    event: EventFd,
    told: Option<Instant>,
}

impl Watch {
    /// Lets the function tell what it can.
    ///
    /// # Errors
    /// No descriptor is left, or the function refused.
    pub fn new(remote: Arc<dyn RemoteFunction>, on_notice: OnNotice) -> io::Result<Self> {
        let mut events = Vec::new();
        for (kind, notice) in [
            (Interrupt::Error, Notice::Error),
            (Interrupt::Request, Notice::Requested),
        ] {
            if remote.interrupts(kind) > 0 {
                let event = EventFd::new(EFD_NONBLOCK)?;
                remote.enable(kind, &[&event])?;
                events.push(Source {
                    notice,
                    event,
                    told: None,
                });
            }
        }
        Ok(Self {
            remote,
            events,
            on_notice,
        })
    }
}

impl Handler for Watch {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        for source in &self.events {
            interest.add(source.event.as_raw_fd(), EventSet::IN)?;
        }
        match self.remote.lifeline() {
            // Only its end: what it says is for whoever asked.
            Some(lifeline) => interest.add(lifeline.as_raw_fd(), EventSet::READ_HANG_UP),
            None => Ok(()),
        }
    }

    fn ready(&mut self, fd: RawFd, _events: EventSet, interest: &Interest<'_>) {
        let mut sources = self.events.iter_mut();
        if let Some(source) = sources.find(|source| source.event.as_raw_fd() == fd) {
            drain(&source.event);
            let now = Instant::now();
            if source
                .told
                .is_none_or(|told| now.duration_since(told) >= LULL)
            {
                source.told = Some(now);
                (self.on_notice)(source.notice);
            }
            return;
        }
        // It stays ready for ever.
        if let Err(error) = interest.remove(fd) {
            tracing::error!("cannot stop watching a device process: {error}");
        }
        (self.on_notice)(Notice::Gone);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for kind in [Interrupt::Error, Interrupt::Request] {
            if self.remote.interrupts(kind) > 0 {
                // One that is gone tells nothing any more.
                let _ = self.remote.disable(kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;

    use fief_devices::worker::{SharedWorker, ThreadKind};

    use super::*;
    use crate::fake::FakeFunction;

    #[test]
    fn what_is_raised_for_ever_is_told_once_in_a_while() {
        let mut config = vec![0; 256];
        config[..4].copy_from_slice(&[0x36, 0x1B, 0x10, 0x00]);
        let mut remote = FakeFunction::new(config, &[]);
        // The host wants it back, and nothing else.
        remote.counts = [0, 0, 0, 0, 1];
        let remote = Arc::new(remote);
        let (tell, told) = channel();
        let tell = Mutex::new(tell);
        let on_notice = Box::new(move |notice| tell.lock().unwrap().send(notice).unwrap());
        let watch = Watch::new(remote.clone(), on_notice).unwrap();
        let worker = SharedWorker::spawn(ThreadKind::Slow, "test").unwrap();
        let place = worker.add(watch).unwrap();
        let start = Instant::now();
        while start.elapsed() < LULL / 4 {
            remote.raise(0);
        }
        drop(place);
        assert_eq!(told.iter().collect::<Vec<_>>(), [Notice::Requested]);
    }
}
