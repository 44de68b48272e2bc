use super::*;

fn entry(function: u32, index: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

/// A host with every leaf that is patched.
fn host() -> CpuId {
    CpuId::from_entries(&[
        entry(0, 0, 0x1F, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
        entry(1, 0, 0x806F8, 0x0710_0800, 0x0020_0000, 0x0178_BFBF),
        entry(4, 0, 0xFC00_4121, 0, 0, 0),
        entry(4, 3, 0xFC1F_C163, 0, 0, 0),
        entry(4, 4, 0, 0, 0, 0),
        entry(0xA, 0, 0x0730_0404, 0, 0, 0x603),
        entry(0xB, 0, 1, 2, 0x100, 7),
        entry(0x1F, 0, 1, 2, 0x100, 7),
        entry(0x4000_0000, 0, 0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D),
        entry(0x4000_0001, 0, 0x0100_7EFB, 0, 0, 0),
        entry(0x8000_0001, 0, 0, 0, 1 << 22, 0),
        entry(0x8000_0008, 0, 0x3030, 0, 0x7F7F, 0),
        entry(0x8000_001D, 0, 0xFFFF_C121, 0, 0, 0),
        entry(0x8000_001D, 3, 0xFFFF_C163, 0, 0, 0),
        entry(0x8000_001E, 0, 99, 99, 99, 0),
    ])
    .unwrap()
}

const TIMING: Timing = Timing {
    tsc_khz: 2_400_000,
    tsc_deadline: true,
};

fn topology(count: u64, smt: bool) -> Topology {
    Topology::new(CpuConfig::new(count, smt).unwrap())
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    *entries
        .iter()
        .find(|e| e.function == function && e.index == index)
        .unwrap_or_else(|| panic!("no leaf {function:#x}.{index}"))
}

/// Every valid number of vCPUs, with and without threads.
fn every_topology() -> impl Iterator<Item = (u8, bool)> {
    (1..=32).flat_map(|count| {
        [false, true]
            .into_iter()
            .filter(move |smt| !smt || count == 1 || count % 2 == 0)
            .map(move |smt| (count, smt))
    })
}

#[test]
fn apic_ids_agree_in_every_leaf_that_tells_one() {
    for (count, smt) in every_topology() {
        for index in 0..count {
            let entries = for_vcpu(&host(), topology(count.into(), smt), TIMING, index);
            assert_eq!(find(&entries, 1, 0).ebx >> 24, u32::from(index));
            for leaf in [0xB, 0x1F] {
                for level in 0..3 {
                    assert_eq!(find(&entries, leaf, level).edx, u32::from(index));
                }
            }
            assert_eq!(find(&entries, 0x8000_001E, 0).eax, u32::from(index));
        }
    }
}

#[test]
fn shifting_apic_ids_gives_one_package_and_cores_of_the_right_size() {
    for (count, smt) in every_topology() {
        let threads: u32 = if smt && count > 1 { 2 } else { 1 };
        let entries = for_vcpu(&host(), topology(count.into(), smt), TIMING, 0);
        let (thread, package) = (find(&entries, 0xB, 0), find(&entries, 0xB, 1));
        assert_eq!((thread.ebx, thread.ecx), (threads, 0x100));
        assert_eq!((package.ebx, package.ecx), (u32::from(count), 0x201));
        assert_eq!(find(&entries, 0xB, 2).ebx, 0);
        let mut cores = std::collections::BTreeMap::new();
        for index in 0..u32::from(count) {
            assert_eq!(index >> package.eax, 0, "one package");
            *cores.entry(index >> thread.eax).or_insert(0) += 1;
        }
        assert!(cores.values().all(|n| *n == threads), "{count} {smt}");
    }
}

#[test]
fn amd_leaves_tell_the_same_topology() {
    for (count, smt) in every_topology() {
        let threads: u32 = if smt && count > 1 { 2 } else { 1 };
        let entries = for_vcpu(&host(), topology(count.into(), smt), TIMING, count - 1);
        let sizes = find(&entries, 0x8000_0008, 0).ecx;
        assert_eq!(sizes & 0xFF, u32::from(count) - 1);
        assert_eq!(
            1 << (sizes >> 12 & 0xF),
            u32::from(count).next_power_of_two()
        );
        let core = find(&entries, 0x8000_001E, 0).ebx;
        assert_eq!(core >> 8 & 0xFF, threads - 1);
        assert_eq!(core & 0xFF, (u32::from(count) - 1) / threads);
        let cmp_legacy = find(&entries, 0x8000_0001, 0).ecx & ECX8_CMP_LEGACY != 0;
        assert_eq!(cmp_legacy, count > 1);
    }
}

#[test]
fn small_caches_belong_to_a_core_and_the_last_level_to_the_package() {
    for (count, smt) in every_topology() {
        let threads: u32 = if smt && count > 1 { 2 } else { 1 };
        let entries = for_vcpu(&host(), topology(count.into(), smt), TIMING, 0);
        let sharing = |leaf, index| (find(&entries, leaf, index).eax >> 14 & 0xFFF) + 1;
        for leaf in [4, 0x8000_001D] {
            assert_eq!(sharing(leaf, 0), threads);
            assert_eq!(sharing(leaf, 3), u32::from(count).next_power_of_two());
        }
        assert_eq!(find(&entries, 4, 4).eax, 0, "the end of the list stays");
    }
}

#[test]
fn the_guest_sees_a_hypervisor_its_clocks_and_a_deadline_timer() {
    let entries = for_vcpu(&host(), topology(1, false), TIMING, 0);
    let ecx = find(&entries, 1, 0).ecx;
    assert_ne!(ecx & ECX1_HYPERVISOR, 0);
    assert_ne!(ecx & ECX1_TSC_DEADLINE, 0);
    assert_ne!(ecx & 1 << 21, 0, "x2APIC");
    // Bits 0 and 3: kvmclock; 24: it is the same on all vCPUs (Documentation/virt/kvm/x86/cpuid.rst).
    let paravirt = find(&entries, 0x4000_0001, 0).eax;
    assert_eq!(paravirt & 0x0100_0009, 0x0100_0009);
    assert_eq!(find(&entries, 1, 0).edx & EDX1_HTT, 0);
    assert_eq!(find(&entries, HYPERVISOR_TIMING, 0).eax, 2_400_000);
    assert_eq!(find(&entries, HYPERVISOR_BASE, 0).eax, HYPERVISOR_TIMING);
    let none = Timing {
        tsc_khz: 0,
        tsc_deadline: false,
    };
    let entries = for_vcpu(&host(), topology(1, false), none, 0);
    assert_eq!(find(&entries, 1, 0).ecx & ECX1_TSC_DEADLINE, 0);
    assert_eq!(find(&entries, HYPERVISOR_BASE, 0).eax, 0x4000_0001);
}

/// The guest's leaf where KVM supports every bit of it.
fn of_all(function: u32, index: u32) -> [u32; 4] {
    let host = [entry(
        function,
        index,
        u32::MAX,
        u32::MAX,
        u32::MAX,
        u32::MAX,
    )];
    let entries = for_vcpu(
        &CpuId::from_entries(&host).unwrap(),
        topology(1, false),
        TIMING,
        0,
    );
    let found = find(&entries, function, index);
    [found.eax, found.ebx, found.ecx, found.edx]
}

#[test]
fn counters_samplers_and_traces_are_withheld_on_every_makers_cpus() {
    for leaf in [0xA, 0x14, 0x1C, 0x23, 0x8000_001B, 0x8000_0022] {
        assert_eq!(of_all(leaf, 0), [0; 4], "leaf {leaf:#x}");
    }
    let [_, _, ecx, edx] = of_all(1, 0);
    assert_eq!((ecx & (1 << 2 | 1 << 15), edx & 1 << 21), (0, 0));
    let [_, ebx, _, edx] = of_all(7, 0);
    assert_eq!((ebx & 1 << 25, edx & 1 << 19), (0, 0));
    assert_eq!(of_all(7, 1)[0] & 1 << 8, 0);
    let counters = 1 << 10 | 1 << 23 | 1 << 24 | 1 << 27 | 1 << 28;
    assert_eq!(of_all(0x8000_0001, 0)[2] & counters, 0);
}

#[test]
fn nested_machines_enclaves_transactions_and_user_waits_are_withheld() {
    for leaf in [0x12, 0x8000_000A] {
        assert_eq!(of_all(leaf, 0), [0; 4], "leaf {leaf:#x}");
    }
    assert_eq!(of_all(1, 0)[2] & 1 << 5, 0);
    assert_eq!(of_all(0x8000_0001, 0)[2] & 1 << 2, 0);
    let [_, ebx, ecx, _] = of_all(7, 0);
    assert_eq!((ebx & (1 << 2 | 1 << 4 | 1 << 11), ecx & 1 << 5), (0, 0));
    assert_eq!(ecx & 1 << 30, 0);
}

#[test]
fn all_other_features_are_the_hosts() {
    let withheld_bits = |leaf, index| {
        of_all(leaf, index)
            .map(u32::count_zeros)
            .into_iter()
            .sum::<u32>()
    };
    // Of leaf 1 also HTT, as there is one vCPU; brand, initial APIC id and number of ids are fief's.
    let [eax, _, ecx, edx] = of_all(1, 0);
    assert_eq!(
        (eax, ecx.count_zeros(), edx.count_zeros()),
        (u32::MAX, 3, 2)
    );
    assert_eq!(withheld_bits(7, 0), 7);
    assert_eq!(withheld_bits(7, 1), 1);
    // And CmpLegacy.
    assert_eq!(withheld_bits(0x8000_0001, 0), 7);
    for leaf in [0xD, 0x4000_0001, 0x8000_0007, 0x8000_0021] {
        assert_eq!(withheld_bits(leaf, 0), 0, "leaf {leaf:#x}");
    }
}

#[test]
fn physical_bits_are_what_kvm_can_map() {
    let bits =
        |eax| physical_bits(&CpuId::from_entries(&[entry(0x8000_0008, 0, eax, 0, 0, 0)]).unwrap());
    assert_eq!(bits(0x3028), 40);
    assert_eq!(bits(0x0030_3934), 48);
    assert_eq!(bits(0x00FF), 52);
    assert_eq!(physical_bits(&CpuId::new(0).unwrap()), 36);
}
