//! Aligned buffers for requests whose own memory O_DIRECT does not accept.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;

/// Bytes of a bounce buffer; longer requests go through it in steps.
pub(super) const BOUNCE_BYTES: usize = 128 << 10;

/// Most bounce buffers of a queue: 2 MiB in all, whatever the guest asks for. Requests beyond it wait.
const MAX_BUFFERS: usize = 16;

/// Alignment of a bounce buffer, enough for every block device (logical blocks are at most a page on x86).
const ALIGNMENT: usize = 4096;

/// A page-aligned buffer.
pub(super) struct Bounce {
    start: std::ptr::NonNull<u8>,
}

// SAFETY: the buffer is owned and not tied to a thread.
unsafe impl Send for Bounce {}

const LAYOUT: Layout = match Layout::from_size_align(BOUNCE_BYTES, ALIGNMENT) {
    Ok(layout) => layout,
    Err(_) => panic!("constants"),
};

impl Bounce {
    fn new() -> io::Result<Self> {
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(LAYOUT) };
        let start = std::ptr::NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start })
    }

    /// The buffer as the kernel wants it.
    pub fn vector(&self, length: usize) -> libc::iovec {
        libc::iovec {
            iov_base: self.start.as_ptr().cast(),
            iov_len: length.min(BOUNCE_BYTES),
        }
    }

    /// The first `length` bytes. Not to be called while the kernel transfers.
    pub fn bytes(&self, length: usize) -> &[u8] {
        // SAFETY: the allocation has BOUNCE_BYTES initialised bytes and lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), length.min(BOUNCE_BYTES)) }
    }

    /// As [`bytes`](Self::bytes), to be written.
    pub fn bytes_mut(&mut self, length: usize) -> &mut [u8] {
        // SAFETY: as in `bytes`; self is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), length.min(BOUNCE_BYTES)) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.start.as_ptr(), LAYOUT) };
    }
}

/// The bounce buffers of a queue.
#[derive(Default)]
pub(super) struct BouncePool {
    free: Vec<Bounce>,
    lent: usize,
}

impl BouncePool {
    /// A buffer, or `None` if as many as may be are in use.
    ///
    /// # Errors
    /// The host has no memory left.
    pub fn lend(&mut self) -> io::Result<Option<Bounce>> {
        if self.lent >= MAX_BUFFERS {
            return Ok(None);
        }
        let bounce = match self.free.pop() {
            Some(bounce) => bounce,
            None => Bounce::new()?,
        };
        self.lent += 1;
        Ok(Some(bounce))
    }

    /// Takes a buffer back. One is kept for the next request.
    pub fn give_back(&mut self, bounce: Bounce) {
        self.lent = self.lent.saturating_sub(1);
        if self.free.is_empty() {
            self.free.push(bounce);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_gets_sixteen_buffers_and_no_more() {
        let mut pool = BouncePool::default();
        let mut lent: Vec<_> = (0..16).map(|_| pool.lend().unwrap().unwrap()).collect();
        assert!(pool.lend().unwrap().is_none());
        assert!(
            lent.iter()
                .all(|bounce| bounce.start.addr().get().is_multiple_of(4096))
        );
        pool.give_back(lent.pop().unwrap());
        lent.push(pool.lend().unwrap().unwrap());
        assert!(pool.lend().unwrap().is_none());
        lent.drain(..).for_each(|bounce| pool.give_back(bounce));
        assert_eq!((pool.lent, pool.free.len()), (0, 1));
    }
}
