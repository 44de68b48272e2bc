//! The vectors of a function, which it uses for MSI or for MSI-X, whichever the guest turns on.

use std::io;
use std::sync::Arc;

use fief_devices::irq::{ExternalVector, MsiAllocator, MsiMessage};
use vmm_sys_util::eventfd::EventFd;

/// Vectors and where each goes at present.
pub struct Vectors(Vec<Vector>);

struct Vector {
    line: Arc<dyn ExternalVector>,
    connected: Option<MsiMessage>,
}

impl Vectors {
    /// `count` vectors that go nowhere yet.
    ///
    /// # Errors
    /// There are not so many.
    pub fn new(allocator: &dyn MsiAllocator, count: u16) -> io::Result<Self> {
        let lines = allocator.allocate_external(count)?;
        let vector = |line| Vector {
            line,
            connected: None,
        };
        Ok(Self(lines.into_iter().map(vector).collect()))
    }

    /// What raises the first `count` of them.
    pub fn events(&self, count: usize) -> Vec<&EventFd> {
        self.0.iter().take(count).map(|v| v.line.event()).collect()
    }

    /// Vector `index` goes to `message` from now on, or what comes stays pending.
    pub fn connect(&mut self, index: usize, message: Option<MsiMessage>) {
        let Some(vector) = self.0.get_mut(index) else {
            return;
        };
        if vector.connected == message {
            return;
        }
        let done = match message {
            Some(message) => vector.line.connect(message),
            None => vector.line.disconnect(),
        };
        match done {
            Ok(()) => vector.connected = message,
            Err(error) => tracing::error!("vector {index} of a passed-through function: {error}"),
        }
    }

    /// All go nowhere, and nothing is pending.
    pub fn clear(&mut self) {
        for index in 0..self.0.len() {
            self.connect(index, None);
        }
        self.0.iter().for_each(|vector| vector.line.clear());
    }

    /// Whether something came to each, by index, that was not raised.
    pub fn pending(&self) -> impl Iterator<Item = bool> {
        self.0.iter().map(|vector| vector.line.is_pending())
    }
}
