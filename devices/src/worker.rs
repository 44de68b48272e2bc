//! Worker threads: an epoll loop that owns what it serves.
//!
//! A [`Handler`] is moved into the thread and comes back out when it is stopped, so its state needs no lock. A [`Worker`]
//! is a thread for one handler; a [`SharedWorker`] serves handlers of several slow devices, which come and go.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};
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

    /// Finishes what is in flight. Called in the worker thread, which may wait here, when the handler is about to leave
    /// it: the kernel cancels what a thread has in an io_uring as soon as that thread ends.
    fn finish(&mut self) {}
}

static THREAD_START: OnceLock<fn(ThreadKind)> = OnceLock::new();

/// Sets what every worker thread calls first, in the thread itself: the jail installs the seccomp filter for the kind of
/// thread there. Only the first call counts.
pub fn on_thread_start(hook: fn(ThreadKind)) {
    let _ = THREAD_START.set(hook);
}

/// The set of descriptors that a handler watches.
pub struct Interest<'a> {
    epoll: &'a Epoll,
    /// Upper half of the event data: whose descriptor it is.
    owner: u32,
    watched: &'a RefCell<Vec<RawFd>>,
}

impl Interest<'_> {
    /// Watches `fd` for `events` (level-triggered unless EDGE_TRIGGERED is in it).
    ///
    /// # Errors
    /// `epoll_ctl` failed; EPERM for a regular file, which is always ready.
    pub fn add(&self, fd: RawFd, events: EventSet) -> io::Result<()> {
        self.control(ControlOperation::Add, fd, events)?;
        self.watched.borrow_mut().push(fd);
        Ok(())
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
        self.watched.borrow_mut().retain(|&watched| watched != fd);
        self.control(ControlOperation::Delete, fd, EventSet::empty())
    }

    fn control(&self, operation: ControlOperation, fd: RawFd, events: EventSet) -> io::Result<()> {
        let fd_bits = u64::from(u32::from_ne_bytes(fd.to_ne_bytes()));
        let data = u64::from(self.owner) << 32 | fd_bits;
        self.epoll.ctl(operation, fd, EpollEvent::new(events, data))
    }
}

/// A handler whose type has been forgotten, and how to get it back.
trait Served: Handler {
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

impl<H: Handler> Served for H {
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

enum Command {
    Add(u32, Box<dyn Served>, SyncSender<io::Result<()>>),
    Remove(u32, SyncSender<Option<Box<dyn Any + Send>>>),
    End,
}

/// A worker thread for handlers of several devices that are rarely busy. It ends when it is dropped.
pub struct SharedWorker {
    commands: Sender<Command>,
    wake: EventFd,
    next_owner: AtomicU32,
    thread: Option<JoinHandle<()>>,
}

/// A handler's place in a [`SharedWorker`]. When it is dropped, so is the handler.
pub struct Place<H> {
    worker: Arc<SharedWorker>,
    owner: u32,
    removed: bool,
    handler: PhantomData<fn() -> H>,
}

impl SharedWorker {
    /// Starts a thread that serves nobody yet.
    ///
    /// # Errors
    /// The thread, its epoll set or its eventfd could not be made.
    pub fn spawn(kind: ThreadKind, name: &str) -> io::Result<Arc<Self>> {
        let wake = EventFd::new(EFD_NONBLOCK)?;
        let epoll = Epoll::new()?;
        let data = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), data)?;
        let (commands, received) = channel();
        let mut service = Service {
            epoll,
            wake: wake.try_clone()?,
            commands: received,
            handlers: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(128 << 10)
            .spawn(move || {
                if let Some(hook) = THREAD_START.get() {
                    hook(kind);
                }
                service.run();
            })?;
        Ok(Arc::new(Self {
            commands,
            wake,
            next_owner: AtomicU32::new(1),
            thread: Some(thread),
        }))
    }

    /// Serves `handler` from now on. Not to be called from a handler of this worker: it waits for the thread.
    ///
    /// # Errors
    /// The handler cannot register (it is dropped), or the thread is gone.
    pub fn add<H: Handler>(self: &Arc<Self>, handler: H) -> io::Result<Place<H>> {
        // Never 0, which is the wake-up's own; four billion pauses are more than a machine lives to see.
        let owner = self.next_owner.fetch_add(1, Ordering::Relaxed).max(1);
        let (reply, answer) = sync_channel(1);
        self.send(Command::Add(owner, Box::new(handler), reply));
        answer.recv().map_err(|_| gone())??;
        Ok(Place {
            worker: Arc::clone(self),
            owner,
            removed: false,
            handler: PhantomData,
        })
    }

