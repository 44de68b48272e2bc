//! Bare-metal guests of a few instructions, run in kernel mode (CPL0) of 64-bit mode.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Guest memory in bytes: one huge page, mapped to itself.
const MEMORY: usize = 2 << 20;

/// Where things are in guest memory.
const GDT: u64 = 0x1000;
const PML4: u64 = 0x2000;
const PDPT: u64 = 0x3000;
const PD: u64 = 0x4000;
const IDT: u64 = 0x5000;
const DATA: u64 = 0x8000;
const CODE: u64 = 0x1_0000;
const HANDLER: u64 = 0x1_1000;
const STACK_TOP: u64 = 0x8_0000;

/// Port that a payload writes to when it is done.
const DONE_PORT: u16 = 0x10;

/// Selectors in the GDT below.
const CODE_SELECTOR: u16 = 8;
const DATA_SELECTOR: u16 = 0x10;

/// Null, 64-bit code, data (Intel SDM 3A §3.4.5).
const DESCRIPTORS: [u64; 3] = [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];

/// Present, writable; and a page of 2 MiB (Intel SDM 3A §4.5).
const PRESENT_WRITABLE: u64 = 3;
const HUGE: u64 = 1 << 7;

/// PE, MP, ET, NE, WP, AM and PG; PAE; LME and LMA (Intel SDM 3A §2.5, §2.2.1).
const CR0: u64 = 0x8005_0033;
const CR4: u64 = 0x20;
const EFER: u64 = 0x500;

/// Interrupt gate, present, for CPL0 (Intel SDM 3A §6.14.1).
const GATE_TYPE: u64 = 0x8E;
const BREAKPOINT_VECTOR: u64 = 3;

/// Intel processors without unrestricted guest mode need three pages for a task state segment and one for page tables
/// (Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR). Out of the way of our memory.
const TSS_PAGES: usize = 0xFFFB_D000;
const IDENTITY_MAP_PAGE: u64 = 0xFFFB_C000;

/// Rounds of the loop (two instructions each) for a first measurement, and for a better one where the first was quick.
const FEW_ROUNDS: u32 = 20_000;
const MANY_ROUNDS: u32 = 500_000;
const QUICK: Duration = Duration::from_millis(5);

/// KVM would not run a payload at all.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    #[error("KVM refused to {what}")]
    Refused {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("cannot get {MEMORY} bytes of memory for a guest: {0}")]
    Memory(String),
    #[error("a guest that counts to {FEW_ROUNDS} ended with {0} instead")]
    Loop(String),
}

fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> PayloadError {
    move |source| PayloadError::Refused { what, source }
}

/// An instruction that every Linux kernel uses and an incomplete interpreter may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    Int3,
    Popcnt,
    Cmpxchg16b,
}

impl Instruction {
    pub const ALL: [Self; 3] = [Self::Int3, Self::Popcnt, Self::Cmpxchg16b];

    pub fn name(self) -> &'static str {
        match self {
            Self::Int3 => "int3",
            Self::Popcnt => "popcnt",
            Self::Cmpxchg16b => "cmpxchg16b",
        }
    }

    fn code(self) -> &'static [u8] {
        match self {
            Self::Int3 => &[0xCC],
            // popcnt rax, rax
            Self::Popcnt => &[0xF3, 0x48, 0x0F, 0xB8, 0xC0],
            // cmpxchg16b [rdi]
            Self::Cmpxchg16b => &[0x48, 0x0F, 0xC7, 0x0F],
        }
    }
}

/// Takes over an open `/dev/kvm`.
pub fn from_file(file: File) -> Kvm {
    // SAFETY: the descriptor is open, and its ownership moves into the Kvm.
    unsafe { Kvm::from_raw_fd(file.into_raw_fd()) }
}

/// Instructions per second in kernel mode.
///
/// # Errors
/// KVM cannot run even a loop.
pub fn speed(kvm: &Kvm) -> Result<f64, PayloadError> {
    let measure = |rounds: u32| {
        let [a, b, c, d] = rounds.to_le_bytes();
        // mov ecx, rounds; again: dec ecx; jnz again
        let took = run(kvm, &[0xB9, a, b, c, d, 0xFF, 0xC9, 0x75, 0xFC])?;
        let took = took.map_err(PayloadError::Loop)?;
        let speed = 2.0 * f64::from(rounds) / took.as_secs_f64().max(1e-9);
        Ok((took, speed))
    };
    let (took, first) = measure(FEW_ROUNDS)?;
    if took > QUICK {
        return Ok(first);
    }
    // The better of the two: another process may have had the processor for a while.
    measure(MANY_ROUNDS).map(|(_, second)| first.max(second))
}

