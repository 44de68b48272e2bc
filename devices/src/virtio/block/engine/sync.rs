//! Plain system calls in the worker thread, for hosts without io_uring.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use super::{Completion, Engine, Operation};

/// Carries out each operation as it is started.
pub(in super::super) struct SyncEngine {
    file: File,
    done: VecDeque<Completion>,
}

impl SyncEngine {
    /// # Errors
    /// No descriptor is left for a copy of `file`.
    pub fn new(file: &File) -> io::Result<Self> {
        Ok(Self {
            file: file.try_clone()?,
            done: VecDeque::new(),
        })
    }

    fn carry_out(&self, operation: Operation<'_>) -> io::Result<usize> {
        let fd = self.file.as_raw_fd();
        match operation {
            Operation::Read { segments, offset } => {
                let count = segment_count(segments)?;
                let offset = file_offset(offset)?;
                // SAFETY: the caller of `start` promises valid segments.
                retry(|| unsafe { libc::preadv(fd, segments.as_ptr(), count, offset) })
            }
            Operation::Write {
                segments,
                offset,
                durable,
            } => {
                let count = segment_count(segments)?;
                let offset = file_offset(offset)?;
                if durable {
                    // SAFETY: the caller of `start` promises valid segments.
                    retry(|| unsafe {
                        libc::pwritev2(fd, segments.as_ptr(), count, offset, libc::RWF_DSYNC)
                    })
                } else {
                    // SAFETY: the caller of `start` promises valid segments.
                    retry(|| unsafe { libc::pwritev(fd, segments.as_ptr(), count, offset) })
                }
            }
            // SAFETY: no memory is involved.
            Operation::Flush => retry(|| unsafe { libc::fdatasync(fd) } as isize),
            Operation::Punch { offset, length } => self.allocate(
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                length,
            ),
            Operation::Zero { offset, length } => self.allocate(
                libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
                offset,
                length,
            ),
        }
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<usize> {
        let (offset, length) = (file_offset(offset)?, file_offset(length)?);
        // SAFETY: no memory is involved.
        retry(|| unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, length) } as isize)
    }
}

fn segment_count(segments: &[libc::iovec]) -> io::Result<i32> {
    i32::try_from(segments.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn file_offset(offset: u64) -> io::Result<i64> {
    i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Calls again after a signal.
fn retry(call: impl Fn() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

impl Engine for SyncEngine {
    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    unsafe fn start(&mut self, tag: u16, operation: Operation<'_>) {
        let result = self.carry_out(operation);
        self.done.push_back(Completion { tag, result });
    }

    fn submit(&mut self) -> bool {
        false
    }

    fn next(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }

    fn wait(&mut self) {}

    fn replace(&mut self, file: &File) -> io::Result<()> {
        self.file = file.try_clone()?;
        Ok(())
    }
}
