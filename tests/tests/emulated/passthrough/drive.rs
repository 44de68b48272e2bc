//! An NVMe drive: DMA both ways, MSI-X, and what reads cost.

use super::tenant::{Tenant, bind, unbind};
use super::{SPARE_DRIVE, in_host};

#[test]
fn what_a_tenant_writes_to_its_drive_is_on_it() {
    bind(&[SPARE_DRIVE]);
    let options = format!("--device {SPARE_DRIVE}");
    let first = Tenant::start("writer", &options);
    let script = "set -e; until test -b /dev/nvme0n1; do sleep 0.1; done; mkfs.ext4 -q /dev/nvme0n1; mount /dev/nvme0n1 /mnt
        head -c 16M /dev/urandom > /mnt/file; sync; echo 3 > /proc/sys/vm/drop_caches
        sha256sum < /mnt/file; umount /mnt; grep nvme0q1 /proc/interrupts";
    let said = first.sh(script).ok();
    let (sum, interrupts) = said.split_once('\n').unwrap();
    assert!(interrupts.contains("PCI-MSIX"), "{interrupts}");
    drop(first);
    // Another has the same drive; what is on it is not wiped.
    let second = Tenant::start("reader", &options);
    let script = "until test -b /dev/nvme0n1; do sleep 0.1; done; mount -r /dev/nvme0n1 /mnt && sha256sum < /mnt/file";
    assert_eq!(second.sh(script).ok(), sum);
    drop(second);
    unbind(&[SPARE_DRIVE]);
}

/// Numbers that KVM and the kernel have counted of the only machine: exits, those for what is emulated, for ports, for
/// interrupts, of idling; and the monitor's processor time in ticks.
#[track_caller]
fn counted() -> [u64; 6] {
    let script = "mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
        cd /sys/kernel/debug/kvm/*-*/ && cat exits mmio_exits io_exits irq_exits halt_exits
        set -- $(cut -d ')' -f 2 /proc/$(pidof fief-vmm)/stat); echo $((${12} + ${13}))";
    let counted = in_host(script).ok();
    let numbers: Vec<u64> = counted.lines().map(|line| line.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

#[test]
fn reads_from_the_drive_make_no_exits_for_mmio() {
    const READS: u64 = 2000;
    bind(&[SPARE_DRIVE]);
    let tenant = Tenant::start("counted", &format!("--device {SPARE_DRIVE}"));
    let read = |count: u64| {
        let script = format!(
            "until test -b /dev/nvme0n1; do sleep 0.1; done; dd if=/dev/nvme0n1 of=/dev/null bs=4k count={count} iflag=direct 2>&1 | tail -1"
        );
        let said = tenant.sh(&script).ok();
        assert!(
            said.starts_with(&format!("{} bytes", count * 4096)),
            "{said}"
        );
    };
    read(1);
    let before = counted();
    read(READS);
    let after = counted();
    let [all, mmio, ports, irqs, halts, ticks] = std::array::from_fn(|n| after[n] - before[n]);
    let per_read = |number: u64| number as f64 / READS as f64;
    println!(
        "per read at depth 1: {:.2} exits ({:.2} halts, {:.2} interrupts, {:.2} ports, {:.3} MMIO), {:.0} µs of user+sys",
        per_read(all),
        per_read(halts),
        per_read(irqs),
        per_read(ports),
        per_read(mmio),
        per_read(ticks) * 10_000.0
    );
    // What the kernel's timers and the agent cause is there without reads, too.
    assert!(mmio < READS / 100, "{mmio}");
    drop(tenant);
    unbind(&[SPARE_DRIVE]);
}
