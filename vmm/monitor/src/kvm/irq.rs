//! Interrupts into the guest: GSIs, the routing table, irqfds.
//!
//! Setting the routing table waits for an SRCU grace period in the host, so it happens only when a vector really gets
//! a new message, never when it is merely masked, and not at all for a machine whose devices raise no MSI.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fief_devices::irq::{
    ExternalVector, InterruptLine, MsiAllocator, MsiMessage, MsiVector, ResampledLine, drain,
};
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
    /// Of GSI `IO_APIC_PINS + index`.
    routes: Mutex<Vec<Route>>,
}

/// What a GSI is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// Nothing: no vector has it.
    Free,
    /// A vector that was never routed.
    Unrouted,
    Msi(MsiMessage),
}

impl GsiTable {
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self {
            vm,
            routes: Mutex::new(Vec::new()),
        })
    }

    /// The line of a wired interrupt.
    pub fn line(self: &Arc<Self>, gsi: u32) -> Arc<dyn InterruptLine> {
        Arc::new(Line {
            vm: Arc::clone(&self.vm),
            gsi,
        })
    }

    /// The line of a wired interrupt that others raise.
    pub fn resampled_line(self: &Arc<Self>, gsi: u32) -> Arc<dyn ResampledLine> {
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

    /// Takes the lowest free GSI.
    fn allocate(&self) -> io::Result<u32> {
        let mut routes = self.lock();
        let free = routes.iter().position(|route| *route == Route::Free);
        let index = free.unwrap_or(routes.len());
        let gsi = u32::try_from(index)
            .ok()
            .and_then(|i| IO_APIC_PINS.checked_add(i));
        let gsi = gsi.filter(|gsi| *gsi < MAX_GSIS).ok_or_else(|| {
            let text = format!("no interrupt vector is left: KVM has only {MAX_GSIS} GSIs");
            io::Error::new(io::ErrorKind::QuotaExceeded, text)
        })?;
        match routes.get_mut(index) {
            Some(route) => *route = Route::Unrouted,
            None => routes.push(Route::Unrouted),
        }
        Ok(gsi)
    }

    /// Gives a GSI back that no irqfd leads to any more. KVM's table keeps its route until the next change of any route.
    fn free(&self, gsi: u32) {
        if let Some(route) = place(&mut self.lock(), gsi) {
            *route = Route::Free;
        }
    }

    fn set_route(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut routes = self.lock();
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let route = place(&mut routes, gsi).ok_or_else(invalid)?;
        let before = std::mem::replace(route, Route::Msi(message));
        if before == Route::Msi(message) {
            return Ok(());
        }
        let entries = routing_entries(&routes);
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
        self.vm.set_gsi_routing(&table).map_err(|error| {
            if let Some(route) = place(&mut routes, gsi) {
                *route = before;
            }
            error.into()
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The route of an MSI's GSI.
fn place(routes: &mut [Route], gsi: u32) -> Option<&mut Route> {
    let index = usize::try_from(gsi.checked_sub(IO_APIC_PINS)?).ok()?;
    routes.get_mut(index)
}

/// The whole table as KVM wants it: wired interrupts as KVM's own default has them, then the MSIs.
fn routing_entries(routes: &[Route]) -> Vec<kvm_irq_routing_entry> {
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
    for (gsi, route) in (IO_APIC_PINS..).zip(routes) {
        if let Route::Msi(message) = route {
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
        let vector = |_| {
            let vector = Vector {
                irqfd: Irqfd::new(&self.table)?,
                open: AtomicBool::new(false),
            };
            Ok(Arc::new(vector) as Arc<dyn MsiVector>)
        };
        (0..count).map(vector).collect()
    }

    fn allocate_external(&self, count: u16) -> io::Result<Vec<Arc<dyn ExternalVector>>> {
        let vector = |_| Ok(Arc::new(Irqfd::new(&self.table)?) as Arc<dyn ExternalVector>);
        (0..count).map(vector).collect()
    }
}

/// A GSI of its own, and the eventfd that raises it while they are connected.
struct Irqfd {
    table: Arc<GsiTable>,
    gsi: u32,
    event: EventFd,
    connected: Mutex<bool>,
}

impl Irqfd {
    fn new(table: &Arc<GsiTable>) -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(EFD_NONBLOCK)?,
            gsi: table.allocate()?,
            table: Arc::clone(table),
            connected: Mutex::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// KVM looks at the event when it is connected, so that what came before is raised then (virt/kvm/eventfd.c).
impl ExternalVector for Irqfd {
    fn event(&self) -> &EventFd {
        &self.event
    }

    fn connect(&self, message: MsiMessage) -> io::Result<()> {
        self.table.set_route(self.gsi, message)?;
        let mut connected = self.lock();
        if !*connected {
            self.table.vm.register_irqfd(&self.event, self.gsi)?;
            *connected = true;
        }
        Ok(())
    }

    fn disconnect(&self) -> io::Result<()> {
        let mut connected = self.lock();
        if *connected {
            self.table.vm.unregister_irqfd(&self.event, self.gsi)?;
            *connected = false;
        }
        Ok(())
    }

    fn is_pending(&self) -> bool {
        let mut entry = libc::pollfd {
            fd: self.event.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer is to one entry; nothing is waited for.
        let ready = unsafe { libc::poll(&mut entry, 1, 0) };
        ready > 0 && !*self.lock()
    }

    fn clear(&self) {
        drain(&self.event);
    }
}

/// A vector that the monitor raises.
struct Vector {
    /// Connected at the first route, so that unused vectors cost nothing.
    irqfd: Irqfd,
    /// Not masked. The device model keeps what arrives while masked (its PBA), so nothing is kept here.
    open: AtomicBool,
}

impl MsiVector for Vector {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        let Some(message) = message else {
            self.open.store(false, Ordering::Release);
            return Ok(());
        };
        self.irqfd.connect(message)?;
        self.open.store(true, Ordering::Release);
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        if self.open.load(Ordering::Acquire) {
            self.irqfd.event.write(1)
        } else {
            Ok(())
        }
    }
}

impl Drop for Irqfd {
    fn drop(&mut self) {
        let connected = self.connected.get_mut();
        if *connected.unwrap_or_else(PoisonError::into_inner)
            && let Err(error) = self.table.vm.unregister_irqfd(&self.event, self.gsi)
        {
            // It may still lead to the GSI, which therefore stays taken.
            tracing::error!("GSI {} cannot be freed: {error}", self.gsi);
            return;
        }
        self.table.free(self.gsi);
    }
}

/// A wired interrupt, raised by an ioctl where the monitor does it: an irqfd to the I/O APIC goes through a kernel thread of
/// the host.
struct Line {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl InterruptLine for Line {
    fn trigger(&self) -> io::Result<()> {
        self.set(true)?;
        self.set(false)
    }

    fn set(&self, active: bool) -> io::Result<()> {
        Ok(self.vm.set_irq_line(self.gsi, active)?)
    }
}

impl ResampledLine for Line {
    fn gsi(&self) -> u32 {
        self.gsi
    }

    fn connect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        self.vm
            .register_irqfd_with_resample(trigger, resample, self.gsi)
            .map_err(Into::into)
    }

    fn disconnect(&self, trigger: &EventFd, _resample: &EventFd) -> io::Result<()> {
        self.vm
            .unregister_irqfd(trigger, self.gsi)
            .map_err(Into::into)
    }
}

#[cfg(test)]
mod tests;
