//! A function that lives in this process, and a machine around it, for tests.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fief_devices::irq::{ExternalVector, MsiAllocator, MsiMessage, MsiVector, ResampledLine};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::mapping::{Mapping, MemorySlots, PAGE};
use crate::passthrough::Platform;
use crate::region::{Region, RegionInfo};
use crate::remote::{DmaMemory, DmaSpace, Interrupt, RemoteFunction};

/// A function whose registers are plain memory.
pub struct FakeFunction {
    pub config: Mutex<Vec<u8>>,
    regions: Vec<RegionInfo>,
    /// All BARs, one after another.
    memory: File,
    pub counts: [u16; 5],
    /// What is enabled: the kind and how many.
    pub enabled: Mutex<Option<(Interrupt, usize)>>,
    /// The events of what is enabled.
    events: Mutex<Vec<EventFd>>,
    unmask: Mutex<Option<EventFd>>,
    pub resettable: bool,
    pub resets: AtomicUsize,
    /// Reads and writes of BARs that got here.
    pub accesses: AtomicUsize,
    /// Everything fails from now on.
    pub gone: AtomicBool,
}

/// Room of each BAR in the file.
const ROOM: u64 = 16 << 20;

impl FakeFunction {
    /// A function with this configuration space and BARs of these sizes, of which memory can be mapped whole.
    pub fn new(config: Vec<u8>, sizes: &[(Region, u64)]) -> Self {
        let regions = Region::ALL.map(|region| {
            let size = sizes.iter().find(|(r, _)| *r == region);
            let size = match region {
                Region::Config => config.len() as u64,
                _ => size.map_or(0, |(_, size)| *size),
            };
            let low = match region {
                Region::Bar(bar) => config[0x10 + 4 * usize::from(bar)],
                Region::Rom | Region::Config => 1,
            };
            RegionInfo {
                size,
                readable: true,
                writable: region != Region::Rom,
                mappable: (low & 1 == 0 && size > 0)
                    .then_some(0..size)
                    .into_iter()
                    .collect(),
                offset: ROOM * region.place() as u64,
            }
        });
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(ROOM * 8).unwrap();
        Self {
            config: Mutex::new(config),
            regions: regions.to_vec(),
            memory,
            counts: [1, 32, 2048, 1, 1],
            enabled: Mutex::default(),
            events: Mutex::default(),
            unmask: Mutex::default(),
            resettable: true,
            resets: AtomicUsize::new(0),
            accesses: AtomicUsize::new(0),
            gone: AtomicBool::new(false),
        }
    }

    fn alive(&self) -> io::Result<()> {
        match self.gone.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    /// Does what the hardware does: interrupt `index` of what is enabled.
    pub fn raise(&self, index: usize) {
        self.events.lock().unwrap()[index].write(1).unwrap();
    }

    /// Whether somebody asked for INTx to be unmasked.
    pub fn unmasked(&self) -> bool {
        let unmask = self.unmask.lock().unwrap();
        unmask.as_ref().is_some_and(|event| event.read().is_ok())
    }

    pub fn command(&self) -> u16 {
        let config = self.config.lock().unwrap();
        u16::from_le_bytes([config[4], config[5]])
    }
}

impl RemoteFunction for FakeFunction {
    fn region(&self, region: Region) -> &RegionInfo {
        &self.regions[region.place()]
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.alive()?;
        let info = self.region(region);
        assert!(info.holds(offset, data.len()), "{region:?} {offset:#x}");
        if region == Region::Config {
            let at = offset as usize;
            data.copy_from_slice(&self.config.lock().unwrap()[at..at + data.len()]);
            return Ok(());
        }
        self.accesses.fetch_add(1, Ordering::SeqCst);
        self.memory.read_exact_at(data, info.offset + offset)
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        self.alive()?;
        let info = self.region(region);
        assert!(info.holds(offset, data.len()), "{region:?} {offset:#x}");
        if region == Region::Config {
            let at = offset as usize;
            self.config.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
            return Ok(());
        }
        self.accesses.fetch_add(1, Ordering::SeqCst);
        self.memory.write_all_at(data, info.offset + offset)
    }

    fn map(&self, region: Region, area: Range<u64>) -> io::Result<Mapping> {
        let info = self.region(region);
        assert!(
            info.mappable
                .iter()
                .any(|m| m.start <= area.start && area.end <= m.end)
        );
        let offset = info.offset + area.start;
        Mapping::new(
            &self.memory,
            offset,
            area.end - area.start,
            area.start,
            true,
        )
    }

    fn interrupts(&self, kind: Interrupt) -> u16 {
        self.counts[kind.index() as usize]
    }

    fn enable(&self, kind: Interrupt, events: &[&EventFd]) -> io::Result<usize> {
        self.alive()?;
        let mut enabled = self.enabled.lock().unwrap();
        assert_eq!(*enabled, None, "one kind at a time");
        *enabled = Some((kind, events.len()));
        let events = events.iter().map(|event| event.try_clone().unwrap());
        *self.events.lock().unwrap() = events.collect();
        Ok(events_len(&self.events))
    }

    fn disable(&self, kind: Interrupt) -> io::Result<()> {
        self.alive()?;
        let was = self.enabled.lock().unwrap().take();
        assert_eq!(was.map(|(kind, _)| kind), Some(kind), "was not enabled");
        self.events.lock().unwrap().clear();
        Ok(())
    }

    fn unmask_by(&self, event: &EventFd) -> io::Result<()> {
        self.alive()?;
        assert_eq!(*self.enabled.lock().unwrap(), Some((Interrupt::Intx, 1)));
        *self.unmask.lock().unwrap() = Some(event.try_clone()?);
        Ok(())
    }

