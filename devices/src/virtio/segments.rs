//! Host addresses of a request's data: what the kernel is told to read or write.

use vm_memory::VolatileSlice;

/// Most segments of one vectored system call (UIO_MAXIOV, linux/uio.h).
pub(super) const MAX_SEGMENTS: usize = 1024;

/// More segments than one system call takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// The host side of a piece of guest RAM, or of a bounce buffer. The memory behind it outlives every operation on it: a
/// queue's worker keeps its `GuestRam` and its bounce buffers until the engine has completed everything.
#[derive(Default)]
pub(super) struct Segments {
    vectors: Vec<libc::iovec>,
    /// First vector that is not finished.
    first: usize,
}

// SAFETY: the pointers are to memory that is shared with the guest or owned by a bounce buffer, which moves along with
// the request; neither is tied to a thread.
unsafe impl Send for Segments {}

impl Segments {
    /// Forgets all segments and keeps the allocation.
    pub fn clear(&mut self) {
        self.vectors.clear();
        self.first = 0;
    }

    /// Room for segments without a new allocation.
    pub fn capacity(&self) -> usize {
        self.vectors.capacity()
    }

    /// Adds a segment.
    ///
    /// # Errors
    /// There are too many.
    pub fn push(&mut self, slice: &VolatileSlice<'_>) -> Result<(), TooMany> {
        if self.vectors.len() >= MAX_SEGMENTS {
            self.vectors.drain(..std::mem::take(&mut self.first));
        }
        if self.vectors.len() >= MAX_SEGMENTS {
            return Err(TooMany);
        }
        // The guard only matters for Xen, where mappings come and go; here RAM stays mapped.
        let base = slice.ptr_guard_mut().as_ptr();
        self.vectors.push(libc::iovec {
            iov_base: base.cast(),
            iov_len: slice.len(),
        });
        Ok(())
    }

    /// What is left to transfer.
    pub fn remaining(&self) -> &[libc::iovec] {
        self.vectors.get(self.first..).unwrap_or(&[])
    }

    /// Forgets all segments but the first `count` that are left.
    pub fn keep(&mut self, count: usize) {
        self.vectors.truncate(self.first.saturating_add(count));
    }

    /// Marks the next `count` bytes as transferred.
    pub fn advance(&mut self, mut count: usize) {
        while let Some(vector) = self.vectors.get_mut(self.first) {
            if count < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(count);
                vector.iov_len -= count;
                return;
            }
            count -= vector.iov_len;
            self.first += 1;
        }
    }

    /// True if all addresses are multiples of `address` and all lengths multiples of `length`, as O_DIRECT wants them.
    pub fn aligned(&self, address: usize, length: usize) -> bool {
        self.vectors
            .iter()
            .all(|v| v.iov_base.addr().is_multiple_of(address) && v.iov_len.is_multiple_of(length))
    }

    /// Copies the next bytes to transfer into `target`, as far as there are any.
    pub fn copy_to(&self, target: &mut [u8]) {
        let mut rest = target;
        for vector in self.remaining() {
            let length = vector.iov_len.min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            // SAFETY: the segment is `iov_len` bytes of mapped memory, `now` is no longer than it, and the two are
            // different memory. The guest may write meanwhile: it then gets its own mixture of old and new bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(vector.iov_base.cast(), now.as_mut_ptr(), length)
            };
            rest = later;
        }
    }

    /// Copies `source` to where the next bytes are to go.
    pub fn copy_from(&self, source: &[u8]) {
        self.copy_from_at(0, source);
    }

    /// Copies `source` to where bytes are to go after `offset` others.
    pub fn copy_from_at(&self, mut offset: usize, source: &[u8]) {
        let mut rest = source;
        for vector in self.remaining() {
            let room = vector.iov_len.saturating_sub(offset);
            let start = vector.iov_base.wrapping_byte_add(offset);
            offset = offset.saturating_sub(vector.iov_len);
            let length = room.min(rest.len());
            let (now, later) = rest.split_at(length);
            // SAFETY: as in `copy_to`, the other way round: `length` bytes from `start` on are inside the segment, and where
            // there is no room `length` is 0.
            unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), start.cast(), length) };
            rest = later;
        }
    }
}

#[cfg(test)]
mod tests;
