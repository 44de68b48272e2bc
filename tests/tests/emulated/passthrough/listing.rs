//! `fief gpu list`: what there is, what can be passed, and why not.

use serde_json::{Value, json};

use super::{BRIDGE, CARD, EDU, EDU_WIDE, GPU, LARGE, PAIR, SERIAL, SHARED, SPARE_DRIVE};
use super::{in_host, listed, run};

/// Addresses of entries.
fn addresses(entries: &Value) -> Vec<String> {
    let entries = entries.as_array().unwrap().iter();
    entries
        .map(|entry| entry["address"].as_str().unwrap().to_owned())
        .collect()
}

fn size(entry: &Value, bar: u64) -> u64 {
    let mut bars = entry["bars"].as_array().unwrap().iter();
    let bar = bars.find(|one| one["index"] == bar);
    bar.unwrap_or_else(|| panic!("{entry}"))["size"]
        .as_u64()
        .unwrap()
}

#[test]
fn every_device_is_listed_with_group_reset_and_bars() {
    for (address, resets, kind) in [
        (SPARE_DRIVE, json!(["flr"]), "other"),
        (GPU, json!([]), "gpu"),
        (LARGE, json!([]), "other"),
        (EDU, json!([]), "other"),
        (EDU_WIDE, json!([]), "other"),
        (CARD, json!(["pm"]), "other"),
        (SERIAL, json!([]), "other"),
    ] {
        let entry = listed(address);
        assert_eq!(entry["resets"], resets, "{entry}");
        assert_eq!(entry["kind"], kind, "{entry}");
        assert_eq!(entry["group_with"], json!([]), "{entry}");
        assert_eq!(entry["passable"], "after-binding", "{entry}");
        assert_eq!(entry["obstacles"], json!([]), "{entry}");
        let link = format!("basename $(readlink /sys/bus/pci/devices/{address}/iommu_group)");
        let group: u64 = in_host(&link).ok().parse().unwrap();
        assert_eq!(entry["group"], group, "{entry}");
    }
    let gpu = listed(GPU);
    assert_eq!(gpu["class"], "038000");
    assert_eq!(size(&gpu, 0), 256 << 20);
    assert_eq!(size(&listed(LARGE), 2), 1 << 30);
    let serial = listed(SERIAL);
    assert_eq!(serial["bars"][0]["kind"], "io", "{serial}");
    assert_eq!(serial["driver"], "serial");

    assert_eq!(listed(PAIR[0])["group_with"], json!([PAIR[1]]));
    assert_eq!(listed(SHARED[1])["group_with"], json!([BRIDGE, SHARED[0]]));
}

#[test]
fn the_table_shows_what_can_be_passed_and_fits_into_100_columns() {
    let ids = "1234  Technical Corp.\\n\\t1111  QEMU Virtual Video Controller\\n";
    in_host(&format!(
        "mkdir -p /usr/share/misc && printf '{ids}' > /usr/share/misc/pci.ids"
    ))
    .ok();
    let said = run("gpu list");
    assert_eq!(said.err, "");
    let table = said.ok();
    let line = |address: &str| table.lines().find(|line| line.starts_with(address));
    for line in table.lines().take_while(|line| !line.is_empty()) {
        assert!(line.chars().count() <= 100, "{line}");
    }
    let gpu = line(GPU).unwrap_or_else(|| panic!("{table}"));
    for part in ["QEMU Virtual Video", "256M+4K", "bind"] {
        assert!(gpu.contains(part), "{gpu}");
    }
    // Bridges and the host's own disks stay out of it, until asked for.
    assert_eq!(line(BRIDGE), None, "{table}");
    let all = run("gpu list --all").ok();
    assert!(all.lines().any(|line| line.starts_with(BRIDGE)), "{all}");
    for reason in ["it is a bridge", "the host uses its disk vda"] {
        assert!(all.contains(reason) && !table.contains(reason), "{all}");
    }
    // A mate with a driver of the host is named.
    for part in [
        SHARED[1],
        "driver serial",
        "fief gpu bind 0000:01:01.0 0000:01:02.0",
    ] {
        assert!(table.contains(part), "{table}");
    }
}

#[test]
fn a_machine_without_iommu_says_so_and_without_gpu_what_was_looked_for() {
    let said = fief_tests::run("gpu list");
    assert!(
        said.err.contains("no GPU") && said.err.contains("class 03"),
        "{said:?}"
    );
    assert_eq!(said.ok().lines().count(), 1);
    let all = super::super::json(&fief_tests::run("gpu list --all --json").ok());
    let entries = all.as_array().unwrap();
    assert!(!entries.is_empty());
    for entry in entries {
        assert_eq!(entry["passable"], "no", "{entry}");
        assert_eq!(entry["obstacles"][0]["kind"], "no-iommu", "{entry}");
        let message = entry["obstacles"][0]["message"].as_str().unwrap();
        assert!(message.contains("intel_iommu=on"), "{message}");
    }
    let address = addresses(&all).pop().unwrap();
    let refused = fief_tests::run(&format!("gpu bind {address}")).fails(125);
    assert!(refused.contains("no IOMMU"), "{refused}");

    let check = |said: fief_tests::Said| {
        let report = super::super::json(&said.out);
        let mut checks = report["checks"].as_array().unwrap().iter();
        checks.find(|check| check["name"] == "passthrough").unwrap()["health"].clone()
    };
    let doctor = "fief doctor --json";
    assert_eq!(check(fief_tests::in_host(doctor)), "warning");
    assert_eq!(check(in_host(doctor)), "ok");
}
