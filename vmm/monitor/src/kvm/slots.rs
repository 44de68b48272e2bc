//! Memory slots for BARs that are memory: the guest reaches them without an exit.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use fief_vfio::{Mapping, MemorySlots};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// The memory slots of one VM besides those of its RAM.
pub struct KvmSlots {
    vm: Arc<VmFd>,
    /// Number of the first; those before it are the RAM's.
    first: u32,
    /// By number less `first`.
    slots: Mutex<Vec<Option<Slot>>>,
}

struct Slot {
    start: u64,
    memory: Arc<Mapping>,
}

impl KvmSlots {
    /// The slots from number `first` on.
    pub fn new(vm: Arc<VmFd>, first: u32) -> Self {
        Self {
            vm,
            first,
            slots: Mutex::default(),
        }
    }

    /// Tells KVM of `slot`; of its end if `size` is 0.
    fn set(&self, number: u32, slot: &Slot, size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: 0,
            guest_phys_addr: slot.start,
            memory_size: size,
            userspace_addr: slot.memory.address().addr() as u64,
        };
        // SAFETY: the table keeps the mapping until KVM has let go of it; nothing but the guest uses the memory.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(Into::into)
    }
}

impl MemorySlots for KvmSlots {
    fn insert(&self, start: u64, memory: &Arc<Mapping>) -> io::Result<u32> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let free = slots.iter().position(Option::is_none);
        let index = free.unwrap_or(slots.len());
        let number = u32::try_from(index)
            .ok()
            .and_then(|index| self.first.checked_add(index))
            .ok_or(io::ErrorKind::QuotaExceeded)?;
        let slot = Slot {
            start,
            memory: Arc::clone(memory),
        };
        self.set(number, &slot, memory.size())?;
        match slots.get_mut(index) {
            Some(place) => *place = Some(slot),
            None => slots.push(Some(slot)),
        }
        Ok(number)
    }

    fn remove(&self, slot: u32) -> io::Result<()> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let index = slot
            .checked_sub(self.first)
            .and_then(|i| usize::try_from(i).ok());
        let place = index.and_then(|index| slots.get_mut(index));
        let place = place.ok_or(io::ErrorKind::NotFound)?;
        let taken = place.take().ok_or(io::ErrorKind::NotFound)?;
        if let Err(error) = self.set(slot, &taken, 0) {
            // KVM may still use it: it stays, and so does its memory.
            *place = Some(taken);
            return Err(error);
        }
        Ok(())
    }
}
