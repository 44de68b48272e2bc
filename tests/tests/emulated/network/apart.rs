//! What does not get through: each probe with a control that shows it getting through where the rule is taken away.

use super::*;

/// Deletes the last rule of a chain.
fn without_last_rule(chain: &str) -> String {
    format!(
        "handle=$(nft -a list chain inet fief {chain} | sed -n 's/.*reject.* # handle //p' | tail -1); \
         [ -z \"$handle\" ] || nft delete rule inet fief {chain} handle $handle"
    )
}

both!(neighbours_reach_each_other_by_nothing);
fn neighbours_reach_each_other_by_nothing(backend: Backend) {
    let both = neighbours(backend);
    let (alice, bob) = (&both.alice, &both.bob);
    alice.probe("tcp-serve 5200 --background").ok();
    alice.probe("udp-serve 5200 --background").ok();
    let mut probes = Vec::new();
    for address in [&alice.address, &alice.address6] {
        probes.push(format!("ping {address}"));
        probes.push(format!("tcp {address} 5200"));
        probes.push(format!("udp {address} 5200"));
    }
    for probe in &probes {
        bob.probe(probe).fails(1);
    }
    let open = without_last_rule("between_tenants");
    for probe in &probes {
        gets_through(&open, || bob.probe(probe));
    }
    rules_are_back(&both);
    for probe in &probes {
        bob.probe(probe).fails(1);
    }
}

/// Joins two tenants' links as a bridge would, for everything.
fn join(from: &Peer, to: &Peer) -> String {
    let Peer {
        link,
        namespace,
        device,
        ..
    } = from;
    let to = &to.link;
    format!(
        "ip netns exec {namespace} sh -ec '
             tc filter del dev {device} ingress
             tc filter add dev {device} ingress matchall action mirred egress redirect dev up0'
         tc qdisc add dev {link} ingress 2>/dev/null
         tc filter replace dev {link} ingress pref 1 handle 1 matchall action mirred egress redirect dev {to}"
    )
}

/// As it was.
fn part(from: &Peer) -> String {
    let Peer {
        link,
        namespace,
        device,
        ..
    } = from;
    format!(
        "tc qdisc del dev {link} ingress
         ip netns exec {namespace} sh -ec '
             tc filter del dev {device} ingress
             for protocol in ip arp ipv6; do
                 tc filter add dev {device} ingress protocol $protocol matchall action mirred egress redirect dev up0
             done'"
    )
}

both!(nothing_of_a_tenants_wire_is_on_a_neighbours);
fn nothing_of_a_tenants_wire_is_on_a_neighbours(backend: Backend) {
    let both = neighbours(backend);
    let (alice, bob) = (&both.alice, &both.bob);
    let claimed = &alice.address;
    let all = "ff:ff:ff:ff:ff:ff";
    // What listens in alice, and what bob does.
    let probes = [
        (
            "arp-watch eth0".to_owned(),
            format!("arp-claim eth0 {claimed}"),
        ),
        (
            "raw-watch eth0 marked".to_owned(),
            format!("raw-send eth0 02:00:00:00:00:99 {all} marked"),
        ),
        (
            "raw-watch eth0 direct".to_owned(),
            format!("raw-send eth0 {} {} direct", bob.mac, alice.mac),
        ),
        ("ra-watch eth0".to_owned(), "ra-send eth0".to_owned()),
    ];
    let seen = |watch: &str, act: &str, timeout: u32| {
        let log = "/tmp/watched";
        alice.sh(&format!("rm -f {log}"));
        let line = format!("{watch} --timeout {timeout} --background --log {log}");
        alice.probe(&line).ok();
        bob.probe(act).ok();
        waiting::until("the watcher ends", || {
            let running = alice.tenant.sh(&format!("pgrep -f '{watch}'")).code == Some(0);
            (!running).then_some(())
        });
        alice.sh(&format!(
            "grep -v -e '^ready' -e '^fief-probe:' {log}; true"
        ))
    };
    for (watch, act) in &probes {
        assert_eq!(seen(watch, act, 3), "", "{act}");
    }
    in_host(&join(bob, alice)).ok();
    for (watch, act) in &probes {
        assert_ne!(seen(watch, act, 60), "", "{act}");
    }
    in_host(&part(bob)).ok();
    for (watch, act) in &probes {
        assert_eq!(seen(watch, act, 3), "", "{act}");
    }
    // The way out is as it was.
    bob.probe(&format!("ping {OUTSIDE}")).ok();
}

