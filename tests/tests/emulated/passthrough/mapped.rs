//! Memory behind BARs: the guest reaches it without its monitor and without the host's kernel.

use super::tenant::{Tenant, bind, unbind};
use super::{GPU, LARGE, in_host};

/// How many words a test writes, and then reads.
const WORDS: u64 = 200_000;

/// What KVM has counted of the only machine: all exits, and those for what is emulated.
#[track_caller]
fn exits() -> [u64; 2] {
    let script = "mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
        cd /sys/kernel/debug/kvm/*-*/ && cat exits mmio_exits pf_emulate";
    let counted = in_host(script).ok();
    let numbers: Vec<u64> = counted.lines().map(|line| line.parse().unwrap()).collect();
    let [all, mmio, faults] = numbers.try_into().unwrap();
    [all, mmio + faults]
}

/// Writes and reads all over a BAR, and makes sure that no access of those made the machine exit. (Timers, the agent and
/// first touches of pages do meanwhile: a few hundred times, whatever the number of accesses.)
#[track_caller]
fn reach(tenant: &Tenant, address: &str, bar: u8) {
    let fill = format!("driver fill {address} {bar} {WORDS}");
    let expected = format!("{WORDS} words are there");
    let before = exits();
    assert_eq!(tenant.sh(&fill).ok(), expected);
    let after = exits();
    let [all, emulated] = [after[0] - before[0], after[1] - before[1]];
    println!("{} accesses: {all} exits, {emulated} emulated", WORDS * 2);
    assert!(emulated < 20, "{emulated}");
    assert!(all < WORDS / 50, "{all}");
}

#[test]
fn memory_of_a_gibibyte_behind_a_bar_is_reached_without_exits() {
    bind(&[LARGE]);
    let tenant = Tenant::start("mapped", &format!("--device {LARGE}")).with_driver();
    let address = tenant.address("1af4:1110");
    let size = format!("stat -c %s /sys/bus/pci/devices/{address}/resource2");
    assert_eq!(tenant.sh(&size).ok(), (1_u64 << 30).to_string());
    reach(&tenant, &address, 2);
    // The same counters do count: registers of what the monitor plays are not mapped.
    let before = exits();
    let again = "cd /sys/bus/virtio/drivers/virtio_rng && for d in virtio*; do echo $d > unbind; echo $d > bind; done";
    tenant.sh(again).ok();
    let registers = exits()[1] - before[1];
    assert!(registers > 20, "{registers}");
    drop(tenant);
    unbind(&[LARGE]);
}

#[test]
fn the_frame_buffer_of_a_display_keeps_what_the_tenant_draws() {
    bind(&[GPU]);
    // Another test's tenant may have had it, and it has no reset.
    let options = format!("--gpu {GPU} --allow-no-reset");
    let tenant = Tenant::start("drawer", &options).with_driver();
    let address = tenant.address("1234:1111");
    let class = tenant.sh(&format!("cat /sys/bus/pci/devices/{address}/class"));
    assert_eq!(class.ok(), "0x038000");
    let size = format!("stat -c %s /sys/bus/pci/devices/{address}/resource0");
    assert_eq!(tenant.sh(&size).ok(), (256_u64 << 20).to_string());
    reach(&tenant, &address, 0);
    // The identification register of its mode set (0xb0c5): registers behind the other BAR.
    let register = tenant.sh(&format!("driver read {address} 2 0x500"));
    assert!(register.ok().ends_with("b0c5"));
    drop(tenant);
    unbind(&[GPU]);
}
