//! Fakes for the tests of the legacy devices.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::{EventSink, GuestEvent};
use crate::irq::InterruptLine;

/// Counts edges.
#[derive(Default)]
pub struct Line(AtomicUsize);

impl Line {
    pub fn edges(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
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
