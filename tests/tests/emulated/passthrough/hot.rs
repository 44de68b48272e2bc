//! `fief gpu attach` and `fief gpu detach` while tenants run.

use fief_tests::waiting;

use super::tenant::{Tenant, bind, unbind};
use super::{CARD, EDU_WIDE, run};

const TEACHER: &str = "1234:11e8";
const NETWORK: &str = "8086:10d3";

/// The devices of a tenant, as `fief inspect` shows its spec.
#[track_caller]
fn devices(tenant: &Tenant) -> Vec<String> {
    let spec = super::super::json(&run(&format!("inspect {}", tenant.0)).ok());
    let found = spec.pointer("/spec/devices");
    let Some(list) = found.and_then(|list| list.as_array()) else {
        return Vec::new();
    };
    let address = |device: &serde_json::Value| device["address"].as_str().unwrap().to_owned();
    list.iter().map(address).collect()
}

#[test]
fn devices_come_to_a_running_tenant_and_go_to_another() {
    bind(&[CARD]);
    let [one, other] = ["hot-one", "hot-other"].map(|name| Tenant::start(name, "--pin-memory"));
    assert_eq!(one.addresses(NETWORK), [""; 0]);
    assert_eq!(run(&format!("gpu attach hot-one {CARD}")).ok(), CARD);
    one.address(NETWORK);
    assert_eq!(devices(&one), [CARD]);

    let taken = run(&format!("gpu attach hot-other {CARD}")).fails(125);
    let advice = format!(
        "belongs to tenant 'hot-one'; take it from there with `fief gpu detach hot-one {CARD}`"
    );
    assert!(taken.contains(&advice), "{taken}");
    assert_eq!(other.addresses(NETWORK), [""; 0]);

    assert_eq!(run(&format!("gpu detach hot-one {CARD}")).ok(), CARD);
    assert_eq!(one.addresses(NETWORK), [""; 0]);
    assert_eq!(devices(&one), [""; 0]);
    let gone = run(&format!("gpu detach hot-one {CARD}")).fails(125);
    assert!(
        gone.contains("does not have") && gone.contains("fief inspect hot-one"),
        "{gone}"
    );

    run(&format!("gpu attach hot-other {CARD}")).ok();
    other.address(NETWORK);
    // What a tenant was given while it ran it has when it starts again.
    run("restart hot-other").ok();
    let there = waiting::until("the tenant answers", || {
        let said = other.sh("true");
        (said.code == Some(0)).then(|| other.addresses(NETWORK))
    });
    assert_eq!(there.len(), 1, "{there:?}");
    drop([one, other]);
    unbind(&[CARD]);
}

#[test]
fn a_tenant_that_gives_memory_back_is_told_how_to_get_a_device() {
    bind(&[EDU_WIDE]);
    let tenant = Tenant::start("unpinned", "");
    let attach = format!("gpu attach --allow-no-reset unpinned {EDU_WIDE}");
    let said = run(&attach).fails(125);
    for advice in ["fief set unpinned --pin-memory", "fief restart unpinned"] {
        assert!(said.contains(advice), "{said}");
    }
    assert_eq!(devices(&tenant), [""; 0]);
    run("set unpinned --pin-memory").ok();
    run("restart unpinned").ok();
    run(&attach).ok();
    tenant.address(TEACHER);
    drop(tenant);
    unbind(&[EDU_WIDE]);
}
