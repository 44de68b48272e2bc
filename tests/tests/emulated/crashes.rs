//! Faults: a kernel that panics, processes that are killed. Others live, and it is reported.

use fief_tests::waiting::until;
use fief_tests::{in_host, run};

use super::Tenant;
use super::backend::Backend;

#[test]
fn a_kernel_panic_in_one_tenant_is_reported_and_leaves_the_other_alive() {
    let victim = Tenant::start("bystander", "--image busybox");
    let crashing = Tenant::start("crasher", "--image busybox");
    crashing.sh("echo c > /proc/sysrq-trigger");
    assert_eq!(crashing.ended(), "panic");
    assert_eq!(victim.sh("echo alive").ok(), "alive");
}

both!(a_killed_monitor_is_noticed_and_the_tenant_starts_again);
fn a_killed_monitor_is_noticed_and_the_tenant_starts_again(backend: Backend) {
    let tenant = backend.start("shot", "--image busybox");
    tenant.sh("echo kept > /root/file; sync").ok();
    in_host("kill -9 $(fief inspect shot | sed -n 's/.*\"monitor_pid\": *\\([0-9]*\\).*/\\1/p')")
        .ok();
    assert_eq!(tenant.ended(), "killed");
    run("start shot").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
}

both!(a_killed_shim_takes_its_monitor_along_and_the_next_command_cleans_up);
fn a_killed_shim_takes_its_monitor_along_and_the_next_command_cleans_up(backend: Backend) {
    let tenant = backend.start("orphan", "--image busybox");
    let monitor =
        in_host("fief inspect orphan | sed -n 's/.*\"monitor_pid\": *\\([0-9]*\\).*/\\1/p'").ok();
    in_host("kill -9 $(fief inspect orphan | sed -n 's/.*\"shim_pid\": *\\([0-9]*\\).*/\\1/p')")
        .ok();
    until("the monitor ends", || {
        (in_host(&format!("kill -0 {monitor}")).code != Some(0)).then_some(())
    });
    assert_eq!(tenant.listed()["status"], "stopped", "{}", tenant.listed());
    run("start orphan").ok();
    assert_eq!(tenant.sh("echo back").ok(), "back");
}
