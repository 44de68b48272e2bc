//! A request on its way: which operation comes next, and what its end means.
//!
//! One request may take several operations: the kernel transfers less than it was asked to, a bounce buffer is smaller
//! than the request, a discard has several ranges. They follow one another, so there is one at a time for each request.

use std::io;

use vm_memory::GuestAddress;

use super::backing::Alignment;
use super::bounce::{BOUNCE_BYTES, Bounce};
use super::engine::Operation;
use super::request::{Range, Status};
use crate::virtio::segments::Segments;

/// A request between its chain's arrival and its status.
pub(super) struct Flight {
    pub status_at: GuestAddress,
    pub work: Work,
}

pub(super) enum Work {
    Transfer(Transfer),
    Flush,
    /// What is left to do, the next one last.
    Ranges(Vec<Range>),
}

/// A read or write.
pub(super) struct Transfer {
    pub write: bool,
    /// Complete only when the data is on stable storage: the driver does not know how to flush.
    pub durable: bool,
    pub segments: Segments,
    /// Where in the file the rest begins.
    pub offset: u64,
    /// Bytes still to transfer.
    pub left: u64,
    /// Bytes of the whole request.
    pub total: u64,
    /// The segments are not aligned as O_DIRECT needs it.
    pub bounced: bool,
    pub bounce: Option<Bounce>,
}

/// What follows an operation's end.
pub(super) enum Next {
    /// Another operation.
    More,
    /// The request is done; so many bytes of data were written to the guest.
    Done { status: Status, written: u64 },
}

impl Transfer {
    /// Says whether the segments can be handed to the kernel as they are.
    pub fn needs_bounce(segments: &Segments, direct: Option<Alignment>) -> bool {
        direct.is_some_and(|alignment| {
            let length = usize::try_from(alignment.offset).unwrap_or(usize::MAX);
            !segments.aligned(alignment.memory, length)
        })
    }

    fn step(&self) -> usize {
        usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(BOUNCE_BYTES)
    }

    /// Calls `start` with the next operation.
    fn operate(&mut self, start: impl FnOnce(Operation<'_>)) {
        let length = self.step();
        let vector;
        let segments = match &mut self.bounce {
            Some(bounce) => {
                if self.write {
                    self.segments.copy_to(bounce.bytes_mut(length));
                }
                vector = [bounce.vector(length)];
                // A list of one entry need not outlive the call (`Engine::start`).
                vector.as_slice()
            }
            None => self.segments.remaining(),
        };
        let offset = self.offset;
        start(if self.write {
            Operation::Write {
                segments,
                offset,
                durable: self.durable,
            }
        } else {
            Operation::Read { segments, offset }
        });
    }

    fn transferred(&mut self, count: usize) -> Next {
        let bytes = count as u64;
        if bytes == 0 || bytes > self.left {
            // Nothing is moving: the file has become shorter, or the device is full.
            return self.failed();
        }
        if let (Some(bounce), false) = (&self.bounce, self.write) {
            self.segments.copy_from(bounce.bytes(count));
        }
        self.segments.advance(count);
        self.left -= bytes;
        self.offset = self.offset.saturating_add(bytes);
        if self.left > 0 {
            return Next::More;
        }
        Next::Done {
            status: Status::Ok,
            written: if self.write { 0 } else { self.total },
        }
    }

    fn failed(&self) -> Next {
        Next::Done {
            status: Status::IoErr,
            written: 0,
        }
    }
}

impl Flight {
    /// True if the next operation needs a bounce buffer that is not there yet.
    pub fn wants_bounce(&self) -> bool {
        matches!(&self.work, Work::Transfer(transfer) if transfer.bounced && transfer.bounce.is_none())
    }

    /// Calls `start` with the next operation. Its segments stay valid until the flight is dropped.
    pub fn operate(&mut self, start: impl FnOnce(Operation<'_>)) {
        match &mut self.work {
            Work::Transfer(transfer) => transfer.operate(start),
            Work::Flush => start(Operation::Flush),
            Work::Ranges(ranges) => {
                // Never empty here: parsing wants one, and the end of the last one ends the request.
                if let Some(&Range {
                    offset,
                    length,
                    punch,
                }) = ranges.last()
                {
                    start(if punch {
                        Operation::Punch { offset, length }
                    } else {
                        Operation::Zero { offset, length }
                    });
                }
            }
        }
    }

    /// Takes note of an operation's end.
    pub fn completed(&mut self, result: &io::Result<usize>) -> Next {
        match (&mut self.work, result) {
            (Work::Transfer(transfer), Ok(count)) => transfer.transferred(*count),
            (Work::Ranges(ranges), Ok(_)) if ranges.len() > 1 => {
                ranges.pop();
                Next::More
            }
            (_, Ok(_)) => Next::Done {
                status: Status::Ok,
                written: 0,
            },
            (Work::Transfer(transfer), Err(error))
                if error.kind() == io::ErrorKind::Interrupted =>
            {
                debug_assert!(transfer.left > 0);
                Next::More
            }
            (work, Err(error)) => Next::Done {
                status: failure(work, error),
                written: 0,
            },
        }
    }
}

/// A file system that cannot free or zero ranges says so; Linux then writes zeroes itself.
fn failure(work: &Work, error: &io::Error) -> Status {
    let unsupported = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS));
    if unsupported && matches!(work, Work::Ranges(_)) {
        Status::Unsupp
    } else {
        Status::IoErr
    }
}
