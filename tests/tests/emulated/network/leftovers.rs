//! What comes and goes with tenants, killed commands, and restarts.

use super::*;

/// Everything in the kernel that a tenant's network could leave, but for what other tests' tenants have.
fn kernel(mark: &str) -> Vec<String> {
    let script = format!(
        "ip netns list | grep -o '^fief-{mark}[^ ]*'
         ip -o link | grep -o 'fv{mark}[^@:]*'
         nft list table inet fief | grep -o 'fv{mark}[^ ]*'; nft list table arp fief | grep -o 'fv{mark}[^ ]*'
         ip route | grep 'fv{mark}'; ip neigh | grep 'fv{mark}'
         grep 'fief-{mark}' /proc/mounts
         true"
    );
    in_host(&script).ok().lines().map(str::to_owned).collect()
}

/// What else a tenant takes.
fn machine() -> Vec<String> {
    let script = "find /sys/fs/cgroup -type d -name '*net-coming*'
         ls /var/lib/net-many/tenants -A
         grep net-many /proc/net/unix; grep net-many /proc/mounts; losetup -a
         nft list map inet fief published; nft list set inet fief grants4 | grep 10.96";
    in_host(script).out.lines().map(str::to_owned).collect()
}

const MANY: &str = "/var/lib/net-many";

/// A state directory that no other test uses, so that all that bears its mark is this test's.
fn many(script: &str) -> Said {
    in_host(&format!(
        "mkdir -p {MANY}; [ -e {MANY}/images ] || ln -s /var/lib/fief/images {MANY}/images
         echo '{{\"pool\": \"10.96.0.0/16\"}}' > {MANY}/network.json
         export FIEF_STATE_DIR={MANY} FIEF_HOST=native
         {script}"
    ))
}

/// The mark of that state directory in names.
fn mark() -> String {
    let all = many("fief create marked --kernel micro --image busybox > /dev/null && fief inspect marked; fief rm marked > /dev/null").ok();
    let link = json(&all)["network"]["link"].as_str().unwrap().to_owned();
    link[2..7].to_owned()
}

both!(many_tenants_come_and_go_and_leave_nothing);
fn many_tenants_come_and_go_and_leave_nothing(backend: Backend) {
    world();
    let mark = mark();
    let before = (kernel(&mark), machine());
    assert!(before.0.is_empty(), "{before:?}");
    let many_times = backend.either(50, 20);
    many(&format!(
        "for n in $(seq {many_times}); do
             fief create net-coming {backend} --kernel micro --image busybox -p 7000:1 -p 0.0.0.0:7001:2/udp || exit
             fief rm net-coming || exit
         done"
    ))
    .ok();
    many(&format!(
        "fief create net-coming {backend} --kernel micro --image busybox -p 7000:1"
    ))
    .ok();
    let during = kernel(&mark);
    assert!(during.len() >= 6, "{during:?}");
    many("fief rm net-coming").ok();
    assert_eq!((kernel(&mark), machine()), before);
}

both!(what_killed_commands_left_is_gone_after_the_next);
fn what_killed_commands_left_is_gone_after_the_next(backend: Backend) {
    world();
    let mark = mark();
    // Killed at growing distances from their beginnings: before, amid and after the making of the network.
    let script = format!(
        "for n in $(seq 24); do
             fief create net-killed {backend} --kernel micro --image busybox -p 7100:1 & pid=$!
             busybox usleep $((n * 25000)); kill -9 $pid; wait $pid
             fief rm net-killed & pid=$!
             busybox usleep $((n * 10000)); kill -9 $pid; wait $pid
         done > /dev/null 2>&1
         fief ps -a > /dev/null; fief rm -f net-killed > /dev/null 2>&1; fief ps -a"
    );
    assert_eq!(many(&script).ok().lines().count(), 1);
    assert_eq!(kernel(&mark), Vec::<String>::new());
}

#[test]
fn a_network_whose_tenants_directory_is_gone_goes_with_the_next_that_is_made() {
    world();
    let mark = mark();
    many("fief create net-lost --kernel micro --image busybox -p 7200:1; rm -rf tenants").ok();
    in_host(&format!("rm -rf {MANY}/tenants/net-lost")).ok();
    assert_ne!(kernel(&mark), Vec::<String>::new());
    many("fief create net-found --kernel micro --image busybox -p 7200:1 && fief rm net-found")
        .ok();
    assert_eq!(kernel(&mark), Vec::<String>::new());
}

both!(what_the_machine_forgot_is_made_again_at_a_start);
fn what_the_machine_forgot_is_made_again_at_a_start(backend: Backend) {
    world();
    let peer = Peer::start(backend, "net-again", "-p 7300:7300");
    run("kill net-again").ok();
    // As after a restart of the machine, for this tenant.
    let Peer {
        link, namespace, ..
    } = &peer;
    in_host(&format!(
        "ip link del {link}; umount /run/netns/{namespace}; rm /run/netns/{namespace}
         nft delete element inet fief published '{{ 127.0.0.1 . 6 . 7300 }}'"
    ))
    .ok();
    run("start net-again").ok();
    let again = Peer::of(Tenant(peer.tenant.0.clone()));
    assert_eq!(again.address, peer.address);
    again.probe("tcp-serve 7300 --background").ok();
    host_probe("tcp 127.0.0.1 7300").ok();
    again.probe(&format!("ping {OUTSIDE}")).ok();
}
