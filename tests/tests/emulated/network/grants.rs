//! Grants: exactly what was granted, from when it was granted until it is not.

use super::*;

both!(exactly_the_granted_port_is_reached_and_a_name_leads_there);
fn exactly_the_granted_port_is_reached_and_a_name_leads_there(backend: Backend) {
    let both = neighbours(backend);
    let (alice, bob) = (&both.alice, &both.bob);
    for port in [5700, 5701] {
        alice.probe(&format!("tcp-serve {port} --background")).ok();
        alice.probe(&format!("udp-serve {port} --background")).ok();
    }
    bob.probe("tcp-serve 5700 --background").ok();
    run(&format!("grant {alice} --to {bob} --port 5700")).ok();
    let name = &format!("{alice}.fief");
    assert!(
        bob.sh(&format!("grep -w {name} /etc/hosts"))
            .contains(&alice.address)
    );
    bob.probe(&format!("tcp {} 5700", alice.address)).ok();
    bob.probe(&format!("tcp {} 5700", alice.address6)).ok();
    bob.sh(&format!("echo hello | nc -w 5 {name} 5700"));
    let refused = |peer: &Peer, words: &str| peer.probe(words).fails(1);
    refused(bob, &format!("udp {} 5700", alice.address));
    refused(bob, &format!("tcp {} 5701", alice.address));
    refused(bob, &format!("ping {}", alice.address));
    // It is bob's, and no way back.
    refused(alice, &format!("tcp {} 5700", bob.address));
    let third = Peer::start(backend, "net-third", "");
    refused(&third, &format!("tcp {} 5700", alice.address));
    drop(third);
    run(&format!("grant {alice} --to {bob} --port 5701 --proto udp")).ok();
    bob.probe(&format!("udp {} 5701", alice.address)).ok();
    let listed = json(&run("grants --json").ok());
    let ours = listed.as_array().unwrap().iter();
    assert_eq!(
        ours.filter(|grant| grant["to"] == bob.tenant.0.as_str())
            .count(),
        2,
        "{listed}"
    );
    run(&format!(
        "revoke {alice} --to {bob} --port 5701 --proto udp"
    ))
    .ok();
    refused(bob, &format!("udp {} 5701", alice.address));
    run(&format!("revoke {alice} --to {bob} --port 5700")).ok();
    refused(bob, &format!("tcp {} 5700", alice.address));
    assert_eq!(bob.sh(&format!("grep -c {name} /etc/hosts; true")), "0");
    let log = in_host(&format!("grep {alice} /var/lib/fief/grants.log")).ok();
    assert!(
        log.contains("\"granted\"") && log.contains("\"revoked\"") && log.contains("\"uid\":0"),
        "{log}"
    );
}

both!(a_connection_ends_with_its_grant);
fn a_connection_ends_with_its_grant(backend: Backend) {
    let both = neighbours(backend);
    let (alice, bob) = (&both.alice, &both.bob);
    run(&format!("grant {alice} --to {bob} --port 5800")).ok();
    // alice says a word every second, bob writes down what he hears.
    alice.sh("(while echo word; do sleep 1; done | nc -l -p 5800) > /dev/null 2>&1 &");
    let listen = format!(
        "(tail -f /dev/null | nc {} 5800 > /tmp/heard) < /dev/null 2> /dev/null &",
        alice.address
    );
    let heard = || -> u64 {
        bob.sh("cat /tmp/heard 2>/dev/null | wc -c")
            .parse()
            .unwrap()
    };
    waiting::until("bob hears something", || {
        if bob.tenant.sh("pidof nc").code != Some(0) {
            bob.sh(&listen);
        }
        (heard() > 0).then_some(())
    });
    run(&format!("revoke {alice} --to {bob} --port 5800")).ok();
    let then = heard();
    // Seconds in which alice goes on.
    for _ in 0..2 {
        bob.probe(&format!("udp {} 5800", alice.address)).fails(1);
    }
    assert_eq!(heard(), then);
    // With the grant, the same connection goes on: it was the rule that held it.
    run(&format!("grant {alice} --to {bob} --port 5800")).ok();
    waiting::until("bob hears more", || (heard() > then).then_some(()));
    run(&format!("revoke {alice} --to {bob} --port 5800")).ok();
    alice.sh("killall nc tail; true");
    bob.sh("killall nc tail; true");
}

both!(a_grant_outlives_restarts_and_not_its_tenants);
fn a_grant_outlives_restarts_and_not_its_tenants(backend: Backend) {
    world();
    let giver = Peer::start(backend, "net-giver", "");
    let taker = Peer::start(backend, "net-taker", "");
    run("grant net-giver --to net-taker --port 5900").ok();
    run("grant net-taker --to net-giver --port 5901").ok();
    for name in ["net-giver", "net-taker"] {
        run(&format!("kill {name}")).ok();
        run(&format!("start {name}")).ok();
    }
    giver.probe("tcp-serve 5900 --background").ok();
    let probe = format!("tcp {} 5900", giver.address);
    taker.probe(&probe).ok();
    assert!(taker.sh("cat /etc/hosts").contains("net-giver.fief"));
    let address = giver.address.clone();
    drop(giver);
    assert!(!taker.sh("cat /etc/hosts").contains("net-giver.fief"));
    assert!(!run("grants").ok().contains("net-giver"));
    // One that is later made under the same name and, as it is the lowest free, with the same address has no part in it.
    let later = Peer::start(backend, "net-giver", "");
    assert_eq!(later.address, address);
    later.probe("tcp-serve 5900 --background").ok();
    taker.probe(&probe).fails(1);
    host_probe(&probe).ok();
    let log = in_host("grep net-giver /var/lib/fief/grants.log | tail -1").ok();
    assert!(log.contains("\"removed\""), "{log}");
}
