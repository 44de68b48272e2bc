//! Port writes that KVM keeps in a ring instead of leaving the guest for each (api.rst, KVM_REGISTER_COALESCED_MMIO).
//!
//! Used for CONFIG_ADDRESS of PCI alone: it only says what the next access to CONFIG_DATA means, so half of the exits of
//! every configuration access do nothing that could not wait for the other half. The ring belongs to the VM, hence the
//! lock; an access to CONFIG_DATA takes it even when the ring is empty, because another vCPU may be emptying it just then.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use fief_devices::pci::{CONFIG_PORT, CONFIG_PORT_COUNT};
use kvm_bindings::{
    KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_run,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};

use super::vcpu::Buses;

const PAGE: usize = 4096;
/// Bytes of CONFIG_ADDRESS (PCI 3.0 §3.2.2.3.2).
const CONFIG_ADDRESS_BYTES: u32 = 4;
/// Entries of the ring (KVM_COALESCED_MMIO_MAX).
const ENTRIES: usize =
    (PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>();

/// What all vCPUs of a VM share of its ring.
pub struct Ring {
    lock: Mutex<()>,
}

impl Ring {
    /// Lets KVM keep the writes; `None` where it cannot, and every write is an exit then.
    pub fn new(kvm: &Kvm, vm: &VmFd) -> Option<Self> {
        let page = u32::try_from(kvm.check_extension_int(Cap::CoalescedMmio)).ok()?;
        if page != KVM_COALESCED_MMIO_PAGE_OFFSET || !kvm.check_extension(Cap::CoalescedPio) {
            return None;
        }
        vm.register_coalesced_mmio(IoEventAddress::Pio(CONFIG_PORT), CONFIG_ADDRESS_BYTES)
            .ok()?;
        Some(Self {
            lock: Mutex::new(()),
        })
    }

    /// Whether an access to `port` must find the ring emptied.
    pub fn concerns(port: u16) -> bool {
        (CONFIG_PORT..CONFIG_PORT.saturating_add(CONFIG_PORT_COUNT)).contains(&u64::from(port))
    }

    /// Carries out what is in the ring. `run` must be the start of a vCPU's whole mapping (KVM_GET_VCPU_MMAP_SIZE), in
    /// which the ring is the page that KVM_CAP_COALESCED_MMIO names.
    pub fn drain(&self, run: *mut kvm_run, buses: &impl Buses) {
        let page = usize::try_from(KVM_COALESCED_MMIO_PAGE_OFFSET).unwrap_or(0);
        let ring: *mut kvm_coalesced_mmio_ring = run
            .cast::<u8>()
            .wrapping_add(page.saturating_mul(PAGE))
            .cast();
        let entries: *mut kvm_coalesced_mmio = ring.wrapping_add(1).cast();
        // SAFETY: `run` starts a mapping that includes the ring's page, which `new` has checked with KVM; the indices are
        // aligned, and the kernel changes `last` behind our back as an atomic does.
        let (first, last) = unsafe {
            (
                AtomicU32::from_ptr(&raw mut (*ring).first),
                AtomicU32::from_ptr(&raw mut (*ring).last),
            )
        };
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while first.load(Ordering::Relaxed) != last.load(Ordering::Acquire) {
            let index = usize::try_from(first.load(Ordering::Relaxed)).unwrap_or(0) % ENTRIES;
            // SAFETY: `index` is below the number of entries in the page; KVM has filled this one before it moved `last`.
            let entry = unsafe { entries.wrapping_add(index).read_volatile() };
            let length = usize::try_from(entry.len).unwrap_or(0);
            if let (Ok(port), Some(data)) =
                (u16::try_from(entry.phys_addr), entry.data.get(..length))
            {
                buses.port_out(port, data);
            }
            let next = u32::try_from((index + 1) % ENTRIES).unwrap_or(0);
            first.store(next, Ordering::Release);
        }
    }
}
