use std::process::{Command, Stdio};

use super::super::pool::Pool;
use super::super::record::V6;
use super::*;

fn record(last: u8, v6: bool) -> Record {
    let address = std::net::Ipv4Addr::new(10, 99, 0, last);
    Record {
        isolation: crate::spec::Isolation::Vm,
        link: format!("fvabcde0a6300{last:02x}"),
        namespace: format!("fief-abcde0a6300{last:02x}"),
        pool: Pool::default(),
        address,
        v6: v6.then(|| V6 {
            address: super::super::pool::address6("fd00::".parse().unwrap(), address),
            gateway: "fd00::1".parse().unwrap(),
        }),
        mtu: 1500,
        publish: ["2222:22", "0.0.0.0:53:5353/udp"]
            .map(|p| p.parse().unwrap())
            .into(),
    }
}

/// Everything that can be said about two tenants.
fn everything() -> Vec<Element> {
    let (one, two) = (record(2, true), record(3, true));
    let mut all = pools(&one);
    all.extend(senders(&one));
    all.extend(senders(&two));
    all.extend(published(&one));
    all.extend(way(&one, &two, Protocol::Tcp, 5432));
    all
}

/// Both tables, then one of them as JSON on the last line.
const LISTING: &str =
    "nft list table inet fief; nft list table arp fief; nft -j list table inet fief";

/// What nft makes of scripts, each after the one before, in a network of its own: it needs no root.
fn in_nft(scripts: &[String]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut line = String::from("set -e; PATH=$PATH:/usr/sbin:/sbin\n");
    for (at, script) in scripts.iter().enumerate() {
        let path = directory.path().join(at.to_string());
        std::fs::write(&path, script).unwrap();
        line.push_str(&format!("nft -f {}\n", path.display()));
    }
    line.push_str(LISTING);
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", &line])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The same without the JSON, which has numbers for rules that differ each time they are set.
fn tables(scripts: &[String]) -> String {
    let text = in_nft(scripts);
    let (tables, _json) = text.trim_end().rsplit_once('\n').unwrap();
    tables.to_owned()
}

fn script(elements: &[Element], each: impl Fn(&Element) -> String) -> String {
    let mut script = RULES.to_owned();
    elements
        .iter()
        .for_each(|element| script.push_str(&each(element)));
    script
}

#[test]
fn nft_takes_the_rules_and_elements_and_setting_them_again_changes_nothing() {
    let all = script(&everything(), Element::add);
    let once = tables(std::slice::from_ref(&all));
    assert_eq!(tables(&[all.clone(), all]), once);
    for word in [
        "10.99.0.2",
        "fd00::a63:3",
        "map published_everywhere",
        "5353",
        "5432",
    ] {
        assert!(once.contains(word), "{word} in {once}");
    }
}

#[test]
fn removed_elements_are_gone_and_removing_them_again_is_no_error() {
    let empty = tables(&[script(&pools(&record(2, true)), Element::add)]);
    let add = script(&everything(), Element::add);
    let [_, _, rest @ ..] = &everything()[..] else {
        panic!("no elements");
    };
    let remove = script(rest, Element::remove);
    assert_ne!(tables(std::slice::from_ref(&add)), empty);
    assert_eq!(tables(&[add, remove.clone(), remove]), empty);
}

#[test]
fn all_ports_and_ways_of_an_address_are_found_in_a_listing() {
    let add = script(&everything(), Element::add);
    let listing = in_nft(std::slice::from_ref(&add));
    let json = listing.lines().last().unwrap();
    let listing: Value = serde_json::from_str(json).unwrap();
    let of = |addresses: &[&str]| {
        let addresses: Vec<_> = addresses.iter().map(|a| (*a).to_owned()).collect();
        removal(&listing, &addresses)
    };
    let one = of(&["10.99.0.2", "fd00::a63:2"]);
    assert_eq!(one.lines().count(), 4, "{one}");
    assert_eq!(of(&["10.99.0.3", "fd00::a63:3"]).lines().count(), 2);
    // Part of another address is none.
    assert_eq!(of(&["10.99.0", "0.99.0.2", "10.99.0.22"]), "");
    let nothing = Value::Null;
    assert_eq!(removal(&nothing, &["10.99.0.2".to_owned()]), "");
    let mut rest = pools(&record(2, true));
    rest.extend(senders(&record(2, true)));
    rest.extend(senders(&record(3, true)));
    assert_eq!(tables(&[add, one]), tables(&[script(&rest, Element::add)]));
}

#[test]
fn a_port_that_nft_refuses_is_told_by_its_element() {
    let record = record(2, false);
    let said = format!(
        "/dev/stdin:9:1-2: Error: Could not process rule: File exists\nadd element {} {{ {} }}\n^^^\n",
        "inet fief published",
        published(&record)[0].value
    );
    assert_eq!(refused(&record, &said), Some(record.publish[0]));
    assert_eq!(refused(&record, "Error: syntax error"), None);
}

#[test]
fn a_tenant_without_ipv6_has_no_elements_of_it() {
    let (one, two) = (record(2, false), record(3, true));
    let mut all = senders(&one);
    all.extend(way(&one, &two, Protocol::Tcp, 1));
    all.extend(way(&two, &one, Protocol::Tcp, 1));
    assert!(
        all.iter().all(|element| !element.set.ends_with('6')),
        "{all:?}"
    );
}

#[test]
fn what_two_tenants_have_in_common_is_set_once() {
    let mut all = of(&record(2, true));
    let more = of(&record(3, false));
    all.extend(
        more.into_iter()
            .filter(|element| !element.set.contains("published")),
    );
    let twice = RULES.to_owned() + &additions(&all);
    let text = tables(&[twice.clone(), twice]);
    assert!(
        text.contains("10.99.0.2") && text.contains("10.99.0.3"),
        "{text}"
    );
    assert_eq!(text.matches("10.99.0.0/16").count(), 1, "{text}");
}
