//! Serves a pair of queues and the tap, in one thread.
//!
//! Each direction waits for exactly one thing at a time. The tap is watched only for what is waited for, so that neither a
//! full tap nor a guest without buffers makes the thread spin.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::EventSet;

use super::counters::Counters;
use super::offload::{
    ETHERNET_BYTES, GSO_NONE, GSO_TYPE_OFFSET, HEADER_BYTES, MAX_FRAME, VLAN_BYTES, feature,
};
use super::tap::{Tap, TapFailure};
use super::window::Window;
use crate::GuestRam;
use crate::limiter::Limiter;
use crate::virtio::VirtioInterrupt;
use crate::virtio::chain::Buffers;
use crate::virtio::queue::{Broken, Taken, WorkerQueue};
use crate::virtio::segments::Segments;
use crate::worker::{Handler, Interest};

/// Frames of a direction that are served before other descriptors have their turn.
const BUDGET: usize = 128;

/// What a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// A kick: for buffers (rx), for frames (tx).
    Kick,
    /// The tap: for frames (rx), for room (tx).
    Tap,
    /// The limiter's tokens.
    Tokens,
    /// Nothing comes any more: the queue cannot be trusted.
    Reset,
}

impl Wait {
    /// Whether it has come with an event of `fd`.
    fn is_over(self, fd: RawFd, kick: &WorkerQueue, tokens: &Limiter, tap_ready: bool) -> bool {
        match self {
            Self::Kick => fd == kick.kick(),
            Self::Tap => tap_ready,
            Self::Tokens => fd == tokens.as_raw_fd(),
            Self::Reset => false,
        }
    }
}

/// What the driver's choice of features means for the worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// A frame may fill several buffers.
    merged: bool,
    /// Room that a frame may need, with its header.
    wanted: usize,
    /// Longest frame, with header, that is not segmented (virtio 1.3 §5.1.4.1), if the driver knows the MTU.
    longest: Option<usize>,
}

impl Rules {
    pub fn new(features: u64, mtu: Option<u16>) -> Self {
        let has = |bits| features & bits != 0;
        let with_headers = |mtu| HEADER_BYTES + VLAN_BYTES + usize::from(mtu);
        let wanted = if has(feature::LARGE) {
            MAX_FRAME
        } else {
            with_headers(mtu.unwrap_or(1500))
        };
        let known = mtu.filter(|_| has(feature::MTU));
        Self {
            merged: has(feature::MRG_RXBUF),
            wanted,
            longest: known.map(with_headers),
        }
    }
}

/// What the worker owns.
pub(super) struct NetHandler {
    pub name: Box<str>,
    pub tap: Arc<Tap>,
    pub rx: Rx,
    pub tx: Tx,
    pub memory: GuestRam,
    pub interrupt: Arc<dyn VirtioInterrupt>,
    pub rules: Rules,
    pub counters: Arc<Counters>,
    /// What the tap is watched for; `None` before the worker starts, and once the tap is gone.
    pub watched: Option<EventSet>,
}

/// To the guest.
pub(super) struct Rx {
    pub queue: WorkerQueue,
    pub limiter: Limiter,
    window: Window,
    wait: Wait,
}

/// From the guest.
pub(super) struct Tx {
    pub queue: WorkerQueue,
    pub limiter: Limiter,
    buffers: Buffers,
    segments: Segments,
    wait: Wait,
}

/// What became of a frame from the guest.
enum Sent {
    Done,
    /// It is to be sent later, when this has come.
    Later(Wait),
}

impl Rx {
    pub fn new(queue: WorkerQueue, limiter: Limiter) -> Self {
        Self {
            queue,
            limiter,
            window: Window::default(),
            wait: Wait::Kick,
        }
    }
}

impl Tx {
    pub fn new(queue: WorkerQueue, limiter: Limiter) -> Self {
        Self {
            queue,
            limiter,
            buffers: Buffers::default(),
            segments: Segments::default(),
            wait: Wait::Kick,
        }
    }
}

impl NetHandler {
    fn serve_rx(&mut self) {
        self.rx.wait = self.rx_rounds().unwrap_or_else(|broken| {
            self.rx.queue.give_up(broken, &self.interrupt);
            Wait::Reset
        });
    }