both!(a_broadcast_and_a_neighbours_link_local_address_lead_nowhere);
fn a_broadcast_and_a_neighbours_link_local_address_lead_nowhere(backend: Backend) {
    let both = neighbours(backend);
    let (alice, bob) = (&both.alice, &both.bob);
    alice.sh("rm -f /tmp/udp5300");
    alice
        .probe("udp-serve 5300 --background --log /tmp/udp5300")
        .ok();
    // Her answer would go to the gateway: what she heard is what tells.
    let heard = || alice.tenant.sh("grep -q datagram /tmp/udp5300");
    let local = format!("ping {}%eth0", alice.link_local());
    let nothing = || {
        bob.probe("broadcast eth0 5300").fails(1);
        heard().fails(1);
        bob.probe(&local).fails(1);
    };
    nothing();
    // Joined in both directions, neighbours find each other.
    in_host(&format!("{}\n{}", join(bob, alice), join(alice, bob))).ok();
    gets_through("true", || {
        let _ = bob.probe("broadcast eth0 5300 --timeout 1");
        heard()
    });
    gets_through("true", || bob.probe(&local));
    in_host(&format!("{}\n{}", part(bob), part(alice))).ok();
    alice.sh(": > /tmp/udp5300");
    nothing();
}

both!(nobody_speaks_in_anothers_name);
fn nobody_speaks_in_anothers_name(backend: Backend) {
    let both = neighbours(backend);
    let bob = &both.bob;
    outside_probe("udp-serve 5400 --background --log /tmp/udp5400").ok();
    let count = || -> usize {
        in_host("grep -c datagram /tmp/udp5400; true")
            .ok()
            .parse()
            .unwrap()
    };
    let foreign = "10.99.200.77";
    let foreign6 = "2001:db8:77::1";
    bob.sh(&format!(
        "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad; \
         ip addr add {foreign}/32 dev eth0; ip -6 addr add {foreign6}/128 dev eth0"
    ));
    let probes = [
        (
            format!("udp {OUTSIDE} 5400 --bind {foreign}"),
            format!("senders4 {{ \"{}\" . {} . {foreign} }}", bob.link, bob.mac),
        ),
        (
            format!("udp {OUTSIDE6} 5400 --bind {foreign6}"),
            format!("senders6 {{ \"{}\" . {} . {foreign6} }}", bob.link, bob.mac),
        ),
    ];
    for (probe, element) in &probes {
        // The gateway's MAC is known: it is not the question for it, also in another's name, that is refused.
        let know = || {
            bob.probe(&format!("ping {OUTSIDE} --bind {}", bob.address))
                .ok();
            bob.probe(&format!("ping {OUTSIDE6} --bind {}", bob.address6))
                .ok();
        };
        know();
        let before = count();
        bob.probe(probe).fails(1);
        assert_eq!(count(), before, "{probe}");
        know();
        in_host(&format!("nft add element inet fief {element}")).ok();
        // It arrives; whether the answer finds back is another matter.
        bob.probe(probe);
        assert_ne!(count(), before, "{probe}");
        in_host(&format!("nft delete element inet fief {element}")).ok();
    }
    let before = count();
    let other = "02:f1:0a:63:c8:4d";
    // A link that goes down forgets its IPv6 addresses.
    let address6 = &bob.address6;
    let gateway6 = bob.sh("ip -6 route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'");
    let change = |mac: &str| {
        bob.sh(&format!(
            "ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up; \
             ip route add 10.99.0.1 dev eth0; ip route add default via 10.99.0.1; \
             ip -6 addr add {address6}/128 dev eth0; ip -6 route add default via {gateway6} dev eth0 onlink; true"
        ))
    };
    change(other);
    bob.probe(&format!("udp {OUTSIDE} 5400")).fails(1);
    assert_eq!(count(), before);
    let elements = [
        format!(
            "inet fief senders4 {{ \"{}\" . {other} . {} }}",
            bob.link, bob.address
        ),
        format!(
            "arp fief senders {{ \"{}\" . {other} . {} }}",
            bob.link, bob.address
        ),
    ];
    for element in &elements {
        in_host(&format!("nft add element {element}")).ok();
    }
    bob.probe(&format!("udp {OUTSIDE} 5400"));
    assert_ne!(count(), before);
    for element in &elements {
        in_host(&format!("nft delete element {element}")).ok();
    }
    change(&bob.mac);
    bob.sh(&format!(
        "ip addr del {foreign}/32 dev eth0; ip -6 addr del {foreign6}/128 dev eth0; true"
    ));
    bob.probe(&format!("udp {OUTSIDE} 5400")).ok();
    bob.probe(&format!("udp {OUTSIDE6} 5400")).ok();
}