    fn send(&self, command: Command) {
        // A receiver that is gone shows as a missing answer.
        let _ = self.commands.send(command);
        if let Err(error) = self.wake.write(1) {
            tracing::error!("cannot wake the shared worker: {error}");
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the worker thread has ended")
}

impl Drop for SharedWorker {
    fn drop(&mut self) {
        self.send(Command::End);
        if let Some(thread) = self.thread.take() {
            // Nobody waits for a thread that is itself the one dropping: the last Place may live in a handler.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("the shared worker panicked");
            }
        }
    }
}

impl<H: Handler> Place<H> {
    /// Stops serving the handler after the event it is at and returns it; `None` if the thread is gone. Not to be called
    /// from a handler of the same worker.
    pub fn remove(mut self) -> Option<H> {
        self.removed = true;
        let (reply, answer) = sync_channel(1);
        self.worker.send(Command::Remove(self.owner, reply));
        let handler = answer.recv().ok()??;
        handler.downcast().ok().map(|boxed| *boxed)
    }
}

impl<H> Drop for Place<H> {
    fn drop(&mut self) {
        if !self.removed {
            let (reply, _) = sync_channel(1);
            self.worker.send(Command::Remove(self.owner, reply));
        }
    }
}

/// What the thread of a [`SharedWorker`] owns.
struct Service {
    epoll: Epoll,
    wake: EventFd,
    commands: Receiver<Command>,
    handlers: HashMap<u32, Entry>,
}

struct Entry {
    handler: Box<dyn Served>,
    watched: RefCell<Vec<RawFd>>,
}

impl Service {
    fn run(&mut self) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!("epoll_wait failed in the shared worker: {error}");
                    return;
                }
            };
            for event in events.iter().take(count) {
                let (owner, fd) = split(event);
                if owner == 0 {
                    if !self.obey() {
                        return;
                    }
                } else if let Some(entry) = self.handlers.get_mut(&owner) {
                    // An event of the same batch for a handler that has just been removed finds nobody.
                    let interest = Interest {
                        epoll: &self.epoll,
                        owner,
                        watched: &entry.watched,
                    };
                    entry.handler.ready(fd, event.event_set(), &interest);
                }
            }
        }
    }

    /// Carries out what was asked for; false at the end.
    fn obey(&mut self) -> bool {
        // Spurious wake-ups leave nothing to read.
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Add(owner, handler, reply) => {
                    let _ = reply.send(self.add(owner, handler));
                }
                Command::Remove(owner, reply) => {
                    let _ = reply.send(self.remove(owner));
                }
                Command::End => return false,
            }
        }
        true
    }

    fn add(&mut self, owner: u32, mut handler: Box<dyn Served>) -> io::Result<()> {
        let watched = RefCell::default();
        let interest = Interest {
            epoll: &self.epoll,
            owner,
            watched: &watched,
        };
        let registered = handler.register(&interest);
        self.handlers.insert(owner, Entry { handler, watched });
        if registered.is_err() {
            drop(self.remove(owner));
        }
        registered
    }

    fn remove(&mut self, owner: u32) -> Option<Box<dyn Any + Send>> {
        let mut entry = self.handlers.remove(&owner)?;
        entry.handler.finish();
        for fd in entry.watched.into_inner() {
            // A descriptor that the handler has closed meanwhile is no longer watched anyway.
            let _ = self
                .epoll
                .ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
        Some(entry.handler.into_any())
    }
}

fn split(event: &EpollEvent) -> (u32, RawFd) {
    let [a, b, c, d, e, f, g, h] = event.data().to_le_bytes();
    (
        u32::from_le_bytes([e, f, g, h]),
        RawFd::from_le_bytes([a, b, c, d]),
    )
}

/// A worker thread of one handler.
pub struct Worker<H: Handler> {
    place: Place<H>,
}

impl<H: Handler> Worker<H> {
    /// Starts a thread that serves `handler`.
    ///
    /// # Errors
    /// The thread, its epoll set or its eventfd could not be made, or the handler cannot register. `handler` is lost.
    pub fn spawn(kind: ThreadKind, name: &str, handler: H) -> io::Result<Self> {
        let place = SharedWorker::spawn(kind, name)?.add(handler)?;
        Ok(Self { place })
    }

    /// Asks the thread to end after the event it is at, waits for it, and returns the handler; `None` if the thread
    /// panicked.
    pub fn stop(self) -> Option<H> {
        self.place.remove()
    }
}

#[cfg(test)]
mod tests;
