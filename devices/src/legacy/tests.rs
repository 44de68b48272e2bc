//! Fakes for the tests of the legacy devices.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{EventSink, GuestEvent};
use crate::irq::InterruptLine;

/// Counts edges, or shows its level.
#[derive(Default)]
pub struct Line {
    edges: AtomicUsize,
    active: AtomicBool,
}

impl Line {
    pub fn edges(&self) -> usize {
        self.edges.load(Ordering::SeqCst)
    }

    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }
}

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        self.edges.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn set(&self, active: bool) -> io::Result<()> {
        self.active.store(active, Ordering::SeqCst);
        Ok(())
    }
}

/// A sink and what it has received.
pub fn recorder() -> (EventSink, Arc<Mutex<Vec<GuestEvent>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    (
        Arc::new(move |event| seen.lock().unwrap().push(event)),
        events,
    )
}
