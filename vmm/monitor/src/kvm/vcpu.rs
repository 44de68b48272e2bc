//! One vCPU: its registers at the start, and its exits.

use std::sync::Arc;

use fief_devices::GuestRam;
use kvm_bindings::{
    CpuId, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    kvm_cpuid_entry2, kvm_debugregs, kvm_fpu, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::coalesced::Ring;
use super::{KvmError, Vm, msrs, refused};
use crate::boot::layout;

/// CR0.PE, CR0.ET, CR0.PG (Intel SDM 3A §2.5).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE.
const CR4_PAE: u64 = 1 << 5;
/// EFER.LME and EFER.LMA (Intel SDM 3A §2.2.1).
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// x87, SSE and AVX in XCR0 (Intel SDM 1 §13.3).
const XCR0_VECTORS: u64 = 0b111;
/// RFLAGS bit 1 is always set (Intel SDM 1 §3.4.3).
const RFLAGS_FIXED: u64 = 2;

/// Selectors that Linux asks for (Documentation/arch/x86/boot.rst, "64-bit boot protocol").
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Code segment types and data segment types (Intel SDM 3A §3.4.5.1).
const TYPE_CODE_READ: u8 = 0xB;
const TYPE_DATA_WRITE: u8 = 0x3;
const TYPE_TSS_BUSY: u8 = 0xB;

/// Where and how the boot CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode with an identity map of the first 4 GiB, the zero page's address in RSI.
    Linux64 { rip: u64, boot_params: u64 },
    /// 32-bit protected mode without paging, the start info's address in EBX
    /// (xen/include/public/arch-x86/hvm/start_info.h).
    Pvh { eip: u32, start_info: u32 },
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// A device answered, or there is nothing to do: run on.
    Handled,
    /// A signal or the immediate-exit flag: look at what is asked of this vCPU.
    Interrupted,
    /// Triple fault.
    Shutdown,
    /// The guest asked the hypervisor for a reset or stop.
    SystemEvent(u32),
    /// KVM cannot go on; the text says why.
    Failed(String),
}

/// What a vCPU's port and memory accesses go to.
pub trait Buses {
    fn port_in(&self, port: u16, data: &mut [u8]);
    fn port_out(&self, port: u16, data: &[u8]);
    fn memory_read(&self, address: u64, data: &mut [u8]);
    fn memory_write(&self, address: u64, data: &[u8]);
}

/// A vCPU and the registers it was made with.
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
    pristine: kvm_sregs,
    ring: Option<Arc<Ring>>,
    /// Behind `fd`, so that it is mapped for as long as the guest can run.
    _ram: GuestRam,
}

impl Vcpu {
    /// Makes vCPU `index`; its CPUID and registers are set by [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// KVM refused.
    pub fn new(vm: &Vm, index: u8) -> Result<Self, KvmError> {
        let fd = vm
            .fd
            .create_vcpu(u64::from(index))
            .map_err(refused("make a vCPU"))?;
        let pristine = fd.get_sregs().map_err(refused("show a vCPU's registers"))?;
        Ok(Self {
            fd,
            index,
            pristine,
            ring: vm.ring.clone(),
            _ram: vm.ram.clone(),
        })
    }

    /// Frequency of the guest's TSC in kHz, 0 if KVM does not know it.
    pub fn tsc_khz(&self) -> u32 {
        self.fd.get_tsc_khz().unwrap_or(0)
    }

