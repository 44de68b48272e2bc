//! Serves the three queues and the sockets, in one thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::counters::Counters;
use super::muxer::Muxer;
use super::packet::{HEADER_BYTES, HEADER_BYTES_U32, Header};
use crate::GuestRam;
use crate::virtio::VirtioInterrupt;
use crate::virtio::chain::Buffers;
use crate::virtio::queue::{Broken, Taken, WorkerQueue};
use crate::virtio::segments::Segments;
use crate::worker::{Handler, Interest};

/// Packets of a queue that are served before other descriptors have their turn.
const BUDGET: usize = 256;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.3 §5.10.6.7).
const TRANSPORT_RESET: [u8; TRANSPORT_RESET_BYTES as usize] = 0_u32.to_le_bytes();
const TRANSPORT_RESET_BYTES: u32 = 4;

/// Asks the guest's driver to forget all connections, from any thread.
#[derive(Debug)]
pub(super) struct ResetRequest {
    asked: AtomicBool,
    wake: EventFd,
}

impl ResetRequest {
    /// # Errors
    /// The eventfd cannot be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            asked: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    pub fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        // A full counter says the same.
        let _ = self.wake.write(1);
    }

    /// Nobody is there who could forget anything.
    pub fn withdraw(&self) {
        self.asked.store(false, Ordering::Release);
    }
}

/// What the worker owns.
pub(super) struct VsockHandler {
    pub muxer: Muxer,
    /// To the guest.
    pub rx: WorkerQueue,
    /// From the guest.
    pub tx: WorkerQueue,
    pub event: Option<WorkerQueue>,
    pub memory: GuestRam,
    pub interrupt: Arc<dyn VirtioInterrupt>,
    pub counters: Arc<Counters>,
    pub reset_request: Arc<ResetRequest>,
    /// The event is still to be sent. It stays so over a pause.
    pub reset_pending: bool,
    pub buffers: Buffers,
    pub segments: Segments,
}

impl VsockHandler {
    /// Takes packets from the guest.
    fn serve_tx(&mut self) {
        if self.tx.is_broken() {
            return;
        }
        match self.tx_rounds() {
            Ok(true) => self.tx.again(),
            Ok(false) => {}
            Err(broken) => self.tx.give_up(broken, &self.interrupt),
        }
    }

    /// True if there is more.
    fn tx_rounds(&mut self) -> Result<bool, Broken> {
        self.tx.disable_kicks(&self.memory)?;
        for _ in 0..BUDGET {
            match self.tx.take(&self.memory, &mut self.buffers)? {
                Taken::Chain(head) => {
                    self.packet();
                    self.tx.give_back(&self.memory, head, 0)?;
                }
                Taken::Malformed(why) => self.counters.malformed(&why),
                Taken::Nothing => {
                    if !self.tx.enable_kicks(&self.memory)? {
                        return Ok(false);
                    }
                    self.tx.disable_kicks(&self.memory)?;
                }
            }
        }
        Ok(true)
    }

    /// The packet in `self.buffers`.
    fn packet(&mut self) {
        let memory = &self.memory;
        if self.buffers.writable_bytes() > 0 {
            return self
                .counters
                .malformed(&"a packet of the guest has bytes for the device to write");
        }
        let Ok(bytes) = self.buffers.take_readable::<HEADER_BYTES>(memory) else {
            return self
                .counters
                .malformed(&"a packet has no whole header in guest RAM");
        };
        let header = Header::parse(&bytes);
        self.segments.clear();
        let whole = u64::from(header.len) <= self.buffers.readable_bytes();
        let resolved = self.buffers.readable_segments(memory, &mut self.segments);
        if whole && resolved.is_ok() {
            self.muxer.deliver(&header, &mut self.segments);
        } else {
            self.counters.malformed(
                &"a packet's payload is shorter than its header says, or not in guest RAM",
            );
            self.muxer.deliver_malformed(&header);
        }
    }

    /// Sends packets to the guest.
    fn serve_rx(&mut self) {
        if self.rx.is_broken() {
            return;
        }
        match self.rx_rounds() {
            Ok(true) => self.rx.again(),
            Ok(false) => {}
            Err(broken) => self.rx.give_up(broken, &self.interrupt),
        }
    }

