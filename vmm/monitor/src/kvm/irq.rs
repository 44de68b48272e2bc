//! Interrupts into the guest: GSIs, the routing table, irqfds.
//!
//! Setting the routing table waits for an SRCU grace period in the host, so it happens only when a vector really gets
//! a new message, never when it is merely masked, and not at all for a machine whose devices raise no MSI.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fief_devices::irq::{InterruptLine, MsiAllocator, MsiMessage, MsiVector};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Inputs of the I/O APIC; GSIs below this are wired interrupts.
pub const IO_APIC_PINS: u32 = 24;
/// Inputs of the two 8259 PICs together.
const PIC_PINS: u32 = 16;
/// GSIs that KVM has on x86 (KVM_MAX_IRQ_ROUTES is 4096 since Linux 4.15).
const MAX_GSIS: u32 = 4096;

/// The GSIs of one VM and where they go.
pub struct GsiTable {
    vm: Arc<VmFd>,
    /// The MSI of GSI `IO_APIC_PINS + index`; `None` until it is routed for the first time.
    messages: Mutex<Vec<Option<MsiMessage>>>,
}

impl GsiTable {
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self {
            vm,
            messages: Mutex::new(Vec::new()),
        })
    }

    /// The line of a wired interrupt.
    pub fn line(self: &Arc<Self>, gsi: u32) -> Arc<dyn InterruptLine> {
        Arc::new(Line {
            vm: Arc::clone(&self.vm),
            gsi,
        })
    }

    /// Hands out MSI vectors of this VM.
    pub fn msi_allocator(self: &Arc<Self>) -> Arc<dyn MsiAllocator> {
        Arc::new(Allocator {
            table: Arc::clone(self),
        })
    }

    fn allocate(&self, count: u16) -> io::Result<std::ops::Range<u32>> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let used = u32::try_from(messages.len()).unwrap_or(u32::MAX);
        let first = IO_APIC_PINS.saturating_add(used);
        let end = first.saturating_add(u32::from(count));
        if end > MAX_GSIS {
            let text = format!(
                "{count} more interrupt vectors asked for, but KVM has only {MAX_GSIS} GSIs"
            );
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        messages.extend((first..end).map(|_| None));
        Ok(first..end)
    }

    fn set_route(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let index = gsi
            .checked_sub(IO_APIC_PINS)
            .and_then(|i| usize::try_from(i).ok());
        let place = index
            .and_then(|i| messages.get_mut(i))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        let before = place.replace(message);
        if before == Some(message) {
            return Ok(());
        }
        let entries = routing_entries(&messages);
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        self.vm.set_gsi_routing(&table).map_err(|error| {
            if let Some(place) = index.and_then(|i| messages.get_mut(i)) {
                *place = before;
            }
            error.into()
        })
    }
}

/// The whole table as KVM wants it: wired interrupts as KVM's own default has them, then the MSIs.
fn routing_entries(messages: &[Option<MsiMessage>]) -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for gsi in 0..IO_APIC_PINS {
        if gsi < PIC_PINS {
            let (chip, pin) = if gsi < 8 {
                (KVM_IRQCHIP_PIC_MASTER, gsi)
            } else {
                (KVM_IRQCHIP_PIC_SLAVE, gsi.saturating_sub(8))
            };
            entries.push(wired(gsi, chip, pin));
        }
        // GSI 2 is input 2 of the I/O APIC here: KVM wires the PIT itself, and there is none.
        entries.push(wired(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    }
    for (gsi, message) in (IO_APIC_PINS..).zip(messages) {
        if let Some(message) = message {
            entries.push(msi(gsi, *message));
        }
    }
    entries
}

fn wired(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    }
}

fn msi(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
    let route = kvm_irq_routing_msi {
        address_lo: u32::from_le_bytes([a, b, c, d]),
        address_hi: u32::from_le_bytes([e, f, g, h]),
        data: message.data,
        ..Default::default()
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi: route },
        ..Default::default()
    }
}

struct Allocator {
    table: Arc<GsiTable>,
}

impl MsiAllocator for Allocator {
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        let gsis = self.table.allocate(count)?;
        gsis.map(|gsi| {
            let vector = Vector {
                table: Arc::clone(&self.table),
                gsi,
                event: EventFd::new(EFD_NONBLOCK)?,
                open: AtomicBool::new(false),
                connected: Mutex::new(false),
            };
            Ok(Arc::new(vector) as Arc<dyn MsiVector>)
        })
        .collect()
    }
}

struct Vector {
    table: Arc<GsiTable>,
    gsi: u32,
    event: EventFd,
    /// Not masked. The device model keeps what arrives while masked (its PBA), so nothing is kept here.
    open: AtomicBool,
    /// The irqfd is registered: done at the first route, so that unused vectors cost nothing.
    connected: Mutex<bool>,
}

impl MsiVector for Vector {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let Some(message) = message else {
            self.open.store(false, Ordering::Release);
            return Ok(());
        };
        self.table.set_route(self.gsi, message)?;
        let mut connected = self
            .connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !*connected {
            self.table.vm.register_irqfd(&self.event, self.gsi)?;
            *connected = true;
        }
        self.open.store(true, Ordering::Release);
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        if self.open.load(Ordering::Acquire) {
            self.event.write(1)
        } else {
            Ok(())
        }
    }
}

/// A wired interrupt, raised by an ioctl: an irqfd to the I/O APIC would go through a kernel thread of the host.
struct Line {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        self.vm.set_irq_line(self.gsi, true)?;
        self.vm.set_irq_line(self.gsi, false)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
