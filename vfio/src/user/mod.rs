//! A PCI function that another process provides: a client of vfio-user, the protocol that QEMU, SPDK and Cloud Hypervisor
//! speak ("vfio-user Protocol Specification", version 0.1).
//!
//! The process is trusted with the guest's memory, which it maps, and with nothing else. What it answers is foreign input:
//! bounded, checked, and waited for five seconds at most. Once it is gone it stays so.

mod description;
mod error;
mod exchange;
mod message;
mod negotiation;
mod shared;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE,
};
use vmm_sys_util::eventfd::EventFd;

use crate::mapping::Mapping;
use crate::region::{Region, RegionInfo};
use crate::remote::{DmaMemory, DmaSpace, Interrupt, RemoteFunction};

use description::Description;
pub use error::{Gone, UserError};
use exchange::{Connection, Reply, Request, deadline};
use message::{Body, Command, Fields};
use negotiation::Limits;

/// Bytes of a DMA_MAP or DMA_UNMAP after the header.
const DMA_MAP: u32 = 32;
const DMA_UNMAP: u32 = 24;
/// Flags of DMA_MAP: the function may read and write there.
const DMA_READ_WRITE: u32 = 3;
/// Bytes of a SET_IRQS after the header.
const SET_IRQS: u32 = 20;
/// Bytes of REGION_READ and REGION_WRITE between the header and the data.
const ACCESS: usize = 16;

/// A function of another process, and the guest memory that it reaches.
#[derive(Debug)]
pub struct UserFunction {
    connection: Connection,
    limits: Limits,
    description: Description,
    /// How many interrupts of each kind are enabled, by [`Interrupt::index`].
    enabled: [AtomicUsize; 5],
}

/// Nothing, for a place that the arrays do not have.
static NO_REGION: RegionInfo = RegionInfo {
    size: 0,
    readable: false,
    writable: false,
    mappable: Vec::new(),
    offset: 0,
};

impl UserFunction {
    /// Agrees on the protocol with the process at the other end of `stream` and asks what function it has.
    ///
    /// # Errors
    /// The process does not answer within five seconds, speaks another version, or has no PCI function.
    pub fn connect(stream: UnixStream) -> Result<Self, UserError> {
        let connection = Connection::new(stream).map_err(UserError::Socket)?;
        let deadline = deadline();
        let limits = negotiation::negotiate(&connection, deadline)?;
        let description = description::describe(&connection, deadline)?;
        Ok(Self {
            connection,
            limits,
            description,
            enabled: Default::default(),
        })
    }

    fn exchange(&self, deadline: Instant, request: Request<'_>) -> io::Result<Reply> {
        Ok(self.connection.exchange(deadline, request)?)
    }

    /// The data of the reply to an access of `length` bytes. A process that answers about another access is not talked to
    /// again.
    fn accessed<'a>(
        &self,
        command: Command,
        reply: &'a Reply,
        region: Region,
        at: u64,
        length: usize,
    ) -> io::Result<&'a [u8]> {
        let mut fields = Fields(&reply.body);
        let (offset, of, count) = (fields.u64(), fields.u32(), fields.u32());
        let count = count.and_then(|count| usize::try_from(count).ok());
        let carried = if command == Command::RegionRead {
            length
        } else {
            0
        };
        if (offset, of, count) == (Some(at), Some(region.index()), Some(length))
            && fields.0.len() == carried
        {
            return Ok(fields.0);
        }
        let gone = Gone::Nonsense(command, "it is about another access");
        Err(UserError::from(self.connection.lose(gone)).into())
    }

    fn set_irqs(
        &self,
        deadline: Instant,
        kind: Interrupt,
        flags: u32,
        start: usize,
        descriptors: &[RawFd],
    ) -> io::Result<()> {
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let body = Body::new().u32(SET_IRQS).u32(flags).u32(kind.index());
        let body = body.u32(small(start)).u32(small(descriptors.len()));
        let request = Request {
            command: Command::DeviceSetIrqs,
            body,
            descriptors,
            longest: 64,
        };
        self.exchange(deadline, request).map(drop)
    }

    fn enabled(&self, kind: Interrupt) -> Option<&AtomicUsize> {
        self.enabled.get(usize::try_from(kind.index()).ok()?)
    }
}