both!(the_host_believes_no_claim_of_addresses_and_no_router);
fn the_host_believes_no_claim_of_addresses_and_no_router(backend: Backend) {
    let both = neighbours(backend);
    let (alice, bob) = (&both.alice, &both.bob);
    // What would be believed, were it not for the rules: so that there is something to see.
    in_host(&format!(
        "echo 1 > /proc/sys/net/ipv4/conf/{0}/arp_accept; echo 2 > /proc/sys/net/ipv6/conf/{0}/accept_ra",
        bob.link
    ))
    .ok();
    let claimed = || {
        in_host(&format!(
            "ip neigh show dev {} | grep -w {}",
            bob.link, alice.address
        ))
    };
    let routed = || {
        in_host(&format!(
            "ip -6 route show dev {} proto ra | grep .",
            bob.link
        ))
    };
    let act = || {
        bob.probe(&format!("arp-claim eth0 {}", alice.address)).ok();
        bob.probe("ra-send eth0").ok();
    };
    act();
    claimed().fails(1);
    routed().fails(1);
    for (chains, seen) in [
        (
            "nft flush chain arp fief from_tenant",
            &claimed as &dyn Fn() -> Said,
        ),
        (
            "nft flush chain inet fief from_tenant; nft flush chain inet fief from_tenant_to_host",
            &routed,
        ),
    ] {
        gets_through(chains, || {
            act();
            seen()
        });
    }
    rules_are_back(&both);
    in_host(&format!(
        "ip neigh flush dev {0}; ip -6 route flush dev {0} proto ra; \
         echo 0 > /proc/sys/net/ipv4/conf/{0}/arp_accept; echo 0 > /proc/sys/net/ipv6/conf/{0}/accept_ra",
        bob.link
    ))
    .ok();
    act();
    claimed().fails(1);
    routed().fails(1);
}

both!(the_hosts_own_services_are_out_of_reach_under_every_address);
fn the_hosts_own_services_are_out_of_reach_under_every_address(backend: Backend) {
    let both = neighbours(backend);
    let bob = &both.bob;
    host_probe("tcp-serve 5500 --background").ok();
    let mut probes = Vec::new();
    for address in ["10.99.0.1", HOST, HOST6] {
        // Bound, so that the answer comes from where it was asked.
        host_probe(&format!("udp-serve 5500 --bind {address} --background")).ok();
        probes.push(format!("tcp {address} 5500"));
        probes.push(format!("udp {address} 5500"));
    }
    for probe in &probes {
        bob.probe(probe).fails(1);
    }
    for probe in &probes {
        gets_through("nft flush chain inet fief from_tenant_to_host", || {
            bob.probe(probe)
        });
    }
    rules_are_back(&both);
    bob.probe(&probes[0]).fails(1);
}

both!(the_hosts_loopback_is_out_of_reach_of_a_tenant_that_routes_it_there);
fn the_hosts_loopback_is_out_of_reach_of_a_tenant_that_routes_it_there(backend: Backend) {
    let both = neighbours(backend);
    let alice = &both.alice;
    // Her port is published on loopback, so her link takes answers for 127.0.0.1.
    host_probe("tcp-serve 5600 --bind 127.0.0.1 --background").ok();
    alice.sh(
        "ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1/32 via 10.99.0.1 dev eth0 onlink; \
         echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet",
    );
    let probe = format!("tcp 127.0.0.1 5600 --bind {}", alice.address);
    alice.probe(&probe).fails(1);
    gets_through(
        "nft flush chain inet fief from_tenant; nft flush chain inet fief from_tenant_to_host",
        || alice.probe(&probe),
    );
    rules_are_back(&both);
    alice.probe(&probe).fails(1);
    alice.sh("ip route del 127.0.0.1/32; ip addr add 127.0.0.1/8 dev lo");
}

both!(addresses_where_clouds_keep_credentials_are_out_of_reach);
fn addresses_where_clouds_keep_credentials_are_out_of_reach(backend: Backend) {
    let both = neighbours(backend);
    let bob = &both.bob;
    outside_probe(&format!("tcp-serve 80 --bind {METADATA} --background")).ok();
    let probe = format!("tcp {METADATA} 80");
    host_probe(&probe).ok();
    bob.probe(&probe).fails(1);
    let open = "handle=$(nft -a list chain inet fief from_tenant | sed -n 's/.*169.254.*# handle //p'); \
                [ -z \"$handle\" ] || nft delete rule inet fief from_tenant handle $handle";
    gets_through(open, || bob.probe(&probe));
    rules_are_back(&both);
    bob.probe(&probe).fails(1);
}
