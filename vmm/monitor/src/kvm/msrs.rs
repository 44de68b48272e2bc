//! Model-specific registers that a vCPU starts with.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{KvmError, refused};

/// IA32_MISC_ENABLE (Intel SDM 4, table 2-2).
const MISC_ENABLE: u32 = 0x1A0;
/// Fast string operations.
const FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE (Intel SDM 3A §12.11.2.1).
const MTRR_DEF_TYPE: u32 = 0x2FF;
/// MTRRs on, everything write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;
/// IA32_PAT (Intel SDM 3A §12.12).
const PAT: u32 = 0x277;
/// Its value after a reset (Intel SDM 3A table 12-12).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// MSR_KVM_POLL_CONTROL: bit 0 lets the host poll before it lets a halted vCPU sleep. A guest that polls by itself clears it.
const KVM_POLL_CONTROL: u32 = 0x4B56_4D05;
/// Its value after a reset (Documentation/virt/kvm/x86/msr.rst).
const KVM_POLL_CONTROL_RESET: u64 = 1;

/// MSRs that are zero after a reset and that Linux may leave otherwise (SYSENTER, SYSCALL, segment bases, kvmclock and
/// the other paravirtual ones, TSC_ADJUST, TSC_AUX, TSC deadline). Those a host lacks are skipped.
const ZERO_AT_RESET: [u32; 22] = [
    0x10,        // TSC
    0x3B,        // TSC_ADJUST
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0x6E0,       // TSC_DEADLINE
    0xC000_0081, // STAR
    0xC000_0082, // LSTAR
    0xC000_0083, // CSTAR
    0xC000_0084, // SFMASK
    0xC000_0102, // KERNEL_GS_BASE
    0xC000_0103, // TSC_AUX
    0x11,        // KVM_WALL_CLOCK
    0x12,        // KVM_SYSTEM_TIME
    0x4B56_4D00, // KVM_WALL_CLOCK_NEW
    0x4B56_4D01, // KVM_SYSTEM_TIME_NEW
    0x4B56_4D02, // KVM_ASYNC_PF_EN
    0x4B56_4D03, // KVM_STEAL_TIME
    0x4B56_4D04, // KVM_PV_EOI_EN
    0x4B56_4D06, // KVM_ASYNC_PF_INT
    0x48,        // SPEC_CTRL
    0xDA0,       // XSS
];

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

fn set(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<usize, KvmError> {
    let msrs = Msrs::from_entries(entries).map_err(|_| KvmError::Msr { index: 0 })?;
    vcpu.set_msrs(&msrs)
        .map_err(refused("set model-specific registers"))
}

/// Sets what differs from KVM's own reset values.
///
/// # Errors
/// KVM refused one of them.
pub fn set_boot(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entries = [
        entry(MISC_ENABLE, FAST_STRING),
        entry(MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ];
    let done = set(vcpu, &entries)?;
    match entries.get(done) {
        Some(left) => Err(KvmError::Msr { index: left.index }),
        None => Ok(()),
    }
}

/// Brings the registers back to where they were before the first start.
///
/// # Errors
/// KVM refused one that every host has.
pub fn reset(vcpu: &VcpuFd) -> Result<(), KvmError> {
    // One at a time: KVM stops at the first register that the host does not have.
    for index in ZERO_AT_RESET {
        set(vcpu, &[entry(index, 0)])?;
    }
    set(vcpu, &[entry(KVM_POLL_CONTROL, KVM_POLL_CONTROL_RESET)])?;
    set(vcpu, &[entry(PAT, PAT_RESET)])?;
    set_boot(vcpu)
}
