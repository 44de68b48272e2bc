//! What a client sends on `In` and its reader has not taken yet: never more than the window.

use std::collections::VecDeque;

use fief_agent_proto::{RemoteError, WINDOW};

use super::command::protocol;

/// Credit is given back in such steps.
const CREDIT_STEP: u32 = WINDOW / 4;

#[derive(Debug, Default)]
pub struct Inbox {
    /// Received and not yet passed on.
    pending: VecDeque<u8>,
    received: u64,
    ended: bool,
    /// Bytes of the window in use, and those of them that can be given back.
    unreturned: u32,
    to_return: u32,
    /// Nobody takes it any more; what comes is dropped.
    closed: bool,
}

impl Inbox {
    /// Takes bytes in.
    ///
    /// # Errors
    /// More than the window, or behind the end.
    pub fn data(&mut self, payload: &[u8]) -> Result<(), RemoteError> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if self.ended || length > WINDOW - self.unreturned {
            return Err(protocol("input beyond its window or its end"));
        }
        self.unreturned += length;
        self.received += u64::from(length);
        if !self.closed {
            self.pending.extend(payload);
        }
        Ok(())
    }

    /// The client ended it.
    ///
    /// # Errors
    /// The count does not match what arrived.
    pub fn end(&mut self, count: Option<u64>) -> Result<(), RemoteError> {
        if count != Some(self.received) || self.ended {
            return Err(protocol("the end of the input does not match what arrived"));
        }
        self.ended = true;
        Ok(())
    }

    /// Adds a byte that is not the client's.
    pub fn add(&mut self, byte: u8) {
        if !self.closed {
            self.pending.push_back(byte);
        }
    }

    /// Nobody takes it any more.
    pub fn close(&mut self) {
        self.closed = true;
        self.pending.clear();
    }

    /// Whether the client may send more, and somebody would take it.
    pub fn is_open(&self) -> bool {
        !self.ended && !self.closed
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// What to pass on next.
    pub fn next(&self) -> &[u8] {
        self.pending.as_slices().0
    }

    /// `count` bytes of [`next`](Self::next) were passed on.
    pub fn passed_on(&mut self, count: usize) {
        self.pending.drain(..count);
        // An added byte is no part of the window.
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.to_return = self.to_return.saturating_add(count).min(self.unreturned);
    }

    /// Credit that is to be given back now.
    pub fn credit_due(&mut self) -> Option<u32> {
        if self.to_return < CREDIT_STEP || !self.is_open() {
            return None;
        }
        self.unreturned -= self.to_return;
        Some(std::mem::take(&mut self.to_return))
    }
}
