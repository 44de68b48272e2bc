//! Where a tenant can go, and who can come.

use super::*;

both!(a_tenant_reaches_the_world_under_the_hosts_address);
fn a_tenant_reaches_the_world_under_the_hosts_address(backend: Backend) {
    let both = neighbours(backend);
    in_host("rm -f /tmp/tcp5100 /tmp/udp5100").ok();
    outside_probe("tcp-serve 5100 --background --log /tmp/tcp5100").ok();
    outside_probe("udp-serve 5100 --background --log /tmp/udp5100").ok();
    for probe in [
        format!("tcp {OUTSIDE} 5100"),
        format!("udp {OUTSIDE} 5100"),
        format!("ping {OUTSIDE}"),
        format!("tcp {OUTSIDE6} 5100"),
        format!("udp {OUTSIDE6} 5100"),
        format!("ping {OUTSIDE6}"),
        "ping 10.99.0.1".to_owned(),
    ] {
        both.bob.probe(&probe).ok();
    }
    for log in ["/tmp/tcp5100", "/tmp/udp5100"] {
        let seen = in_host(&format!("cat {log}")).ok();
        assert!(seen.contains(HOST) && seen.contains(HOST6), "{seen}");
        assert!(!seen.contains(&both.bob.address), "{seen}");
    }
    // The world has no way of its own into a tenant, even if it knows where one would be.
    let route = format!(
        "ip netns exec outside ip route replace {}/32 via {HOST}",
        both.bob.address
    );
    in_host(&route).ok();
    both.bob.probe("tcp-serve 5101 --background").ok();
    outside_probe(&format!("tcp {} 5101", both.bob.address)).fails(1);
    let open = "nft flush chain inet fief to_tenant";
    gets_through(open, || {
        outside_probe(&format!("tcp {} 5101", both.bob.address))
    });
    rules_are_back(&both);
    outside_probe(&format!("tcp {} 5101", both.bob.address)).fails(1);
}

both!(a_published_port_is_reached_from_loopback_and_where_it_says_from_outside);
fn a_published_port_is_reached_from_loopback_and_where_it_says_from_outside(backend: Backend) {
    let both = neighbours(backend);
    let Neighbours {
        on_loopback,
        on_all,
        ..
    } = *both;
    host_probe(&format!("tcp 127.0.0.1 {on_loopback}")).ok();
    host_probe(&format!("tcp 127.0.0.1 {on_all}")).ok();
    host_probe(&format!("tcp {HOST} {on_all}")).ok();
    outside_probe(&format!("tcp {HOST} {on_all}")).ok();
    // Loopback is nobody else's.
    outside_probe(&format!("tcp {HOST} {on_loopback}")).fails(1);
    host_probe(&format!("tcp {HOST} {on_loopback}")).fails(1);
    // And it is no way around a grant.
    for port in [on_loopback, on_all] {
        for address in [HOST, "10.99.0.1"] {
            both.bob.probe(&format!("tcp {address} {port}")).fails(1);
        }
    }
    // An ordinary user of the host reaches what is published, and nothing else.
    let as_user = |probe: &str| {
        let script =
            format!("setpriv --reuid=65534 --regid=65534 --clear-groups net-probe {probe}");
        in_host(&script)
    };
    as_user(&format!("tcp 127.0.0.1 {on_loopback}")).ok();
    as_user(&format!("tcp {} 4000", both.alice.address)).fails(1);
    host_probe(&format!("tcp {} 4000", both.alice.address)).ok();
}

both!(a_tenant_without_network_has_none_and_obeys_all_the_same);
fn a_tenant_without_network_has_none_and_obeys_all_the_same(backend: Backend) {
    world();
    let tenant = backend.start("net-none", "--kernel micro --image busybox --net none");
    assert!(!tenant.sh("ls /sys/class/net").ok().contains("eth0"));
    let all = json(&run("inspect net-none").ok());
    assert!(all.get("network").is_none(), "{all}");
    let other = Peer::start(backend, "net-some", "");
    assert!(other.sh("ls /sys/class/net").contains("eth0"));
}

both!(name_servers_are_those_that_were_asked_for);
fn name_servers_are_those_that_were_asked_for(backend: Backend) {
    world();
    let peer = Peer::start(backend, "net-dns", "--dns 192.0.2.53 --dns 2001:db8::53");
    let text = peer.sh("cat /etc/resolv.conf");
    assert!(
        text.contains("nameserver 192.0.2.53") && text.contains("nameserver 2001:db8::53"),
        "{text}"
    );
}

both!(a_start_of_a_tenant_runs_no_command_for_its_network);
fn a_start_of_a_tenant_runs_no_command_for_its_network(backend: Backend) {
    world();
    let tenant = backend.create("net-start", "--kernel micro --image busybox");
    // The shim and the monitor live on, and strace with them: it is told to go when the start is done.
    let script = "rm -f /tmp/starts; strace -f -qq -e trace=execve -o /tmp/starts \
                  sh -c 'fief --host native start net-start; fief --host native kill net-start' > /dev/null
                  grep -o 'execve(\"[^\"]*\"' /tmp/starts";
    let programs = in_host(script).ok();
    // A container is its runtime's work.
    let backend = backend.either(
        ["/fief-vmm\"", "/fief-vmm\""],
        ["/crun\"", "/run/fief/agent\""],
    );
    assert!(
        backend.iter().all(|name| programs.contains(name)),
        "{programs}"
    );
    let ours = ["/fief\"", "/proc/self/exe\"", "/sh\""];
    let ours = [&ours[..], &backend].concat();
    for line in programs.lines() {
        assert!(ours.iter().any(|name| line.ends_with(name)), "{programs}");
    }
    drop(tenant);
}