    /// Reads frames into the guest's buffers. Returns what there is to wait for.
    fn rx_rounds(&mut self) -> Result<Wait, Broken> {
        let now = Instant::now();
        let rules = self.rules;
        self.rx.queue.disable_kicks(&self.memory)?;
        for _ in 0..BUDGET {
            let (rx, memory) = (&mut self.rx, &self.memory);
            let malformed = |why: &str| malformed(&self.counters, &self.name, why);
            let queue = &mut rx.queue;
            let window = &mut rx.window;
            if !window.fill(queue, memory, rules.merged, rules.wanted, &malformed)? {
                if queue.enable_kicks(memory)? {
                    queue.disable_kicks(memory)?;
                    continue;
                }
                return Ok(Wait::Kick);
            }
            if !rx.limiter.may_take(0, now) {
                return Ok(Wait::Tokens);
            }
            match read_frame(&self.tap, window) {
                Ok(length) => self.receive(length, now)?,
                Err(TapFailure::Busy) => return Ok(Wait::Tap),
                Err(TapFailure::Lost(error)) => self.drop_rx(&error),
            }
        }
        // The tap is watched level-triggered.
        Ok(Wait::Tap)
    }

    /// Gives the guest the frame that was read into its buffers.
    fn receive(&mut self, length: usize, now: Instant) -> Result<(), Broken> {
        let Some(bytes) = length.checked_sub(HEADER_BYTES).filter(|&bytes| bytes > 0) else {
            self.drop_rx(&"it is not even a header");
            return Ok(());
        };
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.rx.limiter.spend(bytes, now);
        let window = &mut self.rx.window;
        if length > window.room() {
            self.drop_rx(&"it is larger than the guest's buffers");
            return Ok(());
        }
        let whole = window.header().get(GSO_TYPE_OFFSET) == Some(&GSO_NONE);
        if whole && self.rules.longest.is_some_and(|longest| length > longest) {
            self.drop_rx(&"it is larger than the MTU");
            return Ok(());
        }
        self.counters.rx_frames.add(1);
        self.counters.rx_bytes.add(bytes);
        window.deliver(length, &mut self.rx.queue, &self.memory)
    }

    fn drop_rx(&self, why: &dyn std::fmt::Display) {
        let what = "a frame for the guest was dropped";
        Counters::tell(&self.counters.rx_dropped, &self.name, what, why);
    }

    fn serve_tx(&mut self) {
        self.tx.wait = self.tx_rounds().unwrap_or_else(|broken| {
            self.tx.queue.give_up(broken, &self.interrupt);
            Wait::Reset
        });
    }

    /// Writes the guest's frames to the tap. Returns what there is to wait for.
    fn tx_rounds(&mut self) -> Result<Wait, Broken> {
        let now = Instant::now();
        self.tx.queue.disable_kicks(&self.memory)?;
        for _ in 0..BUDGET {
            let (tx, memory) = (&mut self.tx, &self.memory);
            match tx.queue.take(memory, &mut tx.buffers)? {
                Taken::Chain(head) => match self.send(now) {
                    Sent::Done => self.tx.queue.give_back(&self.memory, head, 0)?,
                    Sent::Later(wait) => {
                        self.tx.queue.put_back(1);
                        return Ok(wait);
                    }
                },
                Taken::Malformed(why) => malformed(&self.counters, &self.name, &why),
                Taken::Nothing => {
                    if !tx.queue.enable_kicks(memory)? {
                        return Ok(Wait::Kick);
                    }
                    tx.queue.disable_kicks(memory)?;
                }
            }
        }
        self.tx.queue.again();
        Ok(Wait::Kick)
    }

    /// Sends the frame in `self.tx.buffers`.
    fn send(&mut self, now: Instant) -> Sent {
        let tx = &mut self.tx;
        let length = usize::try_from(tx.buffers.readable_bytes()).unwrap_or(usize::MAX);
        tx.segments.clear();
        let resolved = tx.buffers.readable_segments(&self.memory, &mut tx.segments);
        let sizes = HEADER_BYTES + ETHERNET_BYTES..=MAX_FRAME;
        if resolved.is_err() || tx.buffers.writable_bytes() > 0 || !sizes.contains(&length) {
            let why = "a frame is too short, too long, not readable, or not in guest RAM";
            malformed(&self.counters, &self.name, why);
            return Sent::Done;
        }
        let bytes = u64::try_from(length.saturating_sub(HEADER_BYTES)).unwrap_or(u64::MAX);
        if !tx.limiter.may_take(bytes, now) {
            return Sent::Later(Wait::Tokens);
        }
        // SAFETY: the segments are in guest RAM, which `self.memory` keeps mapped and nobody has references into.
        match unsafe { self.tap.write(tx.segments.remaining()) } {
            Ok(_) => {
                self.counters.tx_frames.add(1);
                self.counters.tx_bytes.add(bytes);
            }
            Err(TapFailure::Busy) => return Sent::Later(Wait::Tap),
            Err(TapFailure::Lost(error)) => {
                let what = "a frame of the guest was dropped";
                Counters::tell(&self.counters.tx_dropped, &self.name, what, &error);
            }
        }
        tx.limiter.spend(bytes, now);
        Sent::Done
    }

