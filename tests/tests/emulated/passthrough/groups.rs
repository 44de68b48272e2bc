//! Functions that go together: of one IOMMU group, and of one device.

use super::tenant::{Tenant, bind, unbind};
use super::{EDU, PAIR, SHARED};

const TEACHER: &str = "1234:11e8";

#[test]
fn half_a_group_is_not_passed_and_the_other_half_is_named() {
    let [edu, serial] = SHARED;
    bind(&SHARED);
    super::in_host(&format!(
        "echo {serial} > /sys/bus/pci/drivers/vfio-pci/unbind; echo > /sys/bus/pci/devices/{serial}/driver_override; \
         echo {serial} > /sys/bus/pci/drivers/serial/bind"
    ))
    .ok();
    assert_eq!(super::driver(serial), "serial");
    let words = ["as long as serial has", serial, "fief gpu bind"];
    Tenant::refused("half", &format!("--device {edu}"), &words);
    bind(&SHARED);
    let tenant = Tenant::start("whole", &format!("--device {edu} --device {serial}"));
    tenant.address(TEACHER);
    tenant.address("1b36:0002");
    drop(tenant);
    unbind(&SHARED);
}

#[test]
fn a_device_that_cannot_be_reset_goes_to_a_second_tenant_only_when_that_is_allowed() {
    bind(&[EDU]);
    let options = format!("--device {EDU}");
    // Since the host's start nobody had it, unless this test ran before on the same host.
    let first = Tenant::start("first-user", &options).with_driver();
    let address = first.address(TEACHER);
    // Its register that inverts what was written: it is alive.
    let script = format!("driver write {address} 0 4 0x12345678; driver read {address} 0 4");
    assert_eq!(first.sh(&script).ok(), "0xedcba987");
    // Its own again, without a reset.
    super::run("restart first-user").ok();
    drop(first);
    let words = [EDU, "cannot be reset", "allow_no_reset"];
    Tenant::refused("second-user", &options, &words);
    let second = Tenant::start("second-user", &format!("{options} --allow-no-reset"));
    second.address(TEACHER);
    drop(second);
    unbind(&[EDU]);
}

#[test]
fn all_functions_of_a_device_are_functions_of_one_device_in_the_tenant() {
    bind(&PAIR);
    let tenant = Tenant::start("pair", &format!("--gpu {}", PAIR[0]));
    let (display, sound) = (tenant.address("1234:1111"), tenant.address("8086:2668"));
    let slot = display.strip_suffix(".0").unwrap();
    assert_eq!(sound, format!("{slot}.1"));
    drop(tenant);
    // A function alone is asked for by its own address.
    let alone = Tenant::start("alone", &format!("--device {} --allow-no-reset", PAIR[0]));
    alone.address("1234:1111");
    assert_eq!(alone.addresses("8086:2668"), [""; 0]);
    drop(alone);
    unbind(&PAIR);
}
