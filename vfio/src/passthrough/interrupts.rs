//! The interrupts of a function: one of INTx, MSI and MSI-X at a time, as the guest says. What the function raises gets to
//! the guest without this process.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fief_devices::irq::{MsiAllocator, MsiMessage, ResampledLine, drain};
use fief_devices::pci::ConfigSpace;
use fief_devices::pci::msix::{CONTROL_OFFSET, Table, read_pending};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::capabilities::{Capabilities, MsiPlace, MsixPlace, msi_control};
use super::vectors::Vectors;
use crate::remote::{Interrupt, RemoteFunction};

/// The interrupts of one function.
pub struct Interrupts {
    remote: Arc<dyn RemoteFunction>,
    msi: Option<MsiPlace>,
    msix: Option<MsixPlace>,
    pin: Option<Pin>,
    state: Mutex<State>,
}

/// The wired interrupt.
struct Pin {
    line: Arc<dyn ResampledLine>,
    trigger: EventFd,
    resample: EventFd,
}

struct State {
    vectors: Vectors,
    table: Table,
    msi: Message,
    /// What the function was told to use.
    mode: Option<Interrupt>,
    /// How many vectors of it are enabled at the function.
    enabled: usize,
}

/// MSI as the guest has set it up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Message {
    enabled: bool,
    /// A power of two.
    count: u16,
    address: u64,
    data: u16,
    /// A bit a vector.
    masked: u32,
}

impl Message {
    /// What is in the registers.
    fn read(space: &ConfigSpace, place: &MsiPlace) -> Self {
        let control = word(space, place.at + 2);
        let exponent = control >> msi_control::ENABLED_SHIFT & msi_control::COUNT_MASK;
        let high = if place.wide {
            u64::from(space.dword(place.at + 8))
        } else {
            0
        };
        let count = 1_u16.checked_shl(exponent.into()).unwrap_or(1);
        Self {
            enabled: control & msi_control::ENABLE != 0,
            count: count.min(place.vectors),
            address: high << 32 | u64::from(space.dword(place.at + 4)),
            data: word(space, place.data()),
            masked: place.mask().map_or(0, |mask| space.dword(mask)),
        }
    }

    /// Where vector `index` goes, if it may go anywhere: the function changes the lowest bits of the data (PCI 3.0
    /// §6.8.1.6).
    fn of(&self, index: u16) -> Option<MsiMessage> {
        let masked = self.masked.checked_shr(index.into()).unwrap_or(0) & 1 != 0;
        let open = self.enabled && index < self.count && !masked;
        let data = self.data & !(self.count.wrapping_sub(1)) | index;
        open.then_some(MsiMessage {
            address: self.address,
            data: data.into(),
        })
    }
}

impl Interrupts {
    /// The interrupts of `remote`, of which `line` is the wired one.
    ///
    /// # Errors
    /// No vectors or descriptors are left.
    pub fn new(
        remote: Arc<dyn RemoteFunction>,
        capabilities: &Capabilities,
        allocator: &dyn MsiAllocator,
        line: Option<Arc<dyn ResampledLine>>,
    ) -> io::Result<Self> {
        let Capabilities { msi, msix, .. } = *capabilities;
        let in_msix = msix.map_or(0, |msix| msix.vectors);
        let in_msi = msi.map_or(0, |msi| msi.vectors);
        let pin = line.map(|line| {
            io::Result::Ok(Pin {
                line,
                trigger: EventFd::new(EFD_NONBLOCK)?,
                resample: EventFd::new(EFD_NONBLOCK)?,
            })
        });
        Ok(Self {
            remote,
            msi,
            msix,
            pin: pin.transpose()?,
            state: Mutex::new(State {
                // Only one of the two can be on.
                vectors: Vectors::new(allocator, in_msix.max(in_msi))?,
                table: Table::new(in_msix),
                msi: Message::default(),
                mode: None,
                enabled: 0,
            }),
        })
    }

    /// The wired line's number, if the function has one.
    pub fn gsi(&self) -> Option<u32> {
        self.pin.as_ref().map(|pin| pin.line.gsi())
    }

    /// To be called after every config write to the capabilities: takes over what the guest has set up.
    pub fn config_written(&self, space: &ConfigSpace, offset: u16) {
        let mut state = self.lock();
        if let Some(msi) = self.msi.filter(|msi| touches(offset, msi.at, msi.length())) {
            state.msi = Message::read(space, &msi);
            self.settle(&mut state);
        }
        if let Some(msix) = self.msix.filter(|msix| touches(offset, msix.at, 4)) {
            state
                .table
                .set_control(word(space, msix.at + CONTROL_OFFSET));
            self.settle(&mut state);
        }
    }

    /// Turns on what is on after power-on: the wired line.
    pub fn start(&self) {
        self.settle(&mut self.lock());
    }

    /// As after power-on, but that the wired line is off until [`start`](Self::start).
    pub fn reset(&self) {
        let mut state = self.lock();
        self.leave(&mut state);
        state.table.reset();
        state.msi = Message::default();
    }

