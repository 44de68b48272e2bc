use std::collections::VecDeque;
use std::io::{self, Write};

use crate::Frame;
use crate::frame::{Channel, Kind, header};

/// Bytes waiting for a non-blocking descriptor.
///
/// It has no limit of its own: the owner looks at [`len`](Self::len) and stops producing.
#[derive(Debug, Default)]
pub struct Outbound {
    bytes: VecDeque<u8>,
}

impl Outbound {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends a frame.
    pub fn frame(&mut self, frame: &Frame) {
        self.bytes.extend(header(
            frame.stream,
            frame.kind,
            frame.channel,
            frame.payload.len(),
        ));
        self.bytes.extend(&frame.payload);
    }

    /// Appends a data frame without a copy of the payload in between; at most `MAX_PAYLOAD` bytes.
    pub fn data(&mut self, stream: u32, channel: Channel, payload: &[u8]) {
        self.bytes
            .extend(header(stream, Kind::Data, channel, payload.len()));
        self.bytes.extend(payload);
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Writes until everything is out or the descriptor would block.
    ///
    /// # Errors
    /// Whatever the writer says, except `WouldBlock` and `Interrupted`.
    pub fn flush_to(&mut self, mut writer: impl Write) -> io::Result<()> {
        while !self.bytes.is_empty() {
            match writer.write(self.bytes.as_slices().0) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => drop(self.bytes.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // A burst should not stay allocated.
        if self.bytes.capacity() > 1 << 20 {
            self.bytes.shrink_to(64 * 1024);
        }
        Ok(())
    }
}
