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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use vm_memory::VolatileSlice;

    use super::*;

    #[test]
    fn what_never_empties_does_not_grow_and_keeps_its_order() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut outbound = Outbound::default();
        let (mut waiting, mut pushed, mut read) = (0, 0_u32, 0_u32);
        let mut push = |outbound: &mut Outbound, count: usize| {
            let mut bytes: Vec<u8> = (0..count as u32)
                .map(|i| ((pushed + i) / 3) as u8)
                .collect();
            pushed += count as u32;
            let mut payload = Segments::default();
            let slice = VolatileSlice::from(bytes.as_mut_slice());
            payload.push(&slice).unwrap();
            outbound.push(&payload, count);
        };
        for _ in 0..2000 {
            // The reader takes less than comes, until 64 KiB wait; then as much.
            let room = (64 << 10) - waiting;
            push(&mut outbound, room.min(9000));
            waiting += room.min(9000);
            waiting -= outbound.flush(&ours).unwrap();
            let mut bytes = vec![0; 7000];
            let count = theirs.read(&mut bytes).unwrap();
            for byte in &bytes[..count] {
                assert_eq!(*byte, (read / 3) as u8);
                read += 1;
            }
            assert!(outbound.bytes.len() <= 64 << 10);
        }
        assert!(!outbound.is_empty() && read > 10_000_000);
        assert_eq!(outbound.clear(), waiting);
        assert!(outbound.is_empty() && outbound.bytes.capacity() == 0);
    }
}
