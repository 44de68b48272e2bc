//! `nft flush ruleset`, as `systemctl restart nftables` does it: fief's rules go with everybody's, and come back.

use super::*;

/// Shims that stand still, so that none of them mends anything. They go on at the end of the test.
struct Still(Vec<String>);

impl Still {
    /// Those of all tenants that run: other tests' may be among them.
    #[track_caller]
    fn all() -> Self {
        let all = json(&run("ps --json").ok());
        let tenants = all.as_array().unwrap().iter();
        let pids: Vec<_> = tenants
            .map(|tenant| tenant["shim_pid"].to_string())
            .collect();
        assert!(pids.len() >= 2, "{all}");
        in_host(&format!("kill -STOP {}", pids.join(" "))).ok();
        Self(pids)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        // One that was removed since is no matter.
        in_host(&format!("kill -CONT {}", self.0.join(" ")));
    }
}

const FLUSH: &str = "nft flush ruleset";

/// Neighbours do not reach each other but by a grant, and a published port leads to its tenant.
#[track_caller]
fn all_is_right(both: &Neighbours) {
    let (alice, bob) = (&both.alice, &both.bob);
    host_probe(&format!("tcp 127.0.0.1 {}", both.on_loopback)).ok();
    bob.probe(&format!("tcp {} 5601", alice.address)).ok();
    bob.probe(&format!("ping {OUTSIDE}")).ok();
    for address in [&alice.address, &alice.address6] {
        bob.probe(&format!("tcp {address} 5600")).fails(1);
    }
}

/// Nobody mended: the neighbour is reached by anybody, the published port leads nowhere.
#[track_caller]
fn all_is_wrong(both: &Neighbours) {
    let (alice, bob) = (&both.alice, &both.bob);
    for address in [&alice.address, &alice.address6] {
        bob.probe(&format!("tcp {address} 5600")).ok();
    }
    host_probe(&format!("tcp 127.0.0.1 {}", both.on_loopback)).fails(1);
}

both!(rules_that_were_flushed_come_back_by_themselves_while_a_tenant_runs_and_with_a_start);
fn rules_that_were_flushed_come_back_by_themselves_while_a_tenant_runs_and_with_a_start(
    backend: Backend,
) {
    let both = neighbours(backend);
    let (alice, bob) = (&both.alice, &both.bob);
    for port in [5600, 5601] {
        alice.probe(&format!("tcp-serve {port} --background")).ok();
    }
    run(&format!("grant {alice} --to {bob} --port 5601")).ok();
    let third = backend.create("net-third", "--kernel micro --image busybox --memory 128M");
    all_is_right(&both);
    let doctor = || {
        let said = in_host("fief --host native doctor --json").out;
        let checks = json(&said)["checks"].as_array().unwrap().clone();
        let check = checks
            .into_iter()
            .find(|one| one["name"] == "tenants' rules");
        check.unwrap_or_else(|| panic!("{said}"))
    };
    assert_eq!(doctor()["health"], "ok");

    // Whoever starts a tenant mends the rules for all.
    let still = Still::all();
    in_host(FLUSH).ok();
    all_is_wrong(&both);
    let found = doctor();
    assert_eq!(found["health"], "warning", "{found}");
    assert!(found["remedy"].as_str().unwrap().contains("fief start"));
    run("start net-third").ok();
    all_is_right(&both);
    assert_eq!(doctor()["health"], "ok");
    run("kill net-third").ok();

    // Those that run mend them, too: for what happened before they listened again, and at once.
    in_host(FLUSH).ok();
    all_is_wrong(&both);
    drop(still);
    let granted = format!("{{ {} . {} . 6 . 5601 }}", bob.address, alice.address);
    let look = format!("nft get element inet fief grants4 '{granted}'");
    let wait = || {
        waiting::until("the rules are there again", || {
            (in_host(&look).code == Some(0)).then_some(())
        });
    };
    wait();
    all_is_right(&both);
    for _ in 0..5 {
        in_host(FLUSH).ok();
        wait();
    }
    all_is_right(&both);
    run(&format!("revoke {alice} --to {bob} --port 5601")).ok();
    drop(third);
}
