//! Commands that cannot be obeyed say why, and change nothing.

use super::*;
use crate::traces::traces;

/// A command that fails with 125, says `words`, and leaves no trace of tenant `name`.
#[track_caller]
fn refused(name: &str, line: &str, words: &[&str]) {
    let before = traces(name);
    let links = networks();
    let error = run(line).fails(125);
    for word in words {
        assert!(error.contains(word), "{word} is not in: {error}");
    }
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    assert_eq!(traces(name), before, "{line}");
    for line in networks().difference(&links) {
        // Other tests make tenants meanwhile; this one is not to.
        assert!(!line.contains(name), "{line}");
    }
}

fn networks() -> std::collections::BTreeSet<String> {
    let text =
        in_host("cat /var/lib/fief/grants.json; ls /var/lib/fief/tenants/*/network.json").out;
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_port_that_is_taken_is_refused_by_program_and_by_tenant() {
    world();
    host_probe("tcp-serve 6000 --background").ok();
    let make = |options: &str| format!("create nope --kernel micro --image busybox {options}");
    refused("nope", &make("-p 6000:1"), &["127.0.0.1:6000:1", "in use"]);
    let _owner = Tenant::create("net-owner", "--kernel micro --image busybox -p 6001:1");
    refused("nope", &make("-p 0.0.0.0:6001:1"), &["6001", "net-owner"]);
    refused(
        "nope",
        &make("-p 192.0.2.77:6002:1"),
        &["192.0.2.77", "address of this machine"],
    );
    refused(
        "nope",
        &make("-p 6003:1 -p 0.0.0.0:6003:2"),
        &["6003", "same port"],
    );
    refused(
        "nope",
        &make("--net none -p 6004:1"),
        &["--publish", "--net none"],
    );
    refused("nope", &make("--dns 127.0.0.53"), &["127.0.0.53"]);
    // What is not taken is given.
    let _given = Tenant::create(
        "net-given",
        "--kernel micro --image busybox -p 6002:1 -p 6001:1/udp",
    );
}

#[test]
fn a_grant_wants_two_tenants_with_networks() {
    world();
    let _one = Tenant::create("net-one", "--kernel micro --image busybox");
    let _none = Tenant::create("net-mute", "--kernel micro --image busybox --net none");
    for (line, words) in [
        (
            "grant net-one --to net-nobody --port 1",
            ["net-nobody", "no tenant"],
        ),
        (
            "grant net-nobody --to net-one --port 1",
            ["net-nobody", "no tenant"],
        ),
        ("grant net-one --to net-one --port 1", ["net-one", "itself"]),
        (
            "grant net-one --to net-mute --port 1",
            ["net-mute", "--net none"],
        ),
        (
            "revoke net-one --to net-mute --port 1",
            ["net-mute", "no such grant"],
        ),
    ] {
        refused("net-nobody", line, &words);
    }
    assert!(run("grant net-one --to net-mute --port 0").code == Some(125));
}

/// A state directory of its own, in the host: settings of one are none of another.
fn elsewhere(directory: &str, line: &str) -> Said {
    in_host(&format!(
        "mkdir -p {directory}; [ -e {directory}/images ] || ln -s /var/lib/fief/images {directory}/images
         fief --host native --state-dir {directory} {line}"
    ))
}

#[test]
fn a_pool_has_an_end_and_overlaps_with_nothing() {
    world();
    let place = "/var/lib/net-pool";
    let set = |pool: &str| {
        let settings = format!("{{\"pool\": \"{pool}\"}}");
        in_host(&format!(
            "mkdir -p {place}; echo '{settings}' > {place}/network.json"
        ))
        .ok();
    };
    let make = |name: &str| {
        elsewhere(
            place,
            &format!("create {name} --kernel micro --image busybox"),
        )
    };
    set("203.0.113.0/25");
    let error = make("a").fails(125);
    assert!(
        error.contains("203.0.113.0/24") && error.contains("network.json"),
        "{error}"
    );
    set("nonsense");
    assert!(make("a").fails(125).contains("network.json"));
    set("10.97.0.0/30");
    assert_eq!(make("a").ok(), "a");
    let error = make("b").fails(125);
    assert!(
        error.contains("10.97.0.0/30") && error.contains("taken"),
        "{error}"
    );
    assert_eq!(
        elsewhere(place, "ps -a --json")
            .ok()
            .matches("\"name\"")
            .count(),
        1
    );
    elsewhere(place, "rm a").ok();
    assert_eq!(make("b").ok(), "b");
    elsewhere(place, "rm b").ok();
    in_host(&format!("rm -rf {place}")).ok();
}

#[test]
fn two_state_directories_do_not_meet() {
    world();
    let place = "/var/lib/net-second";
    let _first = Tenant::create("net-first", "--kernel micro --image busybox -p 6100:1");
    let line = "create net-first --kernel micro --image busybox";
    let error = elsewhere(place, &format!("{line} -p 6100:1")).fails(125);
    assert!(
        error.contains("6100") && error.contains("another state directory"),
        "{error}"
    );
    elsewhere(place, line).ok();
    let address = |text: &str| {
        json(text)["network"]["address"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let ours = address(&run("inspect net-first").ok());
    let theirs = address(&elsewhere(place, "inspect net-first").ok());
    assert_ne!(ours, theirs);
    elsewhere(place, "rm net-first").ok();
    assert_eq!(address(&run("inspect net-first").ok()), ours);
    in_host(&format!(
        "ip route get {ours} | grep -w dev; rm -rf {place}"
    ))
    .ok();
}

#[test]
fn without_root_or_nft_it_says_so_and_names_the_way_without_a_network() {
    world();
    let place = "/tmp/net-user";
    let line = "create a --kernel micro --image busybox";
    let as_nobody = |words: &str| {
        in_host(&format!(
            "mkdir -p {place}/state; cp -a /var/lib/fief/images {place}/state/ 2>/dev/null; chown -R nobody {place}
             setpriv --reuid=65534 --regid=65534 --clear-groups fief --host native --state-dir {place}/state {words}"
        ))
    };
    let error = as_nobody(line).fails(125);
    assert!(
        error.contains("root") && error.contains("--net none"),
        "{error}"
    );
    as_nobody(&format!("{line} --net none")).ok();
    in_host(&format!("rm -rf {place}")).ok();
    // A mount namespace in which nft is an empty file that nobody may run.
    let hidden = "unshare -m sh -c 'for nft in /usr/sbin/nft /sbin/nft; do mount --bind /dev/null $nft; done; \
                  fief --host native create nope --kernel micro --image busybox'";
    let error = in_host(hidden).fails(125);
    assert!(
        error.contains("apt-get install nftables") && error.contains("--net none"),
        "{error}"
    );
}
