//! The root of the bus: slots, config access, and where the BARs are.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::access::{ConfigPorts, Ecam};
use super::bar::{BAR_COUNT, Bar, PLACES, Window};
use super::config::{ConfigSpace, HEADER_MULTI_FUNCTION, register};
use super::place::Place;
use super::window::{BarMap, BarWindow};
use super::{FUNCTIONS, PciFunction, SLOTS};
use crate::bus::BusDevice;

/// Where the bus may put BARs, in guest-physical addresses and port numbers. A window may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciWindows {
    /// Ports, below 0x1_0000.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub mmio32: Range<u64>,
    /// Memory above 4 GiB, large enough and aligned for the largest BAR.
    pub mmio64: Range<u64>,
}

impl PciWindows {
    fn range(&self, window: Window) -> Range<u64> {
        match window {
            Window::Io => self.io.clone(),
            Window::Mmio32 => self.mmio32.clone(),
            Window::Mmio64 => self.mmio64.clone(),
        }
    }

    /// The window of `candidates` that holds `size` bytes from `start`.
    fn holding(&self, candidates: &[Window], start: u64, size: u64) -> Option<Window> {
        let end = start.checked_add(size)?;
        let holds = |w: &&Window| {
            let range = self.range(**w);
            range.start <= start && end <= range.end
        };
        candidates.iter().find(holds).copied()
    }
}

/// Why a function cannot be put on the bus, or a state cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// All slots are taken.
    #[error("all {SLOTS} PCI slots are taken; use fewer devices, or remove one first")]
    NoFreeSlot,
    /// The slot is taken or does not exist.
    #[error("PCI slot {0} is taken or above {last}; choose another one", last = SLOTS - 1)]
    SlotTaken(u8),
    /// A device without a function 0, or with two of one number.
    #[error(
        "a PCI device with the functions {0:?} is none; give each its own number from 0 to {last}, and one of them 0",
        last = FUNCTIONS - 1
    )]
    Functions(Vec<u8>),
    /// The window has no gap of the BAR's size and alignment.
    #[error(
        "no {size:#x} bytes, so aligned, are free for BAR {bar} in {window:x?}; use fewer or smaller devices"
    )]
    NoRoom {
        bar: u8,
        size: u64,
        window: Range<u64>,
    },
    /// The state is of a bus with other functions.
    #[error(
        "the saved PCI bus has something else in slot {0}; restore with the devices it was saved with"
    )]
    OtherFunction(u8),
}

/// The configuration of the bus, for a snapshot. The functions keep their own state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciRootState {
    /// CONFIG_ADDRESS; 0 of a bus that is reached through another one's ports.
    pub config_address: u32,
    /// The functions on it.
    pub functions: Vec<FunctionState>,
}

/// The configuration space of one function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    pub slot: u8,
    pub function: u8,
    pub config: Vec<u8>,
}

/// A device on the bus.
struct Device {
    /// By function number; the first is number 0.
    functions: Vec<Arc<Occupant>>,
}

/// A function on the bus.
struct Occupant {
    place: Place,
    function: Arc<dyn PciFunction>,
    /// The configuration space as it was built, with the BARs placed.
    at_reset: ConfigSpace,
    header: Mutex<Header>,
}

/// What the root keeps of a function.
struct Header {
    space: ConfigSpace,
    /// Where each BAR answers at present.
    mapped: [Option<(Window, u64)>; PLACES],
    /// It was removed: an access that had found it before reads ones and writes nothing.
    removed: bool,
}

/// The slots of the bus, shared by the ways to configuration space.
pub(super) struct Slots {
    /// The lock of a place is held for the look-up only.
    slots: [RwLock<Option<Arc<Device>>>; SLOTS as usize],
    windows: PciWindows,
    map: Arc<BarMap>,
}

/// A bus with its host bridge's windows.
pub struct PciRoot {
    slots: Arc<Slots>,
    /// Where BARs were put, by slot.
    allocated: Mutex<Vec<(u8, Window, Range<u64>)>>,
    config_address: Arc<AtomicU32>,
}

impl PciRoot {
    /// An empty bus whose BARs go into `windows`.
    pub fn new(windows: PciWindows) -> Self {
        Self {
            slots: Arc::new(Slots {
                slots: [const { RwLock::new(None) }; SLOTS as usize],
                windows,
                map: Arc::default(),
            }),
            allocated: Mutex::default(),
            config_address: Arc::default(),
        }
    }

