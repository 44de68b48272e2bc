//! The only module that talks to `/dev/kvm`.

pub mod coalesced;
pub mod cpuid;
pub mod doorbell;
pub mod groups;
pub mod irq;
pub mod irqchip;
pub mod memory;
pub mod msrs;
pub mod slots;
pub mod vcpu;

use std::fs::File;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_PMU_CAPABILITY, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use std::os::fd::FromRawFd;

use crate::machine::files::Files;
use fief_devices::GuestRam;
use memory::GuestMemory;

/// Where the kernel offers virtual machines.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// The only version of the KVM API since Linux 2.6.22 (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;

/// Why this machine cannot run guests, or why KVM refused something.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error(
        "{} does not exist; load the kernel module kvm_intel or kvm_amd, switch virtualization on in the firmware, or, \
         inside a virtual machine, ask for nested virtualization",
        .0.display()
    )]
    Missing(PathBuf),
    #[error(
        "no permission to open {}; run as a member of the group that owns it (often `kvm`) or as root",
        .0.display()
    )]
    Permission(PathBuf),
    #[error("cannot open {}: {source}", path.display())]
    Open {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not KVM or speaks API version {got}; this monitor needs version {API_VERSION}; is the kernel module kvm_intel or kvm_amd loaded?", path.display())]
    ApiVersion { path: PathBuf, got: i32 },
    #[error(
        "the host's KVM cannot do {what} ({name}); a host kernel of version 5.10 or newer is needed"
    )]
    MissingCapability {
        name: &'static str,
        what: &'static str,
    },
    #[error("the guest is to have {asked} vCPUs, but the host's KVM allows {max}; ask for fewer")]
    TooManyVcpus { asked: u8, max: usize },
    #[error("KVM refused to {what}: {source}")]
    Refused {
        what: &'static str,
        source: kvm_ioctls::Error,
    },
    #[error("KVM left the MSR {index:#x} as it was; the host's KVM is too old for this monitor")]
    Msr { index: u32 },
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
}

/// Turns a KVM errno into "KVM refused to ...".
pub(crate) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Refused { what, source }
}

/// What the monitor cannot work without.
const REQUIRED: [(Cap, &str, &str); 10] = [
    (
        Cap::UserMemory,
        "KVM_CAP_USER_MEMORY",
        "guest memory in user space",
    ),
    (
        Cap::Irqchip,
        "KVM_CAP_IRQCHIP",
        "interrupt controllers in the kernel",
    ),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "interrupts raised by eventfds"),
    (
        Cap::Ioeventfd,
        "KVM_CAP_IOEVENTFD",
        "guest writes that signal eventfds",
    ),
    (
        Cap::SetTssAddr,
        "KVM_CAP_SET_TSS_ADDR",
        "placing the task state segment",
    ),
    (
        Cap::SetIdentityMapAddr,
        "KVM_CAP_SET_IDENTITY_MAP_ADDR",
        "placing the identity map",
    ),
    (
        Cap::ImmediateExit,
        "KVM_CAP_IMMEDIATE_EXIT",
        "leaving a vCPU at once",
    ),
    (Cap::MpState, "KVM_CAP_MP_STATE", "vCPU run states"),
    (
        Cap::SignalMsi,
        "KVM_CAP_SIGNAL_MSI",
        "message-signalled interrupts",
    ),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "CPUID of the guest"),
];

/// `/dev/kvm`, opened and checked.
pub struct Host {
    kvm: Kvm,
    cpuid: CpuId,
    tsc_deadline: bool,
}

impl Host {
    /// Opens `path` and checks everything that the monitor needs.
    ///
    /// # Errors
    /// One error for each thing that can be missing; see [`KvmError`].
    pub fn open(files: &Files, path: &Path) -> Result<Self, KvmError> {
        let file = files.open_device(path).map_err(|e| open_error(path, e))?;
        let kvm = from_file(file);
        let got = kvm.get_api_version();
        if got != API_VERSION {
            return Err(KvmError::ApiVersion {
                path: path.to_owned(),
                got,
            });
        }
        for (cap, name, what) in REQUIRED {
            if !kvm.check_extension(cap) {
                return Err(KvmError::MissingCapability { name, what });
            }
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("list the CPU features it supports"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self {
            kvm,
            cpuid,
            tsc_deadline,
        })
    }

    /// CPUID that KVM can give to a guest.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// KVM's local APIC has the TSC deadline mode; KVM does not say so in CPUID (api.rst, KVM_GET_SUPPORTED_CPUID).
    pub fn tsc_deadline(&self) -> bool {
        self.tsc_deadline
    }

    /// Makes a virtual machine with `memory` as its RAM and KVM's interrupt controllers.
    ///
    /// # Errors
    /// Too many vCPUs for this host, or KVM refused a step.
    pub fn create_vm(&self, memory: &GuestMemory, vcpus: u8) -> Result<Vm, KvmError> {
        let max = self.kvm.get_max_vcpus();
        if usize::from(vcpus) > max {
            return Err(KvmError::TooManyVcpus { asked: vcpus, max });
        }
        let vm = self
            .kvm
            .create_vm()
            .map_err(refused("make a virtual machine"))?;
        // Memory first: once the irqchip's devices are on KVM's buses, every new slot waits for an SRCU grace period.
        memory.attach(&vm)?;
        switch_counters_off(&vm);
        vm.set_identity_map_address(crate::boot::layout::IDENTITY_MAP_START)
            .map_err(refused("place the identity map"))?;
        let tss = usize::try_from(crate::boot::layout::TSS_START).unwrap_or(usize::MAX);
        vm.set_tss_address(tss)
            .map_err(refused("place the task state segment"))?;
        let ring = coalesced::Ring::new(&self.kvm, &vm).map(Arc::new);
        vm.create_irq_chip()
            .map_err(refused("make the interrupt controllers"))?;
        Ok(Vm {
            fd: Arc::new(vm),
            ring,
            ram: memory.ram().clone(),
        })
    }
}

/// Switches the guest's performance counters off. CPUID alone does not do it: AMD's first four are there whatever it says.
/// To be called before there is a vCPU (api.rst, KVM_CAP_PMU_CAPABILITY).
fn switch_counters_off(vm: &VmFd) {
    let mut off = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..Default::default()
    };
    if let Some(first) = off.args.first_mut() {
        *first = KVM_PMU_CAP_DISABLE.into();
    }
    // Refused where KVM has no counters to give, and before Linux 5.18.
    let _ = vm.enable_cap(&off);
}

/// A virtual machine of KVM.
pub struct Vm {
    pub fd: Arc<VmFd>,
    /// Coalesced port writes, where KVM has them.
    pub ring: Option<Arc<coalesced::Ring>>,
    /// What KVM has as the guest's memory.
    ram: GuestRam,
}

fn from_file(file: File) -> Kvm {
    // SAFETY: the descriptor is open and its ownership moves into the Kvm; that it is KVM at all is checked next by
    // asking for the API version.
    unsafe { Kvm::from_raw_fd(file.into_raw_fd()) }
}

fn open_error(path: &Path, source: std::io::Error) -> KvmError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => KvmError::Missing(path),
        Some(libc::EACCES | libc::EPERM) => KvmError::Permission(path),
        _ => KvmError::Open { path, source },
    }
}

#[cfg(test)]
mod tests;
