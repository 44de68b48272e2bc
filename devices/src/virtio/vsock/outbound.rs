//! Bytes from the guest that its host program has not taken yet.

use std::io;
use std::os::unix::net::UnixStream;

use super::unix;
use crate::virtio::segments::Segments;

/// Bytes on their way to a host program. Holds no memory while it is empty. What it may grow to is for the credit to say.
#[derive(Default)]
pub(super) struct Outbound {
    bytes: Vec<u8>,
    /// First byte that was not sent.
    start: usize,
}

impl Outbound {
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Appends the first `count` bytes of `payload`.
    pub fn push(&mut self, payload: &Segments, count: usize) {
        // Without this, bytes that are sent already would add up.
        self.bytes.drain(..self.start);
        self.start = 0;
        let old = self.bytes.len();
        self.bytes.resize(old + count, 0);
        if let Some(room) = self.bytes.get_mut(old..) {
            payload.copy_to(room);
        }
    }

    /// Sends what `stream` takes; returns how many bytes that were.
    ///
    /// # Errors
    /// The other end is gone.
    pub fn flush(&mut self, stream: &UnixStream) -> io::Result<usize> {
        let rest = self.bytes.get(self.start..).unwrap_or(&[]);
        if rest.is_empty() {
            return Ok(0);
        }
        let vector = libc::iovec {
            iov_base: rest.as_ptr().cast_mut().cast(),
            iov_len: rest.len(),
        };
        // SAFETY: the vector is `rest`, which is not touched meanwhile; sending only reads it.
        let (sent, _) = unsafe { unix::send(stream, &[vector], rest.len()) }?;
        self.start += sent;
        if self.is_empty() {
            self.clear();
        }
        Ok(sent)
    }

    /// Forgets everything; returns how many bytes that were.
    pub fn clear(&mut self) -> usize {
        let lost = self.bytes.len() - self.start;
        *self = Self::default();
        lost
    }
}
