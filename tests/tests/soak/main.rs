//! What takes too long for every change (`make soak`): fief's own tenant kernel, built from source, under systemd, and
//! the jobs that it was configured for: packages, packet filters, tunnels, file systems in user space. And two hundred
//! processes that are killed.
#![allow(clippy::unwrap_used)]

mod kills;

use std::sync::LazyLock;

use fief_tests::{feed, run, run_with, spawn, waiting};

/// One tenant for all: systemd takes a minute to start in the emulated host. The next run removes it.
static TENANT: LazyLock<()> = LazyLock::new(|| {
    run("rm -f soak");
    run("run -d --name soak --kernel tuned --image debian --init image --memory 768M").ok();
    waiting::until("systemd has started everything", || {
        (sh("systemctl is-system-running --wait").code == Some(0)).then_some(())
    });
});

fn sh(script: &str) -> fief_tests::Said {
    run_with("exec soak -- sh -ec", script)
}

/// Runs a program of this folder in the tenant; what it printed.
#[track_caller]
fn program(interpreter: &str, text: &str) -> String {
    LazyLock::force(&TENANT);
    let child = spawn(&format!("exec -i soak -- {interpreter}"));
    fief_tests::Said::from(feed(child, text.as_bytes().to_vec())).ok()
}

#[test]
fn the_tuned_kernel_runs_systemd_without_a_failure() {
    LazyLock::force(&TENANT);
    let release = sh("uname -r").ok();
    assert!(!release.contains("cloud"), "{release}");
    assert!(sh("readlink /proc/1/exe").ok().ends_with("/systemd"));
    assert_eq!(sh("systemctl --failed --no-legend").ok(), "");
}

#[test]
fn apt_installs_and_removes_a_package() {
    let said = program("sh -e", include_str!("apt.sh"));
    assert!(said.ends_with("it is installed\nit is removed"), "{said}");
}

#[test]
fn nft_drops_what_a_rule_says_and_counts_it() {
    LazyLock::force(&TENANT);
    let ping = || sh("ping -c 1 -W 2 127.0.0.1");
    ping().ok();
    sh("nft add table inet soak
        nft add chain inet soak in '{ type filter hook input priority 0; }'
        nft add rule inet soak in icmp type echo-request counter drop")
    .ok();
    assert_eq!(ping().code, Some(1), "the packet got through");
    let rules = sh("nft list table inet soak").ok();
    assert!(rules.contains("counter packets 1 "), "{rules}");
    sh("nft delete table inet soak").ok();
    ping().ok();
}

#[test]
fn a_tunnel_hands_packets_to_a_program() {
    assert_eq!(
        program("perl", include_str!("tun.pl")),
        "an ICMP packet to 10.9.9.2"
    );
}

#[test]
fn a_file_system_in_user_space_is_mounted_and_asked() {
    assert_eq!(
        program("perl", include_str!("fuse.pl")),
        "INIT\nGETATTR\ndirectory 1234"
    );
}
