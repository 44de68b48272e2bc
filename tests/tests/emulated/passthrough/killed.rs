//! A monitor that is killed while it has a device.

use fief_tests::waiting;

use super::tenant::{Tenant, bind, unbind};
use super::{SPARE_DRIVE, in_host, run};

/// Waits until the host's kernel has no page pinned for devices: processors tell it once a second what they have counted.
#[track_caller]
fn nothing_pinned() {
    waiting::until("all pages are released", || (pinned() == 0).then_some(()));
}

/// How many pages the host's kernel has pinned for devices.
#[track_caller]
fn pinned() -> u64 {
    let script = "awk '/nr_foll_pin_acquired/ {a = $2} /nr_foll_pin_released/ {r = $2} END {print a - r}' /proc/vmstat";
    in_host(script).ok().parse().unwrap()
}

#[test]
fn a_killed_monitor_leaves_the_device_usable_and_no_memory_pinned() {
    bind(&[SPARE_DRIVE]);
    nothing_pinned();
    let tenant = Tenant::start("killed", &format!("--device {SPARE_DRIVE}"));
    // All 256 MiB of it.
    assert!(pinned() >= 65536, "{}", pinned());
    // It is in the middle of writes.
    let script = "until test -b /dev/nvme0n1; do sleep 0.1; done
        (while dd if=/dev/zero of=/dev/nvme0n1 bs=64k count=64 oflag=direct; do :; done) > /dev/null 2>&1 &
        sleep 1; awk '{print $5}' /sys/block/nvme0n1/stat";
    let written: u64 = tenant.sh(script).ok().parse().unwrap();
    assert!(written > 0);
    in_host("kill -9 $(pidof fief-vmm)").ok();
    run("wait killed");
    let listed = super::super::json(&run("inspect killed").ok());
    assert_eq!(listed["exit"]["reason"], "killed", "{listed}");
    assert_eq!(
        listed["exit"]["detail"], "its monitor was killed",
        "{listed}"
    );
    nothing_pinned();

    run("start killed").ok();
    let script = "until test -b /dev/nvme0n1; do sleep 0.1; done
        dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 iflag=direct 2>&1 | tail -1";
    assert!(tenant.sh(script).ok().starts_with("4194304 bytes"));
    drop(tenant);
    nothing_pinned();
    unbind(&[SPARE_DRIVE]);
}
