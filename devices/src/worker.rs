//! Worker threads: an epoll loop that owns what it serves.
//!
//! A [`Handler`] is moved into the thread and comes back out when the worker is stopped, so its state needs no lock.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a thread is for; decides its name and, under the jail, its seccomp filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThreadKind {
    Block,
    Net,
    Vsock,
    /// Shared by entropy, serial input, balloon and other devices that are rarely busy.
    Slow,
}

/// Something that is served by a worker thread.
pub trait Handler: Send + 'static {
    /// Adds the descriptors to watch. Called once, in the worker thread, before the first event.
    ///
    /// # Errors
    /// A descriptor cannot be watched; the worker then ends.
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()>;

    /// A watched descriptor is ready. May change the interest. Must not block for long.
    fn ready(&mut self, fd: RawFd, events: EventSet, interest: &Interest<'_>);
}

/// The set of descriptors that a handler watches.
pub struct Interest<'a> {
    epoll: &'a Epoll,
}

impl Interest<'_> {
    /// Watches `fd` for `events` (level-triggered unless EDGE_TRIGGERED is in it).
    ///
    /// # Errors
    /// `epoll_ctl` failed.
    pub fn add(&self, fd: RawFd, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, events)
    }

    /// Changes what `fd` is watched for.
    ///
    /// # Errors
    /// `epoll_ctl` failed.
    pub fn modify(&self, fd: RawFd, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd, events)
    }

    /// Stops watching `fd`. Call before closing it.
    ///
    /// # Errors
    /// `epoll_ctl` failed.
    pub fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.control(ControlOperation::Delete, fd, EventSet::empty())
    }

    fn control(&self, operation: ControlOperation, fd: RawFd, events: EventSet) -> io::Result<()> {
        let data = u64::from(u32::from_ne_bytes(fd.to_ne_bytes()));
        self.epoll.ctl(operation, fd, EpollEvent::new(events, data))
    }
}

/// A running worker thread.
pub struct Worker<H> {
    thread: JoinHandle<H>,
    stop: EventFd,
    stopping: Arc<AtomicBool>,
}

impl<H: Handler> Worker<H> {
    /// Starts a thread that serves `handler`.
    ///
    /// # Errors
    /// The thread, its epoll set or its eventfd could not be made. `handler` is lost.
    pub fn spawn(kind: ThreadKind, name: &str, handler: H) -> io::Result<Self> {
        let _ = kind; // The jail installs the filter for this kind of thread here.
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (thread_stop, thread_stopping) = (stop.try_clone()?, Arc::clone(&stopping));
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(128 << 10)
            .spawn(move || serve(handler, &epoll, &thread_stop, &thread_stopping))?;
        Ok(Self {
            thread,
            stop,
            stopping,
        })
    }

    /// Asks the thread to end after the event it is at, waits for it, and returns the handler; `None` if the thread
    /// panicked.
    pub fn stop(self) -> Option<H> {
        self.stopping.store(true, Ordering::Release);
        if let Err(error) = self.stop.write(1) {
            tracing::error!("cannot wake a worker to stop it: {error}");
        }
        self.thread.join().ok()
    }
}

fn serve<H: Handler>(mut handler: H, epoll: &Epoll, stop: &EventFd, stopping: &AtomicBool) -> H {
    use std::os::fd::AsRawFd;
    let interest = Interest { epoll };
    let registered = interest
        .add(stop.as_raw_fd(), EventSet::IN)
        .and_then(|()| handler.register(&interest));
    if let Err(error) = registered {
        tracing::error!("worker cannot watch its descriptors: {error}");
        return handler;
    }
    let mut events = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!("epoll_wait failed in a worker: {error}");
                return handler;
            }
        };
        for event in events.iter().take(count) {
            if stopping.load(Ordering::Acquire) {
                return handler;
            }
            if event.fd() != stop.as_raw_fd() {
                handler.ready(event.fd(), event.event_set(), &interest);
            }
        }
    }
}