    /// Puts a device of one function into the lowest free slot; see [`add_device`](Self::add_device).
    ///
    /// # Errors
    /// No slot or no room for a BAR is left; nothing has been changed then.
    pub fn add(&self, function: Arc<dyn PciFunction>) -> Result<u8, PciError> {
        let mut allocated = lock(&self.allocated);
        let slot = self.free_slot()?;
        self.insert(&mut allocated, slot, vec![(0, function)])?;
        Ok(slot)
    }

    /// Puts a device with these functions, by number, into `slot`, and places their BARs. Their decoding is off, as Linux expects of functions that no firmware has enabled; Linux keeps the addresses. vCPUs
    /// may run meanwhile.
    ///
    /// # Errors
    /// The slot is taken or does not exist, no room for a BAR is left, or the numbers are not those of a device; nothing has
    /// been changed then.
    pub fn add_device(
        &self,
        slot: u8,
        functions: Vec<(u8, Arc<dyn PciFunction>)>,
    ) -> Result<(), PciError> {
        self.insert(&mut lock(&self.allocated), slot, functions)
    }

    /// The lowest free slot.
    ///
    /// # Errors
    /// All are taken.
    pub fn free_slot(&self) -> Result<u8, PciError> {
        let slot = (0..SLOTS).find(|&slot| self.slots.get(slot).is_none());
        slot.ok_or(PciError::NoFreeSlot)
    }

    fn insert(
        &self,
        allocated: &mut Vec<(u8, Window, Range<u64>)>,
        slot: u8,
        mut functions: Vec<(u8, Arc<dyn PciFunction>)>,
    ) -> Result<(), PciError> {
        functions.sort_by_key(|(number, _)| *number);
        let numbers: Vec<u8> = functions.iter().map(|(number, _)| *number).collect();
        let distinct = numbers
            .iter()
            .zip(numbers.iter().skip(1))
            .all(|(a, b)| a < b);
        let last_exists = numbers.last().is_some_and(|last| *last < FUNCTIONS);
        if numbers.first() != Some(&0) || !distinct || !last_exists {
            return Err(PciError::Functions(numbers));
        }
        let entry = self.slots.slots.get(usize::from(slot));
        let entry = entry.filter(|_| self.slots.get(slot).is_none());
        let entry = entry.ok_or(PciError::SlotTaken(slot))?;
        let several = functions.len() > 1;
        let occupants = functions.into_iter().map(|(number, function)| {
            let place = Place {
                slot,
                function: number,
            };
            self.occupant(allocated, place, function, several)
        });
        let occupants: Result<Vec<_>, _> = occupants.collect();
        let functions = occupants.inspect_err(|_| allocated.retain(|(s, ..)| *s != slot))?;
        let device = Some(Arc::new(Device { functions }));
        *entry.write().unwrap_or_else(PoisonError::into_inner) = device;
        Ok(())
    }

    /// A function with its BARs placed; those of one that does not fit stay allocated.
    fn occupant(
        &self,
        allocated: &mut Vec<(u8, Window, Range<u64>)>,
        place: Place,
        function: Arc<dyn PciFunction>,
        several: bool,
    ) -> Result<Arc<Occupant>, PciError> {
        let mut space = function.config_space();
        for index in (0..).take(PLACES) {
            if let Some(bar) = space.bar(index) {
                let address = self.allocate(allocated, (place.slot, index), bar)?;
                space.place_bar(index, address);
            }
        }
        let mut header_type = [0];
        space.read(register::HEADER_TYPE, &mut header_type);
        let [kind] = header_type.map(|byte| byte & !HEADER_MULTI_FUNCTION);
        let marked = kind | if several { HEADER_MULTI_FUNCTION } else { 0 };
        space.set(register::HEADER_TYPE, &[marked]);
        let header = Mutex::new(Header {
            space: space.clone(),
            mapped: [None; PLACES],
            removed: false,
        });
        Ok(Arc::new(Occupant {
            place,
            function,
            at_reset: space,
            header,
        }))
    }

    /// Takes the device out of `slot`, if there is one, while vCPUs may run: from now on the slot reads as ones, its
    /// BARs answer nowhere and their addresses are free, and its functions have been reset. An access that had found a
    /// function before may still end at it. False if the slot was empty.
    pub fn remove(&self, slot: u8) -> bool {
        let mut allocated = lock(&self.allocated);
        let place = self.slots.slots.get(usize::from(slot));
        let taken = place.and_then(|p| p.write().unwrap_or_else(PoisonError::into_inner).take());
        let Some(taken) = taken else { return false };
        for occupant in &taken.functions {
            let mut header = occupant.lock();
            header.removed = true;
            header.space.set(register::COMMAND, &[0; 2]);
            self.slots.remap(occupant, &mut header);
            occupant.function.reset();
        }
        allocated.retain(|(s, ..)| *s != slot);
        true
    }

