//! Credit flow control (virtio 1.3 §5.10.6.3): nobody sends more than the other end has room for.
//!
//! All counters are free-running and wrap at 2^32.

/// Size of our receive buffer of a connection: what a guest may send ahead of its host program, in bytes.
pub const BUF_ALLOC: u32 = 64 << 10;

/// What the guest is told at once that its host program has taken: half the buffer, so that neither end waits for the
/// other while there is something to do.
const UPDATE_AFTER: u32 = BUF_ALLOC / 2;

/// Room in the guest's receive buffer.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct GuestRoom {
    buf_alloc: u32,
    fwd_cnt: u32,
    /// Bytes sent to it so far.
    sent: u32,
}

impl GuestRoom {
    /// Takes over what a packet says.
    pub fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.buf_alloc = buf_alloc;
        self.fwd_cnt = fwd_cnt;
    }

    /// Bytes that may be sent now. A guest that claims to have read more than it was sent gets nothing.
    pub fn free(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.fwd_cnt);
        self.buf_alloc.saturating_sub(in_flight)
    }

    pub fn sent(&mut self, count: u32) {
        self.sent = self.sent.wrapping_add(count);
    }
}

/// Room in our receive buffer, as far as the guest knows.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct OurRoom {
    /// Bytes received so far.
    received: u32,
    /// Of these, bytes that have left our buffer: `fwd_cnt` of our packets.
    forwarded: u32,
    /// `forwarded` as the guest was told last.
    told: u32,
}

impl OurRoom {
    /// Notes that a packet of `count` bytes has come; false if the guest knew that there is no room for it.
    pub fn receive(&mut self, count: u32) -> bool {
        let ahead = u64::from(self.received.wrapping_sub(self.told));
        if ahead + u64::from(count) > u64::from(BUF_ALLOC) {
            return false;
        }
        self.received = self.received.wrapping_add(count);
        true
    }

    /// Notes that bytes have left our buffer.
    pub fn forward(&mut self, count: usize) {
        // Never more than were received, so never more than 64 KiB.
        let count = u32::try_from(count).unwrap_or(BUF_ALLOC);
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// The `fwd_cnt` of a packet that is sent now.
    pub fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.told
    }

    /// True if the guest should hear at once how much room there is again.
    pub fn worth_telling(&self) -> bool {
        self.forwarded.wrapping_sub(self.told) >= UPDATE_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_room_survives_the_wrap_of_its_counters() {
        let mut room = GuestRoom::default();
        room.update(1000, 0);
        for _ in 0..5_000_000 {
            assert_eq!(room.free(), 1000);
            room.sent(1000);
            assert_eq!(room.free(), 0);
            room.update(1000, room.sent);
        }
        assert!(u64::from(room.sent) < 5_000_000_000);
    }

    #[test]
    fn a_guest_that_lies_about_what_it_read_gets_nothing() {
        let mut room = GuestRoom::default();
        room.update(1000, 1);
        assert_eq!(room.free(), 0);
        room.update(u32::MAX, 0x8000_0000);
        room.sent(10);
        assert_eq!(room.free(), u32::MAX - 0x8000_000A);
        room.update(0, 10);
        assert_eq!(room.free(), 0);
        // A guest that shrinks its buffer under what is on its way.
        room.update(5, 0);
        assert_eq!(room.free(), 0);
    }

    #[test]
    fn our_room_is_what_the_guest_was_told_and_survives_the_wrap() {
        let mut room = OurRoom::default();
        for _ in 0..70_000 {
            assert!(room.receive(BUF_ALLOC));
            assert!(!room.receive(1));
            room.forward(BUF_ALLOC as usize / 2 - 1);
            assert!(!room.worth_telling());
            room.forward(1);
            assert!(room.worth_telling());
            // Free, but the guest does not know.
            assert!(!room.receive(1));
            room.forward(BUF_ALLOC as usize / 2);
            assert_eq!(room.tell(), room.forwarded);
            assert!(!room.worth_telling());
        }
        assert!(!room.receive(u32::MAX));
        assert!(!room.receive(BUF_ALLOC + 1));
    }
}