    /// Reads MSI-X's table.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        self.lock().table.read(offset, data);
    }

    /// Writes MSI-X's table.
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        let State {
            table,
            vectors,
            mode,
            ..
        } = &mut *state;
        if let Some(index) = table.write(offset, data)
            && *mode == Some(Interrupt::Msix)
        {
            vectors.connect(index, table.deliverable(index));
        }
    }

    /// Reads MSI-X's pending bits.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let count = state.table.entries().len();
        let on = state.mode == Some(Interrupt::Msix);
        let pending = state.vectors.pending().take(count);
        read_pending(pending.map(|pending| on && pending), offset, data);
    }

    /// MSI's pending bits, if they are what the dword at `offset` of configuration space is.
    pub fn msi_pending(&self, offset: u16) -> Option<u32> {
        let mask = self.msi?.mask()?;
        if offset & !3 != mask + 4 {
            return None;
        }
        let state = self.lock();
        if state.mode != Some(Interrupt::Msi) {
            return Some(0);
        }
        let bits = (0_u32..32).zip(state.vectors.pending());
        Some(bits.map(|(n, pending)| u32::from(pending) << n).sum())
    }

    /// Lets the function do what the guest has set up.
    fn settle(&self, state: &mut State) {
        let wanted = if state.table.enabled() && self.msix.is_some() {
            Some(Interrupt::Msix)
        } else if state.msi.enabled {
            Some(Interrupt::Msi)
        } else if self.pin.is_some() {
            Some(Interrupt::Intx)
        } else {
            None
        };
        let count = match wanted {
            Some(Interrupt::Msix) => state.table.entries().len(),
            Some(Interrupt::Msi) => state.msi.count.into(),
            _ => 0,
        };
        if wanted != state.mode || (wanted == Some(Interrupt::Msi) && count != state.enabled) {
            self.leave(state);
            self.enter(state, wanted, count);
        }
        // Before the function writes its own enable bit: nothing that it raises then is lost.
        let State {
            vectors,
            table,
            msi,
            mode,
            ..
        } = state;
        match mode {
            Some(Interrupt::Msix) => {
                (0..count).for_each(|n| vectors.connect(n, table.deliverable(n)));
            }
            Some(Interrupt::Msi) => {
                (0..msi.count).for_each(|n| vectors.connect(n.into(), msi.of(n)));
            }
            _ => {}
        }
    }

    /// Turns on `wanted` with `count` vectors.
    fn enter(&self, state: &mut State, wanted: Option<Interrupt>, count: usize) {
        let Some(kind) = wanted else { return };
        let done = match (kind, &self.pin) {
            (Interrupt::Intx, Some(pin)) => self.enter_pin(pin).map(|()| 0),
            _ => self.enter_messages(&state.vectors, kind, count),
        };
        // A function that refuses is not asked again until the guest changes its mind.
        state.mode = Some(kind);
        state.enabled = count;
        match done {
            Ok(got) if got < count => tracing::warn!(
                "the host has {got} vectors for a passed-through function that has {count}; the others are never raised"
            ),
            Ok(_) => {}
            Err(error) => {
                tracing::error!("{kind:?} of a passed-through function cannot be used: {error}");
            }
        }
    }

    fn enter_messages(
        &self,
        vectors: &Vectors,
        kind: Interrupt,
        count: usize,
    ) -> io::Result<usize> {
        self.remote.enable(kind, &vectors.events(count))
    }

    fn enter_pin(&self, pin: &Pin) -> io::Result<()> {
        self.remote.enable(Interrupt::Intx, &[&pin.trigger])?;
        self.remote.unmask_by(&pin.resample)?;
        // Last: what was raised meanwhile waits in the event, and is masked until it is served.
        pin.line.connect(&pin.trigger, &pin.resample)
    }

    /// Turns off what is on.
    fn leave(&self, state: &mut State) {
        let Some(kind) = state.mode.take() else {
            return;
        };
        state.enabled = 0;
        if let (Interrupt::Intx, Some(pin)) = (kind, &self.pin) {
            if let Err(error) = pin.line.disconnect(&pin.trigger, &pin.resample) {
                tracing::debug!("the wired interrupt of a passed-through function: {error}");
            }
            // What was not served is not for the next user of the event.
            drain(&pin.trigger);
            drain(&pin.resample);
        }
        if let Err(error) = self.remote.disable(kind) {
            tracing::debug!("{kind:?} of a passed-through function stays on: {error}");
        }
        state.vectors.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.leave(&mut self.lock());
    }
}

/// Whether an access within the dword at `offset` is one to the `length` bytes at `at`.
fn touches(offset: u16, at: u16, length: u16) -> bool {
    let dword = offset & !3;
    dword.saturating_add(4) > at && dword < at.saturating_add(length)
}

fn word(space: &ConfigSpace, offset: u16) -> u16 {
    let mut bytes = [0; 2];
    space.read(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}
