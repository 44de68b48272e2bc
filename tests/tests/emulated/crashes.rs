//! Faults: a kernel that panics, processes that are killed. Others live, and it is reported.

use fief_tests::{in_host, run};

use super::Tenant;

#[test]
fn a_kernel_panic_in_one_tenant_is_reported_and_leaves_the_other_alive() {
    let victim = Tenant::start("bystander", "--image busybox");
    let crashing = Tenant::start("crasher", "--image busybox");
    crashing.sh("echo c > /proc/sysrq-trigger");
    in_host("while fief ps | grep -qw crasher; do sleep 0.2; done").ok();
    assert_eq!(
        crashing.listed()["exit"]["reason"],
        "panic",
        "{}",
        crashing.listed()
    );
    assert_eq!(victim.sh("echo alive").ok(), "alive");
}

#[test]
fn a_killed_monitor_is_noticed_and_the_tenant_starts_again() {
    let tenant = Tenant::start("shot", "--image busybox");
    tenant.sh("echo kept > /root/file; sync").ok();
    in_host("kill -9 $(fief inspect shot | sed -n 's/.*\"monitor_pid\": *\\([0-9]*\\).*/\\1/p')")
        .ok();
    in_host("while fief ps | grep -qw shot; do sleep 0.2; done").ok();
    assert_eq!(
        tenant.listed()["exit"]["reason"],
        "killed",
        "{}",
        tenant.listed()
    );
    run("start shot").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
}

#[test]
fn a_killed_shim_takes_its_monitor_along_and_the_next_command_cleans_up() {
    let tenant = Tenant::start("orphan", "--image busybox");
    let monitor =
        in_host("fief inspect orphan | sed -n 's/.*\"monitor_pid\": *\\([0-9]*\\).*/\\1/p'").ok();
    in_host("kill -9 $(fief inspect orphan | sed -n 's/.*\"shim_pid\": *\\([0-9]*\\).*/\\1/p')")
        .ok();
    in_host(&format!(
        "while kill -0 {monitor} 2>/dev/null; do sleep 0.2; done"
    ))
    .ok();
    assert_eq!(tenant.listed()["status"], "stopped", "{}", tenant.listed());
    run("start orphan").ok();
    assert_eq!(tenant.sh("echo back").ok(), "back");
}