impl RemoteFunction for UserFunction {
    fn region(&self, region: Region) -> &RegionInfo {
        let regions = &self.description.regions;
        regions.get(region.place()).unwrap_or(&NO_REGION)
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let deadline = deadline();
        let mut at = offset;
        for part in data.chunks_mut(self.limits.data) {
            let count = u32::try_from(part.len()).map_err(|_| invalid())?;
            let body = Body::new().u64(at).u32(region.index()).u32(count);
            let longest = ACCESS.saturating_add(part.len());
            let request = Request::new(Command::RegionRead, body, longest);
            let reply = self.exchange(deadline, request)?;
            let read = self.accessed(Command::RegionRead, &reply, region, at, part.len())?;
            part.copy_from_slice(read);
            at = at.checked_add(u64::from(count)).ok_or_else(invalid)?;
        }
        Ok(())
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        let deadline = deadline();
        let mut at = offset;
        for part in data.chunks(self.limits.data) {
            let count = u32::try_from(part.len()).map_err(|_| invalid())?;
            let body = Body::new().u64(at).u32(region.index()).u32(count);
            let request = Request::new(Command::RegionWrite, body.bytes(part), ACCESS);
            let reply = self.exchange(deadline, request)?;
            self.accessed(Command::RegionWrite, &reply, region, at, part.len())?;
            at = at.checked_add(u64::from(count)).ok_or_else(invalid)?;
        }
        Ok(())
    }

    fn map(&self, region: Region, area: Range<u64>) -> io::Result<Mapping> {
        let info = self.region(region);
        let within = |whole: &Range<u64>| whole.start <= area.start && area.end <= whole.end;
        let size = area.end.checked_sub(area.start).ok_or_else(invalid)?;
        let file = self.description.files.get(region.place());
        let file = file.and_then(Option::as_ref).ok_or_else(invalid)?;
        if !info.mappable.iter().any(within) {
            return Err(invalid());
        }
        let start = info.offset.checked_add(area.start).ok_or_else(invalid)?;
        let end = start.checked_add(size).ok_or_else(invalid)?;
        shared::reaches(file, end)?;
        Mapping::new(file, start, size, area.start, info.writable)
    }

    fn interrupts(&self, kind: Interrupt) -> u16 {
        let place = usize::try_from(kind.index()).ok();
        let count = place.and_then(|place| self.description.interrupts.get(place));
        count.copied().unwrap_or(0)
    }

    fn enable(&self, kind: Interrupt, events: &[&EventFd]) -> io::Result<usize> {
        let deadline = deadline();
        let count = events.len().min(usize::from(self.interrupts(kind)));
        let before = self.enabled(kind).ok_or_else(invalid)?;
        if before.load(Ordering::Relaxed) > count {
            // Those beyond the new ones would stay.
            self.disable(kind)?;
        }
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let all: Vec<RawFd> = events
            .iter()
            .take(count)
            .map(|one| one.as_raw_fd())
            .collect();
        let mut start = 0_usize;
        for some in all.chunks(self.limits.descriptors) {
            if let Err(error) = self.set_irqs(deadline, kind, flags, start, some) {
                // Some may be enabled; should this fail as well, the function is gone.
                let _ = self.disable(kind);
                return Err(error);
            }
            start = start.saturating_add(some.len());
        }
        before.store(count, Ordering::Relaxed);
        Ok(count)
    }

    fn disable(&self, kind: Interrupt) -> io::Result<()> {
        // Servers refuse what is about a kind that they do not have.
        if self.interrupts(kind) == 0 {
            return Ok(());
        }
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_irqs(deadline(), kind, flags, 0, &[])?;
        if let Some(enabled) = self.enabled(kind) {
            enabled.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    fn unmask_by(&self, event: &EventFd) -> io::Result<()> {
        if self.interrupts(Interrupt::Intx) == 0 {
            return Err(invalid());
        }
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
        let descriptors = [event.as_raw_fd()];
        self.set_irqs(deadline(), Interrupt::Intx, flags, 0, &descriptors)
    }

    fn can_reset(&self) -> bool {
        self.description.can_reset
    }

    fn reset(&self) -> io::Result<()> {
        let request = Request::new(Command::DeviceReset, Body::new(), 64);
        self.exchange(deadline(), request).map(drop)
    }

    fn lifeline(&self) -> Option<BorrowedFd<'_>> {
        Some(self.connection.lifeline())
    }
}

impl DmaSpace for UserFunction {
    /// The process gets the file, all of it, and keeps it: only memory that it may read and write at all times. The file is a
    /// memfd that can be sealed, and is afterwards.
    unsafe fn map(&self, iova: u64, memory: DmaMemory<'_>) -> io::Result<()> {
        let (file, offset) = memory.file.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the memory is no file that a device process can share",
            )
        })?;
        shared::secure(file)?;
        let body = Body::new().u32(DMA_MAP).u32(DMA_READ_WRITE);
        let request = Request {
            command: Command::DmaMap,
            body: body.u64(offset).u64(iova).u64(memory.size),
            descriptors: &[file.as_raw_fd()],
            longest: 64,
        };
        self.exchange(deadline(), request).map(drop)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let body = Body::new().u32(DMA_UNMAP).u32(0).u64(iova).u64(size);
        let request = Request::new(Command::DmaUnmap, body, 64);
        self.exchange(deadline(), request).map(drop)
    }
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}