    /// Whether `slot` has a device.
    pub fn is_taken(&self, slot: u8) -> bool {
        self.slots.get(slot).is_some()
    }

    /// The lowest free place in the BAR's window, aligned to the BAR's size and to pages.
    fn allocate(
        &self,
        allocated: &mut Vec<(u8, Window, Range<u64>)>,
        (slot, index): (u8, u8),
        bar: Bar,
    ) -> Result<u64, PciError> {
        let window = bar.home();
        let range = self.slots.windows.range(window);
        let align = match window {
            Window::Io => bar.size,
            Window::Mmio32 | Window::Mmio64 => bar.size.max(4096),
        };
        let mut candidate = range.start.checked_next_multiple_of(align);
        while let Some(start) = candidate {
            let Some(end) = start.checked_add(align).filter(|&end| end <= range.end) else {
                break;
            };
            let conflict = allocated
                .iter()
                .find(|(_, w, r)| *w == window && r.start < end && start < r.end);
            let Some((_, _, conflict)) = conflict else {
                allocated.push((slot, window, start..end));
                return Ok(start);
            };
            candidate = conflict.end.checked_next_multiple_of(align);
        }
        Err(PciError::NoRoom {
            bar: index,
            size: bar.size,
            window: range,
        })
    }

    /// ECAM of this bus, [`ECAM_SIZE`](super::ECAM_SIZE) bytes for the memory bus.
    pub fn ecam(&self) -> Arc<dyn BusDevice> {
        Arc::new(Ecam(Arc::clone(&self.slots)))
    }

    /// The ports from [`CONFIG_PORT`](super::CONFIG_PORT) for the port bus, with this bus as number 0 and `others` as the
    /// next ones. Linux prefers them to ECAM for the first 256
    /// bytes of configuration space when they answer, at two exits an access instead of one.
    pub fn config_ports(&self, others: &[&Self]) -> Arc<dyn BusDevice> {
        let buses = [self].into_iter().chain(others.iter().copied());
        Arc::new(ConfigPorts {
            buses: buses.map(|bus| Arc::clone(&bus.slots)).collect(),
            address: Arc::clone(&self.config_address),
        })
    }

    /// The BARs in `window`: a device for the whole of the window's range on the port or memory bus.
    pub fn window(&self, window: Window) -> Arc<dyn BusDevice> {
        Arc::new(BarWindow {
            window,
            start: self.slots.windows.range(window).start,
            map: Arc::clone(&self.slots.map),
        })
    }

    /// The windows that the bus was made with.
    pub fn windows(&self) -> &PciWindows {
        &self.slots.windows
    }

    /// Resets the bus and every function on it to how they were built. The vCPUs must stand still.
    pub fn reset(&self) {
        self.config_address.store(0, Ordering::Release);
        for occupant in self.slots.occupied() {
            let mut header = occupant.lock();
            header.space = occupant.at_reset.clone();
            self.slots.remap(&occupant, &mut header);
            occupant.function.reset();
        }
    }

    /// What a snapshot keeps of the bus. Taken while the vCPUs stand still.
    pub fn state(&self) -> PciRootState {
        PciRootState {
            config_address: self.config_address.load(Ordering::Acquire),
            functions: (self.slots.occupied())
                .map(|occupant| FunctionState {
                    slot: occupant.place.slot,
                    function: occupant.place.function,
                    config: occupant.lock().space.bytes().to_vec(),
                })
                .collect(),
        }
    }

    /// Puts the bus into a saved state, after the same functions (restored by their own states) were added to the same
    /// slots. Functions learn where their BARs are.
    ///
    /// # Errors
    /// The functions are not the saved ones; nothing has been changed then.
    pub fn restore(&self, state: &PciRootState) -> Result<(), PciError> {
        for occupant in self.slots.occupied() {
            let saved = state.functions.iter().find(|s| s.place() == occupant.place);
            let fits = saved.is_some_and(|s| occupant.lock().space.fits(&s.config));
            if !fits {
                return Err(PciError::OtherFunction(occupant.place.slot));
            }
        }
        let mut saved = state.functions.iter();
        if let Some(surplus) = saved.find(|s| self.slots.find(s.place()).is_none()) {
            return Err(PciError::OtherFunction(surplus.slot));
        }
        self.config_address
            .store(state.config_address, Ordering::Release);
        for saved in &state.functions {
            if let Some(occupant) = self.slots.find(saved.place()) {
                let mut header = occupant.lock();
                header.space.write(0, &saved.config);
                self.slots.remap(&occupant, &mut header);
            }
        }
        Ok(())
    }
}

