//! What only a kernel with drivers of all hardware has: a display controller in the place of a GPU, and a network card.

use super::tenant::{Tenant, bind, unbind};
use super::{CARD, GPU, run, said, start};

/// The router of the card's network (QEMU's user network).
const ROUTER: &str = "10.0.2.2";

#[test]
fn a_gpu_has_its_driver_and_a_card_its_network_in_a_machine_with_the_full_kernel() {
    start();
    bind(&[GPU, CARD]);
    let tenant = Tenant("graphics".to_owned());
    run("rm -f graphics");
    let line = format!(
        "run -d --name graphics --kernel debian-full --image busybox --memory 512M --net none --gpu {GPU} --device {CARD} \
         --allow-no-reset"
    );
    run(&line).ok();
    // The driver of the display controller: a render node's directory, and a frame buffer that keeps what is written.
    tenant.sh("modprobe bochs && ls /dev/dri/card0").ok();
    let same = tenant.sh(
        "head -c 3000000 /dev/urandom > /tmp/picture && cat /tmp/picture > /dev/fb0 && head -c 3000000 /dev/fb0 | cmp - /tmp/picture",
    );
    // A frame buffer of 1024 by 768 of four bytes has 3,145,728.
    same.ok();
    // The card: MSI-X both ways.
    tenant
        .sh("modprobe e1000e && ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")
        .ok();
    let up =
        "for n in $(seq 100); do grep -q 1 /sys/class/net/eth0/carrier && break; sleep 0.1; done";
    tenant.sh(up).ok();
    let pings = tenant.sh(&format!("ping -c 3 -W 10 {ROUTER}")).ok();
    assert!(pings.contains(" 0% packet loss"), "{pings}");
    let interrupts = tenant.sh("grep eth0-rx /proc/interrupts").ok();
    assert!(interrupts.contains("PCI-MSIX"), "{interrupts}");
    // It is whose it is.
    let list = said(&["gpu", "list"]).ok();
    let owned = format!("{GPU}: belongs to tenant 'graphics'");
    assert!(list.contains(&owned), "{list}");
    drop(tenant);
    unbind(&[GPU, CARD]);
}