/// Whether kernel mode can run `instruction`.
///
/// # Errors
/// KVM refused to make the guest.
pub fn runs(kvm: &Kvm, instruction: Instruction) -> Result<bool, PayloadError> {
    run(kvm, instruction.code()).map(|outcome| outcome.is_ok())
}

/// Runs `code` in a guest of its own. Gives the time it took, or how it ended otherwise.
fn run(kvm: &Kvm, code: &[u8]) -> Result<Result<Duration, String>, PayloadError> {
    let memory: GuestMemoryMmap<()> = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| PayloadError::Memory(error.to_string()))?;
    fill(&memory, code).map_err(|error| PayloadError::Memory(error.to_string()))?;
    let vm = kvm.create_vm().map_err(refused("make a virtual machine"))?;
    let host = memory
        .get_host_address(GuestAddress(0))
        .map_err(|error| PayloadError::Memory(error.to_string()))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: u64::try_from(MEMORY).unwrap_or_default(),
        userspace_addr: u64::try_from(host.addr()).unwrap_or_default(),
    };
    // SAFETY: the region is `memory`, which outlives the virtual machine: it was declared before it.
    unsafe { vm.set_user_memory_region(region) }.map_err(refused("give a guest memory"))?;
    vm.set_identity_map_address(IDENTITY_MAP_PAGE)
        .map_err(refused("place the identity map"))?;
    vm.set_tss_address(TSS_PAGES)
        .map_err(refused("place the task state segment"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(refused("make a vCPU"))?;
    set_registers(kvm, &vcpu)?;
    let start = Instant::now();
    let exit = vcpu.run().map_err(refused("run a vCPU"))?;
    let took = start.elapsed();
    Ok(match exit {
        VcpuExit::IoOut(DONE_PORT, _) => Ok(took),
        other => Err(format!("{other:?}")),
    })
}

fn fill(memory: &GuestMemoryMmap<()>, code: &[u8]) -> Result<(), vm_memory::GuestMemoryError> {
    for (n, descriptor) in (0u64..).zip(DESCRIPTORS) {
        memory.write_obj(descriptor, GuestAddress(GDT + n * 8))?;
    }
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    memory.write_obj(PD | PRESENT_WRITABLE, GuestAddress(PDPT))?;
    memory.write_obj(PRESENT_WRITABLE | HUGE, GuestAddress(PD))?;
    // The handler lies below 64 KiB + 64 KiB: its offset needs the first and the second 16 bits of the gate.
    let gate = (HANDLER & 0xFFFF)
        | u64::from(CODE_SELECTOR) << 16
        | GATE_TYPE << 40
        | (HANDLER >> 16 & 0xFFFF) << 48;
    memory.write_obj(gate, GuestAddress(IDT + BREAKPOINT_VECTOR * 16))?;
    // iretq
    memory.write_slice(&[0x48, 0xCF], GuestAddress(HANDLER))?;
    // mov al, 'A'; out DONE_PORT, al; hlt
    let done = [0xB0, 0x41, 0xE6, 0x10, 0xF4];
    memory.write_slice(&[code, &done].concat(), GuestAddress(CODE))
}

fn set_registers(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), PayloadError> {
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("list the CPU features it supports"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(refused("set a vCPU's features"))?;
    let mut sregs = vcpu
        .get_sregs()
        .map_err(refused("read a vCPU's registers"))?;
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, PML4, CR4, EFER);
    let table = |base, limit| kvm_dtable {
        base,
        limit,
        ..kvm_dtable::default()
    };
    sregs.gdt = table(GDT, 23);
    sregs.idt = table(IDT, 0xFFF);
    let flat = kvm_segment {
        limit: u32::MAX,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xB,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 3,
        db: 1,
        ..flat
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    vcpu.set_sregs(&sregs)
        .map_err(refused("set a vCPU's registers"))?;
    let regs = kvm_regs {
        rip: CODE,
        rsp: STACK_TOP,
        rdi: DATA,
        // Bit 1 is always set (Intel SDM 1 §3.4.3).
        rflags: 2,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs)
        .map_err(refused("set a vCPU's registers"))
}
