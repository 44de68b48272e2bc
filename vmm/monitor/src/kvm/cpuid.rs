//! CPUID of the guest: what KVM supports, minus what a guest shall not have, plus the topology.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::config::CpuConfig;

/// CPUID.1:ECX.TSC_DEADLINE (Intel SDM 2A, table 3-10).
const ECX1_TSC_DEADLINE: u32 = 1 << 24;
/// CPUID.1:ECX, "a hypervisor is present" (AMD64 APM 3, E.3.2).
const ECX1_HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:EDX.HTT: the package has more than one logical processor.
const EDX1_HTT: u32 = 1 << 28;
/// CPUID.0x8000_0001:ECX.CmpLegacy, the same on AMD.
const ECX8_CMP_LEGACY: u32 = 1 << 1;
/// CPUID.0x8000_0001:ECX.TopologyExtensions: leaves 0x8000_001D and 0x8000_001E are there.
const ECX8_TOPOLOGY: u32 = 1 << 22;
/// Leaf where KVM and others tell clock frequencies (originally VMware's).
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// First hypervisor leaf: signature and highest hypervisor leaf.
const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// Frequency of KVM's local APIC timer: one tick a nanosecond (KVM's APIC_BUS_CYCLE_NS).
const APIC_BUS_KHZ: u32 = 1_000_000;

/// How the vCPUs are arranged: one package, cores of one or two threads. APIC ids count the threads without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    vcpus: u8,
    threads_per_core: u8,
}

impl Topology {
    pub fn new(config: CpuConfig) -> Self {
        let threads_per_core = if config.smt() && config.count() > 1 {
            2
        } else {
            1
        };
        Self {
            vcpus: config.count(),
            threads_per_core,
        }
    }

    /// APIC id bits that number the thread within its core.
    fn thread_bits(self) -> u32 {
        self.threads_per_core.trailing_zeros()
    }

    /// APIC id bits that number the thread within the package.
    fn package_bits(self) -> u32 {
        u8::BITS.saturating_sub(self.vcpus.saturating_sub(1).leading_zeros())
    }

    /// Room for APIC ids in the package.
    fn package_ids(self) -> u32 {
        1 << self.package_bits()
    }
}

/// What the guest's clock and addresses are like; filled from KVM.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Frequency of the guest's TSC in kHz, 0 if unknown.
    pub tsc_khz: u32,
    /// The local APIC has the TSC deadline mode.
    pub tsc_deadline: bool,
}

/// The guest's MAXPHYADDR in bits: how far KVM can map guest-physical addresses.
pub fn physical_bits(supported: &CpuId) -> u8 {
    let eax = supported
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008)
        .map_or(36, |entry| entry.eax);
    let [bits, _, guest_bits, _] = eax.to_le_bytes();
    // Since Linux 6.9 KVM names in bits 23:16 how far it can map when that is less than the CPU's own width.
    let bits = if guest_bits == 0 {
        bits
    } else {
        bits.min(guest_bits)
    };
    bits.clamp(32, 52)
}

/// What a guest does not get though KVM supports it: bits of EAX, EBX, ECX and EDX of a leaf. KVM goes by this CPUID, so
/// that using one of them is a fault in the guest. Bits: Intel SDM 2A, CPUID; AMD64 APM 3, appendix E.
fn withheld(function: u32, index: u32) -> [u32; 4] {
    const NOTHING: [u32; 4] = [0; 4];
    const EVERYTHING: [u32; 4] = [u32::MAX; 4];
    // Virtual machines inside the guest: most of what has ever been wrong in KVM was in their handling.
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    const SVM_FEATURES: u32 = 0x8000_000A;
    // What counts, samples or traces execution: a guest could watch its host and its neighbours with it.
    const DTES64: u32 = 1 << 2;
    const PDCM: u32 = 1 << 15;
    const DEBUG_STORE: u32 = 1 << 21;
    const PROCESSOR_TRACE: u32 = 1 << 25;
    const ARCH_LBR: u32 = 1 << 19;
    const PERFMON_EXT: u32 = 1 << 8;
    const COUNTERS: u32 = 0xA;
    const TRACE_LEAF: u32 = 0x14;
    const LBR_LEAF: u32 = 0x1C;
    const PERFMON_EXT_LEAF: u32 = 0x23;
    const IBS: u32 = 1 << 10;
    const PERFCTR_CORE: u32 = 1 << 23;
    const PERFCTR_NB: u32 = 1 << 24;
    const PERF_TSC: u32 = 1 << 27;
    const PERFCTR_LLC: u32 = 1 << 28;
    const IBS_LEAF: u32 = 0x8000_001B;
    const PERFMON_V2: u32 = 0x8000_0022;
    // Enclaves need memory that the monitor would have to reserve.
    const SGX: u32 = 1 << 2;
    const SGX_LAUNCH: u32 = 1 << 30;
    const SGX_LEAF: u32 = 0x12;
    // Transactions leak what their aborts leave in buffers (TSX Asynchronous Abort).
    const HLE: u32 = 1 << 4;
    const RTM: u32 = 1 << 11;
    // UMWAIT and TPAUSE put the host's CPU to sleep; its next user waits for it to wake up.
    const WAITPKG: u32 = 1 << 5;
    match (function, index) {
        (1, _) => [0, 0, VMX | DTES64 | PDCM, DEBUG_STORE],
        (7, 0) => [
            0,
            SGX | HLE | RTM | PROCESSOR_TRACE,
            WAITPKG | SGX_LAUNCH,
            ARCH_LBR,
        ],
        (7, 1) => [PERFMON_EXT, 0, 0, 0],
        (COUNTERS | SGX_LEAF | TRACE_LEAF | LBR_LEAF | PERFMON_EXT_LEAF, _) => EVERYTHING,
        (0x8000_0001, _) => {
            let counters = IBS | PERFCTR_CORE | PERFCTR_NB | PERF_TSC | PERFCTR_LLC;
            [0, 0, SVM | counters, 0]
        }
        (SVM_FEATURES | IBS_LEAF | PERFMON_V2, _) => EVERYTHING,
        _ => NOTHING,
    }
}

