//! How often a place in the code may log.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;

/// Lines of one place that are let through in a [`WINDOW`].
pub const BURST: u32 = 10;

/// After this time a place may log again.
pub const WINDOW: Duration = Duration::from_secs(5);

struct Window {
    start: Instant,
    lines: u32,
    left_out: u64,
}

/// Lines so far, by place. As many entries as there are places in the code that logged.
pub struct Limits {
    windows: BTreeMap<u64, Window>,
}

/// An `Identifier` hashes as the address of the call site, which is all that is needed to tell two apart.
#[derive(Default)]
struct Address(u64);

impl Hasher for Address {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_usize(&mut self, address: usize) {
        self.0 ^= u64::try_from(address).unwrap_or_default();
    }
}

impl Limits {
    pub const fn new() -> Self {
        Self {
            windows: BTreeMap::new(),
        }
    }

    /// Whether a line of `place` may be written at `now`; if so, how many were left out before it.
    pub fn admit(&mut self, place: &Identifier, now: Instant) -> Option<u64> {
        let mut address = Address::default();
        place.hash(&mut address);
        let window = self.windows.entry(address.finish()).or_insert(Window {
            start: now,
            lines: 0,
            left_out: 0,
        });
        if now.saturating_duration_since(window.start) >= WINDOW {
            window.start = now;
            window.lines = 0;
        }
        if window.lines >= BURST {
            window.left_out = window.left_out.saturating_add(1);
            return None;
        }
        window.lines = window.lines.saturating_add(1);
        Some(std::mem::take(&mut window.left_out))
    }
}