    /// True if there is more and there are buffers for it.
    fn rx_rounds(&mut self) -> Result<bool, Broken> {
        // Kicks are asked for only when there is a packet and no buffer.
        self.rx.disable_kicks(&self.memory)?;
        // A chain that no packet was put into yet, with its room for payload.
        let mut free: Option<(u16, usize)> = None;
        let mut more = true;
        for _ in 0..BUDGET {
            if !self.muxer.has_packets() {
                more = false;
                break;
            }
            let Some((head, room)) = free else {
                match self.rx.take(&self.memory, &mut self.buffers)? {
                    Taken::Chain(head) => free = self.open(head)?,
                    Taken::Malformed(why) => self.counters.malformed(&why),
                    Taken::Nothing => {
                        if !self.rx.enable_kicks(&self.memory)? {
                            return Ok(false);
                        }
                        self.rx.disable_kicks(&self.memory)?;
                    }
                }
                continue;
            };
            if let Some(header) = self.muxer.next_packet(&self.segments, room) {
                free = None;
                self.send(head, &header)?;
            }
        }
        if free.is_some() {
            self.rx.put_back(1);
        }
        Ok(more)
    }

    /// Makes the buffer in `self.buffers` ready for a packet; `None` if it cannot take one and was returned.
    fn open(&mut self, head: u16) -> Result<Option<(u16, usize)>, Broken> {
        self.segments.clear();
        let room = self.buffers.writable_bytes();
        let resolved = self
            .buffers
            .writable_segments(&self.memory, &mut self.segments);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        match room.checked_sub(HEADER_BYTES) {
            Some(room) if room > 0 && resolved.is_ok() && self.buffers.readable_bytes() == 0 => {
                self.segments.advance(HEADER_BYTES);
                Ok(Some((head, room)))
            }
            _ => {
                self.counters.malformed(
                    &"a buffer for a packet is too small, not writable, or not in guest RAM",
                );
                self.rx.give_back(&self.memory, head, 0)?;
                Ok(None)
            }
        }
    }

    /// Gives the guest the packet whose payload is in its buffer already.
    fn send(&mut self, head: u16, header: &Header) -> Result<(), Broken> {
        let written = self.buffers.write(&self.memory, &header.bytes());
        debug_assert!(written.is_ok(), "the whole buffer was in guest RAM");
        let length = header.len.saturating_add(HEADER_BYTES_U32);
        self.rx.give_back(&self.memory, head, length)
    }

    /// Tells the driver of a transport reset, if there is one to tell of.
    fn serve_event(&mut self) {
        if self.reset_request.asked.swap(false, Ordering::AcqRel) {
            self.muxer.forget_guest();
            self.reset_pending = true;
        }
        let Some(event) = self.event.as_mut().filter(|event| !event.is_broken()) else {
            return;
        };
        for _ in 0..BUDGET {
            if !self.reset_pending {
                return;
            }
            let result = event.take(&self.memory, &mut self.buffers);
            let result = result.and_then(|taken| match taken {
                Taken::Chain(head) => {
                    let fits = self.buffers.readable_bytes() == 0
                        && self.buffers.write(&self.memory, &TRANSPORT_RESET).is_ok();
                    self.reset_pending = !fits;
                    if !fits {
                        self.counters.malformed(&"a buffer for an event takes none");
                    }
                    let length = if fits { TRANSPORT_RESET_BYTES } else { 0 };
                    event.give_back(&self.memory, head, length)?;
                    Ok(true)
                }
                Taken::Malformed(why) => {
                    self.counters.malformed(&why);
                    Ok(true)
                }
                Taken::Nothing => event.enable_kicks(&self.memory),
            });
            match result {
                Ok(true) => {}
                Ok(false) => return,
                Err(broken) => return event.give_up(broken, &self.interrupt),
            }
        }
        event.again();
    }

    fn tell(&mut self) {
        let queues = [Some(&mut self.rx), Some(&mut self.tx), self.event.as_mut()];
        for queue in queues.into_iter().flatten() {
            queue.tell(&self.memory, &self.interrupt);
        }
    }
}

impl Handler for VsockHandler {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let queues = [Some(&self.rx), Some(&self.tx), self.event.as_ref()];
        for queue in queues.into_iter().flatten() {
            // A kick from before the worker was there, or before a snapshot, may be lost: look once in any case.
            queue.active.kick.write(1)?;
            interest.add(queue.kick(), edges)?;
        }
        interest.add(self.reset_request.wake.as_raw_fd(), edges)?;
        self.muxer.register(interest)
    }

    fn ready(&mut self, fd: RawFd, events: EventSet, interest: &Interest<'_>) {
        #[cfg(test)]
        self.counters.turns.add(1);
        if fd == self.tx.kick() {
            self.serve_tx();
        } else {
            self.muxer.ready(fd, events);
        }
        self.serve_event();
        self.serve_rx();
        self.muxer.end_turn(interest);
        self.tell();
    }
}