    /// Sets CPUID and MSRs, before the first run.
    ///
    /// # Errors
    /// KVM refused.
    pub fn prepare(&self, cpuid: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
        let cpuid = CpuId::from_entries(cpuid).map_err(|_| KvmError::Refused {
            what: "take so many CPUID entries",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        self.fd
            .set_cpuid2(&cpuid)
            .map_err(refused("set a vCPU's CPUID"))?;
        self.enable_vectors(cpuid.as_slice());
        msrs::set_boot(&self.fd)
    }

    /// Switches on the x87, SSE and AVX state in XCR0, as firmware may leave it. KVM then has no XCR0 to swap at entries
    /// and exits of a guest that uses what its host uses, and a CPU whose virtualization does not intercept XSETBV
    /// (QEMU's emulation of AMD-V) cannot leave KVM with a wrong idea of it, on which Linux switches XSAVE off.
    fn enable_vectors(&self, cpuid: &[kvm_cpuid_entry2]) {
        let leaf = cpuid.iter().find(|e| e.function == 0xD && e.index == 0);
        let Some(supported) = leaf
            .map(|entry| u64::from(entry.eax) & XCR0_VECTORS)
            .filter(|bits| *bits != 0)
        else {
            return;
        };
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        if let Some(xcr0) = xcrs.xcrs.first_mut() {
            xcr0.value = supported;
        }
        // Refused where the CPU has no XSAVE; the guest then has none either.
        let _ = self.fd.set_xcrs(&xcrs);
    }

    /// Points the boot CPU at the kernel. The other vCPUs wait for their INIT and SIPI.
    ///
    /// # Errors
    /// KVM refused.
    pub fn set_entry(&self, entry: Entry) -> Result<(), KvmError> {
        if self.index != 0 {
            return Ok(());
        }
        let mut sregs = self.pristine;
        let mut regs = kvm_regs {
            rflags: RFLAGS_FIXED,
            ..Default::default()
        };
        match entry {
            Entry::Linux64 { rip, boot_params } => {
                set_segments(&mut sregs, true);
                sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
                sregs.cr3 = layout::PAGE_TABLES_START;
                sregs.cr4 = CR4_PAE;
                sregs.efer = EFER_LONG_MODE;
                regs.rip = rip;
                regs.rsi = boot_params;
                regs.rsp = layout::BOOT_STACK;
                regs.rbp = layout::BOOT_STACK;
            }
            Entry::Pvh { eip, start_info } => {
                set_segments(&mut sregs, false);
                sregs.cr0 = CR0_PE | CR0_ET;
                sregs.cr4 = 0;
                sregs.efer = 0;
                regs.rip = u64::from(eip);
                regs.rbx = u64::from(start_info);
            }
        }
        self.fd
            .set_sregs(&sregs)
            .map_err(refused("set a vCPU's system registers"))?;
        self.fd
            .set_regs(&regs)
            .map_err(refused("set a vCPU's registers"))
    }

    /// Brings the vCPU back to its state after power-on; CPUID stays. The boot CPU then needs
    /// [`set_entry`](Self::set_entry).
    ///
    /// # Errors
    /// KVM refused.
    pub fn reset(&self) -> Result<(), KvmError> {
        let what = "reset a vCPU";
        let mut lapic = self.fd.get_lapic().map_err(refused(what))?;
        reset_local_apic(&mut lapic);
        let state = if self.index == 0 {
            KVM_MP_STATE_RUNNABLE
        } else {
            KVM_MP_STATE_UNINITIALIZED
        };
        // Asking makes KVM act on an INIT or SIPI that has just arrived; else it would act on it after the reset.
        self.fd.get_mp_state().map_err(refused(what))?;
        let no_events = kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
            ..Default::default()
        };
        self.fd.set_vcpu_events(&no_events).map_err(refused(what))?;
        self.fd
            .set_mp_state(kvm_mp_state { mp_state: state })
            .map_err(refused(what))?;
        self.fd.set_sregs(&self.pristine).map_err(refused(what))?;
        let regs = kvm_regs {
            rip: 0xFFF0,
            rflags: RFLAGS_FIXED,
            ..Default::default()
        };
        self.fd.set_regs(&regs).map_err(refused(what))?;
        // FCW and MXCSR after a reset: Intel SDM 3A table 10-1.
        let fpu = kvm_fpu {
            fcw: 0x37F,
            mxcsr: 0x1F80,
            ..Default::default()
        };
        self.fd.set_fpu(&fpu).map_err(refused(what))?;
        if let Ok(cpuid) = self.fd.get_cpuid2(KVM_MAX_CPUID_ENTRIES) {
            self.enable_vectors(cpuid.as_slice());
        }
        let debug = kvm_debugregs {
            dr6: 0xFFFF_0FF0,
            dr7: 0x400,
            ..Default::default()
        };
        self.fd.set_debug_regs(&debug).map_err(refused(what))?;
        msrs::reset(&self.fd)?;
        self.fd.set_lapic(&lapic).map_err(refused(what))
    }

    /// Where KVM looks for the immediate-exit flag of this vCPU; for [`kick`](crate::machine) alone.
    pub(crate) fn immediate_exit_flag(&mut self) -> *mut u8 {
        &raw mut self.fd.get_kvm_run().immediate_exit
    }

    /// Runs the guest until something is to be done, and does it if a device can.
    pub fn run(&mut self, buses: &impl Buses) -> Exit {
        let exit = match self.fd.run() {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => None,
            Ok(VcpuExit::MmioRead(address, data)) => {
                data.fill(0xFF);
                buses.memory_read(address, data);
                return Exit::Handled;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                buses.memory_write(address, data);
                return Exit::Handled;
            }
            // With KVM's local APIC a HLT stays inside KVM; an interrupt window or a TPR change asks for nothing.
            Ok(
                VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::IoapicEoi(_),
            ) => Some(Exit::Handled),
            Ok(VcpuExit::Intr) => Some(Exit::Interrupted),
            Ok(VcpuExit::Shutdown) => Some(Exit::Shutdown),
            Ok(VcpuExit::SystemEvent(kind, _)) => Some(Exit::SystemEvent(kind)),
            Ok(VcpuExit::InternalError) => Some(Exit::Failed(String::new())),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Some(Exit::Failed(format!(
                "the CPU refused to enter the guest (reason {reason:#x}, CPU {cpu})"
            ))),
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => Some(Exit::Failed(format!(
                "KVM cannot reach the guest's memory at {gpa:#x} (size {size:#x}, flags {flags:#x})"
            ))),
            Ok(other) => Some(Exit::Failed(format!("unexpected exit {other:?}"))),
            Err(error) => Some(match error.errno() {
                libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                libc::EFAULT => Exit::Failed(
                    "KVM cannot reach the guest's memory; is the host out of it?".into(),
                ),
                _ => Exit::Failed(format!("KVM_RUN: {error}")),
            }),
        };
        match exit {
            None => {
                self.port_access(buses);
                Exit::Handled
            }
            Some(Exit::Failed(text)) if text.is_empty() => Exit::Failed(self.internal_error()),
            Some(exit) => exit,
        }
    }

    /// Carries out a port access. A string instruction makes several accesses of one width in one exit.
    fn port_access(&mut self, buses: &impl Buses) {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_IO {
            return;
        }
        // SAFETY: the exit reason says that the union holds `io`.
        let io = unsafe { run.__bindgen_anon_1.io };
        if let Some(ring) = &self.ring
            && Ring::concerns(io.port)
        {
            ring.drain(run, buses);
        }
        let width = usize::from(io.size);
        let length = usize::try_from(io.count).unwrap_or(0).saturating_mul(width);
        let Ok(offset) = usize::try_from(io.data_offset) else {
            return;
        };
        let start = (&raw mut *run).cast::<u8>().wrapping_add(offset);
        // SAFETY: KVM puts the data inside the pages of `kvm_run` that are mapped, `size * count` bytes at `data_offset`
        // (api.rst, KVM_EXIT_IO), and does not touch them before the next KVM_RUN, which needs `self` mutably.
        let data = unsafe { std::slice::from_raw_parts_mut(start, length) };
        for item in data.chunks_exact_mut(width.max(1)) {
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                item.fill(0xFF);
                buses.port_in(io.port, item);
            } else {
                buses.port_out(io.port, item);
            }
        }
    }

