//! io_uring: many operations in one system call, and none in the worker's way.
//!
//! A ring bypasses seccomp, so it is made when the device is, before any filter, and is locked down at once: it accepts
//! six opcodes, only on its fixed file, and no registration but the exchange of that file.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::squeue::Entry;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};

use super::{Completion, Engine, Operation};

/// The only entry of the ring's file table.
const FILE: Fixed = Fixed(0);

/// `IOSQE_FIXED_FILE` (linux/io_uring.h).
const FIXED_FILE: u8 = 1;

/// `IORING_REGISTER_FILES_UPDATE` (linux/io_uring.h).
const REGISTER_FILES_UPDATE: u8 = 6;

/// Carries out operations through a ring with room for one of each tag.
pub(in super::super) struct UringEngine {
    ring: IoUring,
    /// Started and not fetched yet.
    in_flight: usize,
    /// Operations that did not get into the ring.
    refused: Vec<Completion>,
}

impl UringEngine {
    /// A ring for `file` with `depth` operations at a time.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or is older than 5.18.
    pub fn new(file: &File, depth: u16) -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_r_disabled()
            .setup_submit_all()
            .build(u32::from(depth))?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_restrictions(&mut [
            Restriction::register_op(REGISTER_FILES_UPDATE),
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_required(FIXED_FILE),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self {
            ring,
            in_flight: 0,
            refused: Vec::new(),
        })
    }

    #[cfg(test)]
    pub(super) fn ring_for_tests(&self) -> &IoUring {
        &self.ring
    }

    /// Puts an entry into the submission queue.
    ///
    /// # Safety
    /// As for [`Engine::start`].
    pub(super) unsafe fn push(&mut self, tag: u16, entry: Entry) {
        let entry = entry.user_data(u64::from(tag));
        self.in_flight += 1;
        // SAFETY: the caller promises that what the entry points to stays valid.
        let full = unsafe { self.ring.submission().push(&entry) }.is_err();
        if full {
            // Cannot happen with one operation for each tag; if it does, the request fails and nothing else.
            let result = Err(io::ErrorKind::ResourceBusy.into());
            self.refused.push(Completion { tag, result });
        }
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submitter().submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The kernel is short of memory or of room for completions, and will not be for ever.
fn passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

fn entry(operation: Operation<'_>) -> Option<Entry> {
    Some(match operation {
        Operation::Read {
            segments: [one],
            offset,
        } => {
            let length = u32::try_from(one.iov_len).ok()?;
            opcode::Read::new(FILE, one.iov_base.cast(), length)
                .offset(offset)
                .build()
        }
        Operation::Read { segments, offset } => {
            let count = u32::try_from(segments.len()).ok()?;
            opcode::Readv::new(FILE, segments.as_ptr(), count)
                .offset(offset)
                .build()
        }
        Operation::Write {
            segments: [one],
            offset,
            durable,
        } => {
            let length = u32::try_from(one.iov_len).ok()?;
            opcode::Write::new(FILE, one.iov_base.cast(), length)
                .offset(offset)
                .rw_flags(write_flags(durable))
                .build()
        }
        Operation::Write {
            segments,
            offset,
            durable,
        } => {
            let count = u32::try_from(segments.len()).ok()?;
            opcode::Writev::new(FILE, segments.as_ptr(), count)
                .offset(offset)
                .rw_flags(write_flags(durable))
                .build()
        }
        Operation::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        Operation::Punch { offset, length } => opcode::Fallocate::new(FILE, length)
            .offset(offset)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
        Operation::Zero { offset, length } => opcode::Fallocate::new(FILE, length)
            .offset(offset)
            .mode(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
            .build(),
    })
}

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

impl Engine for UringEngine {
    fn descriptor(&self) -> Option<RawFd> {
        // A ring polls readable while it has completions: no eventfd to write and to read.
        Some(self.ring.as_raw_fd())
    }

    unsafe fn start(&mut self, tag: u16, operation: Operation<'_>) {
        match entry(operation) {
            // SAFETY: the caller promises the same.
            Some(entry) => unsafe { self.push(tag, entry) },
            None => {
                self.in_flight += 1;
                let result = Err(io::ErrorKind::InvalidInput.into());
                self.refused.push(Completion { tag, result });
            }
        }
    }

    fn submit(&mut self) -> bool {
        if self.ring.submission().is_empty() {
            return false;
        }
        if let Err(error) = self.enter(0) {
            tracing::debug!("io_uring_enter: {error}");
        }
        !self.ring.submission().is_empty()
    }

    fn next(&mut self) -> Option<Completion> {
        let completion = self.refused.pop().or_else(|| {
            let entry = self.ring.completion().next()?;
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
            let tag = u16::try_from(entry.user_data()).ok()?;
            Some(Completion { tag, result })
        })?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(completion)
    }

    fn wait(&mut self) {
        while self.in_flight > 0 && self.refused.is_empty() && self.ring.completion().is_empty() {
            match self.enter(1) {
                Ok(()) => {}
                Err(error) if passing(&error) => std::thread::yield_now(),
                Err(error) => {
                    // Guest RAM must not be freed while the kernel may write to it, and nobody can say when that ends.
                    tracing::error!(
                        "cannot wait for {} operations in io_uring: {error}",
                        self.in_flight
                    );
                    std::process::abort();
                }
            }
        }
    }

    fn replace(&mut self, file: &File) -> io::Result<()> {
        self.ring
            .submitter()
            .register_files_update(FILE.0, &[file.as_raw_fd()])
            .map(drop)
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        // The kernel writes to the segments until an operation is complete, even after the ring is closed.
        while self.in_flight > 0 {
            self.wait();
            while self.next().is_some() {}
        }
    }
}