    /// The tap is gone: its interface was removed.
    fn lose_tap(&mut self, interest: &Interest<'_>) {
        if self.watched.take().is_some() {
            tracing::error!(
                "{}: the tap device is gone; the guest has no network until it is started again",
                self.name
            );
            if let Err(error) = interest.remove(self.tap.as_raw_fd()) {
                tracing::error!("{}: cannot stop watching the tap: {error}", self.name);
            }
            // What waits for room is dropped now.
            if self.tx.wait == Wait::Tap {
                self.serve_tx();
            }
        }
    }

    /// Watches the tap for what is waited for.
    fn watch(&mut self, interest: &Interest<'_>) {
        let wanted = self.wanted();
        if self.watched.is_some_and(|watched| watched != wanted) {
            match interest.modify(self.tap.as_raw_fd(), wanted) {
                Ok(()) => self.watched = Some(wanted),
                Err(error) => tracing::error!("{}: cannot watch the tap: {error}", self.name),
            }
        }
    }

    fn wanted(&self) -> EventSet {
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, self.rx.wait == Wait::Tap);
        wanted.set(EventSet::OUT, self.tx.wait == Wait::Tap);
        wanted
    }
}

fn malformed(counters: &Counters, name: &str, why: &str) {
    let what = "the guest sent something malformed";
    Counters::tell(&counters.malformed, name, what, &why);
}

/// Reads a frame into the window. Its length is more than the window's room if it did not fit.
fn read_frame(tap: &Tap, window: &mut Window) -> Result<usize, TapFailure> {
    // A tap cuts off silently what has no room. One byte more than there is room for tells.
    let mut guard = [0_u8; 1];
    let segments = window.segments();
    let count = segments.remaining().len();
    // The window leaves a place for it.
    let _ = segments.push(&VolatileSlice::from(guard.as_mut_slice()));
    // SAFETY: the segments are in guest RAM, which the handler keeps mapped and nobody has references into, and `guard`, which
    // is not looked at and lives until the call has returned.
    let result = unsafe { tap.read(segments.remaining()) };
    segments.keep(count);
    result
}

impl Handler for NetHandler {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for queue in [&self.rx.queue, &self.tx.queue] {
            // A kick from before the worker was there, or before a snapshot, may be lost: look once in any case.
            queue.active.kick.write(1)?;
            interest.add(queue.kick(), edges)?;
        }
        interest.add(self.rx.limiter.as_raw_fd(), edges)?;
        interest.add(self.tx.limiter.as_raw_fd(), edges)?;
        interest.add(self.tap.as_raw_fd(), EventSet::empty())?;
        self.watched = Some(EventSet::empty());
        Ok(())
    }

    fn ready(&mut self, fd: RawFd, events: EventSet, interest: &Interest<'_>) {
        #[cfg(test)]
        self.counters.turns.add(1);
        let tap = fd == self.tap.as_raw_fd();
        let tap_has = |what| tap && events.contains(what);
        let (rx, tx) = (&self.rx, &self.tx);
        let rx = (rx.wait).is_over(fd, &rx.queue, &rx.limiter, tap_has(EventSet::IN));
        let tx = (tx.wait).is_over(fd, &tx.queue, &tx.limiter, tap_has(EventSet::OUT));
        if rx {
            self.serve_rx();
        }
        if tx {
            self.serve_tx();
        }
        if tap && events.intersects(EventSet::ERROR | EventSet::HANG_UP) {
            self.lose_tap(interest);
        }
        self.watch(interest);
        self.rx.queue.tell(&self.memory, &self.interrupt);
        self.tx.queue.tell(&self.memory, &self.interrupt);
    }

    fn finish(&mut self) {
        self.rx.window.put_back(&mut self.rx.queue);
    }
}