    fn internal_error(&mut self) -> String {
        let run = self.fd.get_kvm_run();
        // SAFETY: called after KVM_EXIT_INTERNAL_ERROR only, which fills `internal`.
        let suberror = unsafe { run.__bindgen_anon_1.internal.suberror };
        let what = match suberror {
            1 => "it cannot emulate an instruction",
            2 => "exceptions at the same time",
            3 => "an exception while an event was delivered",
            4 => "an unexpected exit of the CPU",
            _ => "an unknown one",
        };
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        format!("internal error of the host's KVM: {what} (suberror {suberror}) at RIP {rip:#x}")
    }
}

fn set_segments(sregs: &mut kvm_sregs, long: bool) {
    let code = kvm_segment {
        base: 0,
        limit: 0xFFFF_FFFF,
        selector: BOOT_CS,
        type_: TYPE_CODE_READ,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment {
        selector: BOOT_DS,
        type_: TYPE_DATA_WRITE,
        db: 1,
        l: 0,
        ..code
    };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: BOOT_TSS,
        type_: TYPE_TSS_BUSY,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT_START;
    sregs.gdt.limit = u16::try_from(size_of_val(&gdt(long)).saturating_sub(1)).unwrap_or(u16::MAX);
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

/// Descriptors for the selectors above, as [`set_segments`] loads them (Intel SDM 3A §3.4.5).
pub fn gdt(long: bool) -> [u64; 5] {
    let code = if long {
        0x00AF_9B00_0000_FFFF
    } else {
        0x00CF_9B00_0000_FFFF
    };
    [0, 0, code, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067]
}

/// Registers of the local APIC after a reset (Intel SDM 3A §11.4.7.1); id and version stay.
fn reset_local_apic(lapic: &mut kvm_lapic_state) {
    /// Offsets of id and version.
    const KEPT: [usize; 2] = [0x20, 0x30];
    let before = *lapic;
    lapic.regs.fill(0);
    let mut set = |offset: usize, value: u32| {
        for (place, byte) in lapic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
            *place = byte.cast_signed();
        }
    };
    for offset in KEPT {
        let mut bytes = [0_u8; 4];
        for (byte, old) in bytes.iter_mut().zip(before.regs.iter().skip(offset)) {
            *byte = old.cast_unsigned();
        }
        set(offset, u32::from_le_bytes(bytes));
    }
    // Destination format: flat. Spurious vector: 0xFF, APIC off. LVT entries: masked.
    set(0xE0, 0xFFFF_FFFF);
    set(0xF0, 0xFF);
    for lvt in [0x2F0, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370] {
        set(lvt, 1 << 16);
    }
}

#[cfg(test)]
mod tests;
