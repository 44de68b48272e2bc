//! Memory that a tenant does not use is the host's, and what the host takes the tenant gets back before it runs out.

use fief_tests::waiting::until;
use fief_tests::{in_host, run, run_with};

use super::{Tenant, json};

const MEMORY_MIB: u64 = 320;

/// MiB of the monitor, guest RAM included, that are in the host's memory.
#[track_caller]
fn resident_mib(tenant: &Tenant) -> u64 {
    let monitor = &tenant.listed()["monitor_pid"];
    let status = in_host(&format!("cat /proc/{monitor}/status")).ok();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() >> 10
}

#[track_caller]
fn statistics(tenant: &Tenant) -> serde_json::Value {
    json(&run(&format!("api {} GET /balloon/statistics", tenant.0)).ok())
}

/// Asks for this much, and waits until the tenant has given it.
#[track_caller]
fn inflate(tenant: &Tenant, mib: u64) {
    let body = format!(r#"{{"amount_mib": {mib}}}"#);
    run_with(&format!("api {} PATCH /balloon", tenant.0), &body).ok();
    until("the balloon is as large as it is to be", || {
        (statistics(tenant)["actual_mib"] == mib).then_some(())
    });
}

/// MiB that a line of the tenant's /proc/meminfo says.
#[track_caller]
fn meminfo(tenant: &Tenant, figure: &str) -> u64 {
    let said = tenant.sh("cat /proc/meminfo").ok();
    let line = said.lines().find_map(|line| line.strip_prefix(figure));
    let kib = line.unwrap().trim_matches([':', ' ']).strip_suffix(" kB");
    kib.unwrap().trim().parse::<u64>().unwrap() >> 10
}

/// A tenant whose driver for the balloon, which is loaded beside the first command, has said something.
#[track_caller]
fn start(name: &str) -> Tenant {
    let tenant = Tenant::start(name, &format!("--image debian --memory {MEMORY_MIB}M"));
    until("the balloon's driver is there", || {
        statistics(&tenant)["total_memory"].as_u64()
    });
    tenant
}

#[test]
fn memory_that_a_tenant_frees_is_the_hosts_again() {
    const FILL_MIB: u64 = 120;
    let tenant = start("frees");
    tenant.sh("mount -t tmpfs -o size=200m none /mnt").ok();
    let before = resident_mib(&tenant);
    tenant
        .sh(&format!(
            "dd if=/dev/zero of=/mnt/fill bs=1M count={FILL_MIB}"
        ))
        .ok();
    let full = resident_mib(&tenant);
    // What was free at first and reported may have been given back meanwhile, but not so much.
    assert!(full >= before + FILL_MIB / 2, "{before} MiB, then {full}");
    tenant.sh("rm /mnt/fill").ok();
    until("most of what was freed has left the monitor", || {
        (resident_mib(&tenant) + FILL_MIB * 3 / 4 <= full).then_some(())
    });
    // And can be used again.
    tenant
        .sh(&format!(
            "dd if=/dev/zero of=/mnt/fill bs=1M count={FILL_MIB} && cmp -n {FILL_MIB}M /dev/zero /mnt/fill"
        ))
        .ok();
}

#[test]
fn what_the_balloon_takes_the_tenant_has_not_until_it_is_let_out() {
    const TAKEN_MIB: u64 = 150;
    let tenant = start("gives");
    // What the tenant itself needs, also while it boots to its end, is far less than what is taken.
    let rest = meminfo(&tenant, "MemTotal") - TAKEN_MIB;
    let has = |mib| (meminfo(&tenant, "MemAvailable") >= mib).then_some(());
    until("the tenant has more memory than will be left", || {
        has(rest + 1)
    });
    inflate(&tenant, TAKEN_MIB);
    let inflated = meminfo(&tenant, "MemAvailable");
    assert!(inflated <= rest, "{inflated} MiB are available of {rest}");
    inflate(&tenant, 0);
    // As much as before, and most of what was taken.
    let again = (inflated + TAKEN_MIB * 3 / 4).max(rest + 1);
    until("the tenant has its memory again", || has(again));
}

#[test]
fn a_tenant_takes_back_what_it_gave_before_it_kills_programs() {
    const LEFT_MIB: u64 = 50;
    const WANTED_MIB: u64 = 100;
    let tenant = start("tight");
    let taken = meminfo(&tenant, "MemAvailable") - LEFT_MIB;
    inflate(&tenant, taken);
    // Without the balloon's pages there is no room for it.
    let left = meminfo(&tenant, "MemAvailable");
    assert!(left < WANTED_MIB, "{left} MiB are available");
    let allocate = format!("perl -e '$x = \"x\" x ({WANTED_MIB} << 20); print length $x'");
    assert_eq!(tenant.sh(&allocate).ok(), (WANTED_MIB << 20).to_string());
    let actual = statistics(&tenant)["actual_mib"].as_u64().unwrap();
    assert!(actual < taken, "{actual} MiB of {taken} are in the balloon");
}
