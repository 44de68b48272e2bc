//! How a queue's worker gets at the backing file.

mod sync;
#[cfg(test)]
mod tests;
mod uring;

use std::fs::File;
use std::io;
use std::os::fd::RawFd;

pub(super) use sync::SyncEngine;
pub(super) use uring::UringEngine;

/// One operation on the backing file; offsets and lengths in bytes.
#[derive(Clone, Copy)]
pub(super) enum Operation<'a> {
    Read {
        segments: &'a [libc::iovec],
        offset: u64,
    },
    Write {
        segments: &'a [libc::iovec],
        offset: u64,
        /// Complete only when the data is on stable storage.
        durable: bool,
    },
    /// Make all completed writes durable.
    Flush,
    /// Free the space of a range; it then reads as zeroes.
    Punch { offset: u64, length: u64 },
    /// Make a range read as zeroes and keep its space.
    Zero { offset: u64, length: u64 },
}

/// The end of an operation: its tag, and the bytes transferred or why it failed.
pub(super) struct Completion {
    pub tag: u16,
    pub result: io::Result<usize>,
}

/// Carries out operations, at most one for each tag at a time. Belongs to one worker thread.
pub(super) trait Engine: Send {
    /// Becomes readable when completions can be fetched; `None` if there never are any after [`submit`](Self::submit).
    fn descriptor(&self) -> Option<RawFd>;

    /// Prepares an operation. It begins by the next [`submit`](Self::submit) at the latest.
    ///
    /// # Safety
    /// The memory of the segments stays valid until the operation's completion has been fetched or the engine has been
    /// dropped. So does the list of segments, unless it has one entry: that is passed by value.
    unsafe fn start(&mut self, tag: u16, operation: Operation<'_>);

    /// Hands what was prepared to the kernel, in one system call for all, or none if there is nothing. True if the kernel
    /// could not take all of it just now: call again.
    fn submit(&mut self) -> bool;

    /// Fetches a completion.
    fn next(&mut self) -> Option<Completion>;

    /// Waits until a completion can be fetched; not at all if nothing is in flight.
    fn wait(&mut self);

    /// Uses `file` from now on. Nothing may be in flight.
    ///
    /// # Errors
    /// The old file is still in use.
    fn replace(&mut self, file: &File) -> io::Result<()>;
}