/// Makes the CPUID of vCPU `index` from what KVM supports.
pub fn for_vcpu(
    supported: &CpuId,
    topology: Topology,
    timing: Timing,
    index: u8,
) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, 0xB | 0x1F | HYPERVISOR_TIMING))
        .copied()
        .collect();
    let max_basic = entries
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    for entry in &mut entries {
        let [eax, ebx, ecx, edx] = withheld(entry.function, entry.index);
        entry.eax &= !eax;
        entry.ebx &= !ebx;
        entry.ecx &= !ecx;
        entry.edx &= !edx;
        patch(entry, topology, timing, index);
    }
    // 0xB also where the host has it not but goes that far: it says "x2APIC id" to whoever asks.
    for leaf in [0xB_u32, 0x1F] {
        let host_has = supported
            .as_slice()
            .iter()
            .any(|e| e.function == leaf && e.ebx != 0);
        if leaf <= max_basic && (leaf == 0xB || host_has) {
            entries.extend(topology_leaf(leaf, topology, index));
        }
    }
    if timing.tsc_khz != 0 {
        entries.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: timing.tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
    entries
}

fn patch(entry: &mut kvm_cpuid_entry2, topology: Topology, timing: Timing, index: u8) {
    let several = topology.vcpus > 1;
    match entry.function {
        1 => {
            let [brand, clflush, _, _] = entry.ebx.to_le_bytes();
            let ids = u8::try_from(topology.package_ids()).unwrap_or(u8::MAX);
            entry.ebx = u32::from_le_bytes([brand, clflush, ids, index]);
            entry.ecx |= ECX1_HYPERVISOR;
            set_bit(&mut entry.ecx, ECX1_TSC_DEADLINE, timing.tsc_deadline);
            set_bit(&mut entry.edx, EDX1_HTT, several);
        }
        // Deterministic cache parameters (Intel SDM 2A, CPUID leaf 4).
        4 if entry.eax & 0x1F != 0 => {
            let sharing = cache_sharing(entry.eax, topology);
            let cores = (topology.package_ids() >> topology.thread_bits()).saturating_sub(1);
            entry.eax = entry.eax & 0x3FFF | sharing.saturating_sub(1) << 14 | cores << 26;
        }
        HYPERVISOR_BASE if timing.tsc_khz != 0 => entry.eax = entry.eax.max(HYPERVISOR_TIMING),
        0x8000_0001 => {
            let amd = entry.ecx & ECX8_TOPOLOGY != 0;
            set_bit(&mut entry.ecx, ECX8_CMP_LEGACY, several && amd);
        }
        // Number of threads and APIC id bits (AMD64 APM 3, E.4.7).
        0x8000_0008 => {
            let threads = u32::from(topology.vcpus.saturating_sub(1));
            entry.ecx = entry.ecx & !0xF0FF | topology.package_bits() << 12 | threads;
        }
        // Cache topology (AMD64 APM 3, E.4.15).
        0x8000_001D if entry.eax & 0x1F != 0 => {
            let sharing = cache_sharing(entry.eax, topology);
            entry.eax = entry.eax & 0x3FFF | sharing.saturating_sub(1) << 14;
        }
        // Extended APIC id, core and node (AMD64 APM 3, E.4.16).
        0x8000_001E => {
            let threads = u32::from(topology.threads_per_core);
            entry.eax = u32::from(index);
            entry.ebx = u32::from(index) >> topology.thread_bits() | threads.saturating_sub(1) << 8;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

/// APIC ids that share a cache: those of a core for levels 1 and 2, the package's for level 3.
fn cache_sharing(eax: u32, topology: Topology) -> u32 {
    if eax >> 5 & 7 >= 3 {
        topology.package_ids()
    } else {
        u32::from(topology.threads_per_core)
    }
}

/// Extended topology (Intel SDM 2A, CPUID leaves 0xB and 0x1F): threads of a core, threads of the package, end.
fn topology_leaf(leaf: u32, topology: Topology, index: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |subleaf: u32, bits: u32, count: u8, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: bits,
        ebx: u32::from(count),
        ecx: kind << 8 | subleaf,
        edx: u32::from(index),
        ..Default::default()
    };
    [
        level(0, topology.thread_bits(), topology.threads_per_core, 1),
        level(1, topology.package_bits(), topology.vcpus, 2),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests;