impl FunctionState {
    fn place(&self) -> Place {
        Place {
            slot: self.slot,
            function: self.function,
        }
    }
}

impl Slots {
    fn get(&self, slot: u8) -> Option<Arc<Device>> {
        let place = self.slots.get(usize::from(slot))?;
        place.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find(&self, place: Place) -> Option<Arc<Occupant>> {
        let device = self.get(place.slot)?;
        let mut functions = device.functions.iter();
        functions.find(|f| f.place == place).cloned()
    }

    fn occupied(&self) -> impl Iterator<Item = Arc<Occupant>> {
        let devices = (0..SLOTS).filter_map(|slot| self.get(slot));
        devices.flat_map(|device| device.functions.clone())
    }

    /// Reads configuration space; ones where there is no function or the access leaves its 4 KiB.
    pub(super) fn read(&self, place: Place, offset: u16, data: &mut [u8]) {
        let Some(occupant) = self.find(place) else {
            return data.fill(0xFF);
        };
        let header = occupant.lock();
        if header.removed {
            return data.fill(0xFF);
        }
        for (offset, piece) in dwords(offset, data.len()) {
            let Some(data) = data.get_mut(piece) else {
                continue;
            };
            header.space.read(offset, data);
            if let Some((offset, data)) = functions_part(offset, data) {
                occupant.function.config_read(&header.space, offset, data);
            }
        }
    }

    /// Writes configuration space.
    pub(super) fn write(&self, place: Place, offset: u16, data: &[u8]) {
        let Some(occupant) = self.find(place) else {
            return;
        };
        let mut header = occupant.lock();
        if header.removed {
            return;
        }
        for (offset, piece) in dwords(offset, data.len()) {
            let Some(data) = data.get(piece) else {
                continue;
            };
            header.space.write(offset, data);
            if owned_by_root(offset) {
                self.remap(&occupant, &mut header);
            }
            occupant.function.config_write(&header.space, offset, data);
        }
    }

    /// Compares where the BARs should answer with where they do, and moves those that differ.
    fn remap(&self, occupant: &Occupant, header: &mut Header) {
        let Header { space, mapped, .. } = header;
        for (index, mapped) in (0..).zip(mapped.iter_mut()) {
            let Some(bar) = space.bar(index) else {
                continue;
            };
            let start = space.decoded(index).and_then(|(kind, address)| {
                let window = self.windows.holding(kind.windows(), address, bar.size)?;
                Some((window, address))
            });
            if start != *mapped {
                *mapped = start;
                let key = (occupant.place, index);
                self.map.place(key, &occupant.function, start, bar.size);
                occupant
                    .function
                    .bar_moved(index, start.map(|(_, address)| address));
            }
        }
    }
}

impl Occupant {
    fn lock(&self) -> MutexGuard<'_, Header> {
        lock(&self.header)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The registers that decide where BARs answer: the dword of the command register, the BARs and the expansion ROM's.
fn owned_by_root(offset: u16) -> bool {
    let bars = register::BAR0..register::BAR0 + 4 * u16::from(BAR_COUNT);
    [register::COMMAND, register::ROM].contains(&(offset & !3)) || bars.contains(&offset)
}

/// What of a read within a dword the function may replace: nothing that the root decides by, but the status register in the
/// dword of the command register.
fn functions_part(offset: u16, data: &mut [u8]) -> Option<(u16, &mut [u8])> {
    if offset & !3 == register::COMMAND {
        let before = register::STATUS.saturating_sub(offset);
        let status = data.get_mut(usize::from(before)..)?;
        return (!status.is_empty()).then_some((offset + before, status));
    }
    (!owned_by_root(offset)).then_some((offset, data))
}

/// Cuts an access into pieces that stay within aligned dwords: offset of each and its place in the data. An access of a
/// usual width gives one piece.
fn dwords(offset: u16, length: usize) -> impl Iterator<Item = (u16, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset.checked_add(u16::try_from(done).ok()?)?;
        let piece = usize::from(4 - at % 4).min(length.checked_sub(done)?);
        let range = done..done + piece;
        done += piece;
        (piece > 0).then_some((at, range))
    })
}

#[cfg(test)]
mod tests;
