//! The address windows behind the host bridge: from an address to the BAR that answers there now.

use std::sync::{Arc, PoisonError, RwLock};

use super::PciFunction;
use super::bar::Window;
use super::place::Place;
use crate::bus::BusDevice;

/// A BAR that answers at present.
#[derive(Clone)]
struct Mapping {
    window: Window,
    start: u64,
    /// Address of the last byte.
    last: u64,
    place: Place,
    bar: u8,
    function: Arc<dyn PciFunction>,
}

/// All BARs that answer. The lock is held for the look-up only, so an access that races a move ends at the function
/// either way, with an offset that is valid in its BAR.
#[derive(Default)]
pub(super) struct BarMap {
    mappings: RwLock<Vec<Mapping>>,
}

impl BarMap {
    /// Makes BAR `bar` of the function at `place` answer at `size` bytes (not 0) from `start` instead of wherever it did.
    pub(super) fn place(
        &self,
        (place, bar): (Place, u8),
        function: &Arc<dyn PciFunction>,
        start: Option<(Window, u64)>,
        size: u64,
    ) {
        let mut mappings = self
            .mappings
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        mappings.retain(|m| (m.place, m.bar) != (place, bar));
        if let Some((window, start)) = start {
            mappings.push(Mapping {
                window,
                start,
                last: start.saturating_add(size.saturating_sub(1)),
                place,
                bar,
                function: Arc::clone(function),
            });
            // Two BARs at one address: the lower place answers, however they got there.
            mappings.sort_by_key(|m| (m.place, m.bar));
        }
    }

    /// The function and BAR that answer for all `size` bytes at `address`, and the offset in the BAR.
    fn find(
        &self,
        window: Window,
        address: u64,
        size: usize,
    ) -> Option<(Arc<dyn PciFunction>, u8, u64)> {
        let last = address.checked_add(u64::try_from(size).ok()?.checked_sub(1)?)?;
        let mappings = self.mappings.read().unwrap_or_else(PoisonError::into_inner);
        let mapping = mappings
            .iter()
            .find(|m| m.window == window && m.start <= address && last <= m.last)?;
        Some((
            Arc::clone(&mapping.function),
            mapping.bar,
            address - mapping.start,
        ))
    }
}

/// A window as a device on the memory or port bus.
pub(super) struct BarWindow {
    pub(super) window: Window,
    /// Address of its first byte.
    pub(super) start: u64,
    pub(super) map: Arc<BarMap>,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.start.saturating_add(offset);
        match self.map.find(self.window, address, data.len()) {
            Some((function, bar, offset)) => function.bar_read(bar, offset, data),
            None => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = self.start.saturating_add(offset);
        if let Some((function, bar, offset)) = self.map.find(self.window, address, data.len()) {
            function.bar_write(bar, offset, data);
        }
    }
}
