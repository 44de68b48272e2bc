//! The guest's receive buffers that no frame was put into yet, in the order of the avail ring.
//!
//! Each chain is looked at once, also when frames fill many chains; how many are looked at ahead is bounded by what the
//! largest frame needs.

use std::collections::VecDeque;

use virtio_queue::QueueT;

use super::offload::{HEADER_BYTES, MAX_FRAME, NUM_BUFFERS_OFFSET};
use crate::GuestRam;
use crate::virtio::chain::Buffers;
use crate::virtio::queue::{Broken, WorkerQueue};
use crate::virtio::segments::{MAX_SEGMENTS, Segments};

/// A chain of the window. One without room is malformed, and goes back when it is its turn.
struct Chain {
    head: u16,
    room: usize,
}

#[derive(Default)]
pub(super) struct Window {
    chains: VecDeque<Chain>,
    segments: Segments,
    /// Room of all chains together.
    room: usize,
    /// The avail ring has no more chains.
    exhausted: bool,
    /// Most chains that the driver has ever had offered at a time.
    most: u16,
    buffers: Buffers,
    used: Vec<(u16, u32)>,
}

impl Window {
    /// Takes chains until there is room for any frame, or for one chain if frames may not be `merged` over several; and
    /// says whether a frame that needs up to `wanted` bytes may be read now.
    ///
    /// # Errors
    /// The queue cannot be trusted.
    pub fn fill(
        &mut self,
        rx: &mut WorkerQueue,
        memory: &GuestRam,
        merged: bool,
        wanted: usize,
        malformed: &dyn Fn(&str),
    ) -> Result<bool, Broken> {
        self.exhausted = false;
        // A driver that offers malformed chains for ever gets no further here than one that fills its queue.
        let size = rx.active.queue.size();
        for _ in 0..size {
            if self.is_full(merged, size) {
                break;
            }
            let Some((head, gathered)) = rx.next(memory, &mut self.buffers)? else {
                self.exhausted = true;
                break;
            };
            let room = match gathered {
                Ok(()) => self.room_of_chain(memory, malformed),
                Err(error) => {
                    malformed(&error.to_string());
                    Some(0)
                }
            };
            let Some(room) = room else {
                // Its turn comes when others have made room for its segments.
                rx.put_back(1);
                break;
            };
            self.chains.push_back(Chain { head, room });
            self.room = self.room.saturating_add(room);
            self.return_malformed(rx, memory)?;
        }
        let in_hand = rx.in_hand(memory)?;
        self.most = self.most.max(in_hand);
        // Where the driver has buffers that it can still offer it will, and no frame is lost for lack of room. One that has
        // offered all it ever had gets the frames that fit.
        let more_to_come = self.exhausted && in_hand < self.most;
        let waits = merged && self.room < wanted && more_to_come;
        Ok(self.room > 0 && !waits)
    }

    fn is_full(&self, merged: bool, queue_size: u16) -> bool {
        if !merged {
            return self.room > 0;
        }
        self.room >= MAX_FRAME || self.chains.len() >= usize::from(queue_size)
    }

    /// Adds the segments of the chain in `self.buffers` and gives its room, 0 if it is malformed; `None` if there are too many
    /// segments already.
    fn room_of_chain(&mut self, memory: &GuestRam, malformed: &dyn Fn(&str)) -> Option<usize> {
        let before = self.segments.remaining().len();
        let room = usize::try_from(self.buffers.writable_bytes()).unwrap_or(usize::MAX);
        if self.buffers.readable_bytes() > 0 || room < HEADER_BYTES {
            malformed("a buffer for frames is not writable or has no room for a header");
            return Some(0);
        }
        let resolved = self.buffers.writable_segments(memory, &mut self.segments);
        // One place is kept for the guard byte.
        let fits = self.segments.remaining().len() < MAX_SEGMENTS;
        if resolved.is_ok() && fits {
            return Some(room);
        }
        let crowded = before > 0 && self.segments.remaining().len() >= MAX_SEGMENTS - 1;
        self.segments.keep(before);
        if crowded {
            return None;
        }
        malformed("a buffer for frames is not in guest RAM");
        Some(0)
    }

    /// Returns the malformed chains whose turn it is.
    fn return_malformed(&mut self, rx: &mut WorkerQueue, memory: &GuestRam) -> Result<(), Broken> {
        while let Some(chain) = self.chains.pop_front_if(|chain| chain.room == 0) {
            rx.give_back(memory, chain.head, 0)?;
        }
        Ok(())
    }

    /// Bytes that a frame may have, with its header.
    pub fn room(&self) -> usize {
        self.room
    }

    /// The memory of the window.
    pub fn segments(&mut self) -> &mut Segments {
        &mut self.segments
    }

    /// The header of the frame that was read into the window.
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        self.segments.copy_to(&mut header);
        header
    }

    /// Gives the driver the frame of `length` bytes, with header, that was read into the window.
    ///
    /// # Errors
    /// The queue cannot be trusted.
    pub fn deliver(
        &mut self,
        length: usize,
        rx: &mut WorkerQueue,
        memory: &GuestRam,
    ) -> Result<(), Broken> {
        self.used.clear();
        let mut left = length;
        let mut passed = 0_usize;
        while left > 0 {
            self.return_malformed(rx, memory)?;
            let Some(chain) = self.chains.pop_front() else {
                break;
            };
            let now = left.min(chain.room);
            left -= now;
            passed = passed.saturating_add(chain.room);
            let now = u32::try_from(now).unwrap_or(u32::MAX);
            self.used.push((chain.head, now));
        }
        let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        self.segments
            .copy_from_at(NUM_BUFFERS_OFFSET, &count.to_le_bytes());
        self.segments.advance(passed);
        self.room = self.room.saturating_sub(passed);
        rx.give_back_all(memory, &self.used)
    }

    /// Gives all chains back to the avail ring, for whoever serves the queue next.
    pub fn put_back(&mut self, rx: &mut WorkerQueue) {
        rx.put_back(u16::try_from(self.chains.len()).unwrap_or(u16::MAX));
        *self = Self::default();
    }
}
