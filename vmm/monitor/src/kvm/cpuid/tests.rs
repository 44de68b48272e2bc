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
fn the_guest_sees_a_hypervisor_a_deadline_timer_and_no_performance_counters() {
    let entries = for_vcpu(&host(), topology(1, false), TIMING, 0);
    let ecx = find(&entries, 1, 0).ecx;
    assert_ne!(ecx & ECX1_HYPERVISOR, 0);
    assert_ne!(ecx & ECX1_TSC_DEADLINE, 0);
    assert_eq!(find(&entries, 1, 0).edx & EDX1_HTT, 0);
    assert_eq!(find(&entries, 0xA, 0).eax, 0);
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

#[test]
fn physical_bits_are_what_kvm_can_map() {
    let bits =
        |eax| physical_bits(&CpuId::from_entries(&[entry(0x8000_0008, 0, eax, 0, 0, 0)]).unwrap());
    assert_eq!(bits(0x3028), 40);
    assert_eq!(bits(0x0030_3934), 48);
    assert_eq!(bits(0x00FF), 52);
    assert_eq!(physical_bits(&CpuId::new(0).unwrap()), 36);
}
