//! Devices are reset between two tenants.

use super::tenant::{Tenant, bind, put_driver, unbind};
use super::{SPARE_DRIVE, in_host};

/// How many functions the host's kernel has reset by FLR, since this was asked first.
#[track_caller]
fn resets() -> u64 {
    let script = "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing
        cd /sys/kernel/tracing
        test -d events/kprobes/fief_flr || echo p:fief_flr pcie_flr > kprobe_events
        echo 1 > events/kprobes/fief_flr/enable
        awk '$1 == \"fief_flr\" {print $2}' kprobe_profile";
    in_host(script).ok().parse().unwrap()
}

/// The drive's controller (NVM Express base specification 1.4 §3.1): configuration 0x14, to be enabled with entries of 64 and
/// 16 bytes; status 0x1c, of which bit 0 says that it is ready, and its queues are in use.
#[test]
fn a_drive_is_reset_when_its_tenant_ends_and_when_the_next_begins() {
    bind(&[SPARE_DRIVE]);
    put_driver(&["host", "exec", "-i"]);
    let options = format!("--device {SPARE_DRIVE}");
    let first = Tenant::start("before", &options).with_driver();
    let address = first.address("1b36:0010");
    // Its driver has left it; the queues that it had are switched on again, without anybody who would switch them off.
    let script = format!(
        "until test -b /dev/nvme0n1; do sleep 0.1; done; echo {address} > /sys/bus/pci/drivers/nvme/unbind
         driver write {address} 0 0x14 0; driver write {address} 0 0x14 0x460001; driver read {address} 0 0x1c"
    );
    assert_eq!(first.sh(&script).ok(), "0x1");
    let before = resets();
    drop(first);
    assert!(resets() > before);
    let status = format!("driver read {SPARE_DRIVE} 0 0x1c");
    assert_eq!(in_host(&status).ok(), "0x0");

    // What happens to it between two tenants does not come to the second one either.
    let before = resets();
    let second = Tenant::start("after", &options);
    assert!(resets() > before);
    let script = "until test -b /dev/nvme0n1; do sleep 0.1; done
        dd if=/dev/nvme0n1 of=/dev/null bs=4k count=16 iflag=direct 2>&1 | tail -1; dmesg | grep 'nvme nvme0'";
    let said = second.sh(script).ok();
    assert!(said.starts_with("65536 bytes"), "{said}");
    assert!(!said.contains("timeout"), "{said}");
    drop(second);
    unbind(&[SPARE_DRIVE]);
}
