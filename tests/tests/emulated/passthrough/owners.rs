//! Who can have a device at all.

use super::tenant::{Tenant, bind, unbind};
use super::{SPARE_DRIVE, run};

#[test]
fn a_device_of_another_tenant_is_refused_and_its_owner_named() {
    bind(&[SPARE_DRIVE]);
    let owner = Tenant::start("owner", &format!("--device {SPARE_DRIVE}"));
    let words = [
        SPARE_DRIVE,
        "belongs to tenant 'owner'",
        "fief gpu detach owner",
    ];
    let options = format!("--device {SPARE_DRIVE}");
    Tenant::refused("taker", &options, &words);
    // It belongs to it while it is stopped, too.
    run("stop owner").ok();
    Tenant::refused("taker", &options, &words);
    let spec = super::super::json(&run("inspect owner").ok());
    let device = &spec["spec"]["devices"][0];
    assert_eq!(device["address"], SPARE_DRIVE, "{spec}");
    run("start owner").ok();
    owner.address("1b36:0010");
    drop(owner);
    // And to nobody once that is removed.
    let taker = Tenant::start("taker", &options);
    taker.address("1b36:0010");
    drop(taker);
    unbind(&[SPARE_DRIVE]);
}

#[test]
fn containers_have_devices_by_name_and_machines_by_address() {
    let options = format!("--isolation container --gpu {SPARE_DRIVE}");
    let words = ["container", "--gpu nvidia.com/gpu=0"];
    Tenant::refused("contained", &options, &words);
    let words = ["PCI address", "fief gpu list"];
    Tenant::refused("named", "--gpu nvidia.com/gpu=0", &words);
    let words = ["0000:00:1f.7", "fief gpu list"];
    Tenant::refused("nowhere", "--device 00:1f.7", &words);
}
