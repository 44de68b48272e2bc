//! How long work tells its caller where it is. This crate prints nothing itself.

/// What a step counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes read, written or downloaded.
    Bytes,
    /// Things: object files compiled, packages installed.
    Items,
}

/// Receives the progress of one job, which is a sequence of steps, one at a time.
///
/// Calls may be frequent (once a file, once a compiled object): an implementation should only note the value.
pub trait Progress: Sync {
    /// A step begins; the step before it, if any, is over. `total` is known for some steps only, and may be an
    /// estimate.
    fn begin(&self, title: &str, unit: Unit, total: Option<u64>);
    /// `done` of the current step's units are done so far (not since the last call).
    fn done(&self, done: u64);
    /// The current step is over.
    fn end(&self);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: Unit, _: Option<u64>) {}
    fn done(&self, _: u64) {}
    fn end(&self) {}
}