    fn can_reset(&self) -> bool {
        self.resettable
    }

    fn reset(&self) -> io::Result<()> {
        self.alive()?;
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.config.lock().unwrap()[4..6].fill(0);
        Ok(())
    }
}

fn events_len(events: &Mutex<Vec<EventFd>>) -> usize {
    events.lock().unwrap().len()
}

/// A vector as KVM has them: an event that is looked at when it is connected.
pub struct FakeVector {
    event: EventFd,
    pub connected: Mutex<Option<MsiMessage>>,
}

impl FakeVector {
    /// What the guest got since the last look.
    pub fn delivered(&self) -> Option<MsiMessage> {
        let connected = (*self.connected.lock().unwrap())?;
        self.event.read().is_ok().then_some(connected)
    }
}

impl ExternalVector for FakeVector {
    fn event(&self) -> &EventFd {
        &self.event
    }

    fn connect(&self, message: MsiMessage) -> io::Result<()> {
        *self.connected.lock().unwrap() = Some(message);
        Ok(())
    }

    fn disconnect(&self) -> io::Result<()> {
        *self.connected.lock().unwrap() = None;
        Ok(())
    }

    fn is_pending(&self) -> bool {
        // Looking takes it: put it back.
        let pending = self.event.read().is_ok();
        if pending {
            self.event.write(1).unwrap();
        }
        pending
    }

    fn clear(&self) {
        let _ = self.event.read();
    }
}

/// The wired line.
#[derive(Default)]
pub struct FakeLine {
    pub connected: Mutex<Option<(EventFd, EventFd)>>,
}

impl ResampledLine for FakeLine {
    fn gsi(&self) -> u32 {
        16
    }

    fn connect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        let events = (trigger.try_clone()?, resample.try_clone()?);
        assert!(self.connected.lock().unwrap().replace(events).is_none());
        Ok(())
    }

    fn disconnect(&self, _trigger: &EventFd, _resample: &EventFd) -> io::Result<()> {
        let was = self.connected.lock().unwrap().take();
        was.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }
}

/// What the guest reaches without an exit, and what other functions do.
#[derive(Default)]
pub struct FakeSlots {
    pub inserted: Mutex<Vec<(u32, u64, Arc<Mapping>)>>,
    pub refuse: AtomicBool,
    next: AtomicUsize,
}

impl FakeSlots {
    /// Start and size of each, in order of address.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let inserted = self.inserted.lock().unwrap();
        let mut ranges: Vec<_> = inserted.iter().map(|(_, at, m)| (*at, m.size())).collect();
        ranges.sort_unstable();
        ranges
    }
}

impl MemorySlots for FakeSlots {
    fn insert(&self, start: u64, memory: &Arc<Mapping>) -> io::Result<u32> {
        assert!(start.is_multiple_of(PAGE) && memory.size().is_multiple_of(PAGE));
        let overlaps = |(at, size): &(u64, u64)| *at < start + memory.size() && start < at + size;
        if self.refuse.load(Ordering::SeqCst) || self.ranges().iter().any(overlaps) {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let slot = self.next.fetch_add(1, Ordering::SeqCst) as u32;
        let mut inserted = self.inserted.lock().unwrap();
        inserted.push((slot, start, Arc::clone(memory)));
        Ok(slot)
    }

    fn remove(&self, slot: u32) -> io::Result<()> {
        let mut inserted = self.inserted.lock().unwrap();
        let place = inserted.iter().position(|(s, ..)| *s == slot);
        inserted.remove(place.expect("is there"));
        Ok(())
    }
}

/// An address space for DMA.
#[derive(Default)]
pub struct FakeDma(pub Mutex<Vec<(u64, u64)>>);

impl DmaSpace for FakeDma {
    unsafe fn map(&self, iova: u64, memory: DmaMemory<'_>) -> io::Result<()> {
        self.0.lock().unwrap().push((iova, memory.size));
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let mut mapped = self.0.lock().unwrap();
        let place = mapped.iter().position(|m| *m == (iova, size));
        mapped.remove(place.expect("is mapped"));
        Ok(())
    }
}

/// A machine for functions.
#[derive(Default)]
pub struct FakeMachine {
    pub slots: Arc<FakeSlots>,
    pub line: Arc<FakeLine>,
    pub dma: Arc<FakeDma>,
    pub vectors: Arc<FakeVectors>,
}

#[derive(Default)]
pub struct FakeVectors(pub Mutex<Vec<Arc<FakeVector>>>);

impl FakeMachine {
    pub fn platform(&self) -> Platform {
        Platform {
            slots: Arc::clone(&self.slots) as _,
            vectors: Arc::clone(&self.vectors) as _,
            line: Some(Arc::clone(&self.line) as _),
            peers: Some(Arc::clone(&self.dma) as _),
        }
    }

    pub fn vector(&self, index: usize) -> Arc<FakeVector> {
        Arc::clone(&self.vectors.0.lock().unwrap()[index])
    }
}

impl MsiAllocator for FakeVectors {
    fn allocate(&self, _count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn allocate_external(&self, count: u16) -> io::Result<Vec<Arc<dyn ExternalVector>>> {
        let vector = |_| {
            Arc::new(FakeVector {
                event: EventFd::new(EFD_NONBLOCK).unwrap(),
                connected: Mutex::default(),
            })
        };
        let vectors: Vec<_> = (0..count).map(vector).collect();
        self.0.lock().unwrap().extend(vectors.iter().cloned());
        Ok(vectors.into_iter().map(|v| v as _).collect())
    }
}

/// A small generator of reproducible pseudo-random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
