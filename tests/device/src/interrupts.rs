//! Events of the machine that the function raises interrupts by.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Numbers of VFIO.
pub const INTX: u32 = 0;

/// How often the thread that waits for the line to be unmasked looks whether it is still wanted, milliseconds.
const LOOK: u16 = 100;

/// The wired line. It is masked when it has been raised, until it is unmasked.
#[derive(Debug, Default)]
struct Line {
    asserted: bool,
    masked: bool,
    trigger: Option<File>,
}

impl Line {
    fn settle(&mut self) {
        if self.asserted
            && !self.masked
            && let Some(trigger) = &mut self.trigger
        {
            self.masked = true;
            signal(trigger);
        }
    }
}

fn signal(event: &mut File) {
    if let Err(error) = event.write_all(&1_u64.to_ne_bytes()) {
        eprintln!("fief-test-device: an interrupt is lost: {error}");
    }
}

/// What waits for the line to be unmasked.
#[derive(Debug)]
struct Unmasking {
    wanted: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Unmasking {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// All interrupts of the function.
#[derive(Debug, Default)]
pub struct Interrupts {
    line: Arc<Mutex<Line>>,
    unmasking: Option<Unmasking>,
    /// Of MSI and MSI-X, by number.
    messages: [Vec<Option<File>>; 2],
    /// Events are made ones to wait at, whatever they were.
    waits: bool,
}

impl Interrupts {
    /// Interrupts from `start` on of a kind are these events.
    pub fn connect(&mut self, kind: u32, start: u32, events: Vec<File>) {
        if self.waits {
            events.iter().for_each(wait_at);
        }
        if kind == INTX {
            let mut line = self.line();
            line.trigger = events.into_iter().next();
            line.masked = false;
            line.settle();
            return;
        }
        if let Some(vectors) = self.vectors(kind) {
            for (index, event) in (start as usize..).zip(events) {
                if vectors.len() <= index {
                    vectors.resize_with(index + 1, || None);
                }
                vectors[index] = Some(event);
            }
        }
    }

    /// A kind has no events any more.
    pub fn disconnect(&mut self, kind: u32) {
        if kind == INTX {
            self.unmasking = None;
            let mut line = self.line();
            line.trigger = None;
            line.masked = false;
        } else if let Some(vectors) = self.vectors(kind) {
            vectors.clear();
        }
    }

    /// The line is unmasked by `event` from now on.
    pub fn unmask_by(&mut self, mut event: File) {
        if self.waits {
            wait_at(&event);
        }
        let wanted = Arc::new(AtomicBool::new(true));
        let (still, line) = (Arc::clone(&wanted), Arc::clone(&self.line));
        let thread = std::thread::spawn(move || {
            while still.load(Ordering::SeqCst) {
                let mut entries = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
                let ready = poll(&mut entries, PollTimeout::from(LOOK));
                if ready == Ok(1) && event.read_exact(&mut [0; 8]).is_ok() {
                    let mut line = lock(&line);
                    line.masked = false;
                    line.settle();
                }
            }
        });
        self.unmasking = Some(Unmasking {
            wanted,
            thread: Some(thread),
        });
    }

    /// Raises vector `index` of MSI-X or MSI, whichever is enabled.
    pub fn raise(&mut self, index: u32) {
        let vectors = self.messages.iter_mut().rev();
        let mut events =
            vectors.filter_map(|vectors| vectors.get_mut(index as usize).and_then(Option::as_mut));
        match events.next() {
            Some(event) => signal(event),
            None => eprintln!("fief-test-device: vector {index} is not enabled"),
        }
    }

    /// Asserts the line, or not.
    pub fn set_line(&mut self, asserted: bool) {
        let mut line = self.line();
        line.asserted = asserted;
        line.settle();
    }

    /// How many vectors are enabled, of MSI and of MSI-X.
    pub fn enabled(&self) -> [u8; 2] {
        [0, 1].map(|kind: usize| self.messages[kind].len() as u8)
    }

    /// From now on whoever reads an event that has nothing to read waits: the flags are of the open file, which both sides
    /// have.
    pub fn wait_at_events(&mut self) -> bool {
        self.waits = true;
        let vectors = self.messages.iter().flatten().flatten();
        vectors.for_each(wait_at);
        self.line().trigger.iter().for_each(wait_at);
        true
    }

    fn vectors(&mut self, kind: u32) -> Option<&mut Vec<Option<File>>> {
        self.messages.get_mut((kind as usize).checked_sub(1)?)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        lock(&self.line)
    }
}

fn wait_at(event: &File) {
    if let Err(error) = fcntl(event, FcntlArg::F_SETFL(OFlag::empty())) {
        eprintln!("fief-test-device: an event stays as it is: {error}");
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}
