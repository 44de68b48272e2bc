//! The OpenAPI document and the code say the same.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::*;

fn document() -> Value {
    serde_yaml_ng::from_str(OPENAPI).unwrap()
}

fn names(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

/// What the tests need to know of a wire type: an example with every field, and whether a JSON value is one.
struct Wire {
    full: Value,
    reads: fn(Value) -> Result<Value, String>,
}

fn wire<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(full: Value) -> Wire {
    let value: T = serde_json::from_value(full.clone()).unwrap();
    assert_eq!(
        serde_json::to_value(&value).unwrap(),
        full,
        "an example must survive the round trip"
    );
    Wire {
        full,
        reads: |value| {
            let value: T = serde_json::from_value(value).map_err(|error| error.to_string())?;
            serde_json::to_value(value).map_err(|error| error.to_string())
        },
    }
}

/// Every type of the API, with no field at its default so that all of them are written.
fn types() -> BTreeMap<&'static str, Wire> {
    let bucket = json!({"size": 1, "one_time_burst": 2, "refill_time": 3});
    let limiter = json!({"bandwidth": bucket, "ops": bucket});
    let machine = json!({
        "vcpu_count": 2, "mem_size_mib": 256, "smt": true, "cpu_template": "None", "track_dirty_pages": true,
        "huge_pages": "2M"
    });
    let boot = json!({"kernel_image_path": "k", "initrd_path": "i", "boot_args": "a"});
    let drive = json!({
        "drive_id": "d", "path_on_host": "p", "is_root_device": true, "partuuid": "u", "is_read_only": true,
        "cache_type": "Writeback", "io_engine": "Async", "rate_limiter": limiter, "socket": "s", "direct_io": true,
        "num_queues": 2
    });
    let interface = json!({
        "iface_id": "i", "host_dev_name": "t", "guest_mac": "02:00:00:00:00:01", "mtu": 1500,
        "rx_rate_limiter": limiter, "tx_rate_limiter": limiter
    });
    let partial_interface =
        json!({"iface_id": "i", "rx_rate_limiter": limiter, "tx_rate_limiter": limiter});
    let device = json!({
        "id": "d", "sbdf": "0000:01:00.0", "companions": ["0000:01:00.1"], "iommu_group": 1, "socket": "s",
        "peer_access": true, "allow_no_reset": true
    });
    let vsock = json!({"guest_cid": 3, "uds_path": "v", "vsock_id": "x"});
    let entropy = json!({"rate_limiter": limiter});
    let balloon = json!({
        "amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 2, "free_page_hinting": true,
        "free_page_reporting": true, "stats_on_demand": true
    });
    let stats = json!({
        "target_pages": 1, "actual_pages": 2, "target_mib": 3, "actual_mib": 4, "swap_in": 5, "swap_out": 6,
        "major_faults": 7, "minor_faults": 8, "free_memory": 9, "total_memory": 10, "available_memory": 11,
        "disk_caches": 12, "hugetlb_allocations": 13, "hugetlb_failures": 14, "oom_kill": 15, "alloc_stall": 16,
        "async_scan": 17, "direct_scan": 18, "async_reclaim": 19, "direct_reclaim": 20
    });
    let serial = json!({"serial_out_path": "s", "rate_limiter": bucket, "destination": "Pty"});
    let logger = json!({
        "log_path": "l", "level": "Debug", "show_level": true, "show_log_origin": true, "module": "m"
    });
    let lifecycle = json!({"on_reboot": "Restart"});
    let whole = json!({
        "boot-source": boot, "drives": [drive], "releasing": ["d"], "releasing_devices": ["g"], "device-passthrough": [device], "machine-config": machine,
        "network-interfaces": [interface], "vsock": vsock, "entropy": entropy, "balloon": balloon,
        "logger": logger, "serial": serial, "lifecycle": lifecycle
    });
    let instance = json!({"app_name": "a", "id": "i", "state": "Paused", "vmm_version": "1"});
    BTreeMap::from([
        ("Fault", wire::<Fault>(json!({"fault_message": "m"}))),
        ("InstanceInfo", wire::<InstanceInfo>(instance)),
        (
            "Version",
            wire::<Version>(json!({"firecracker_version": "1", "fief_version": "2"})),
        ),
        (
            "MachineConfigurationUpdate",
            wire::<MachineConfigurationUpdate>(machine.clone()),
        ),
        (
            "MachineConfiguration",
            wire::<MachineConfiguration>(machine),
        ),
        ("BootSource", wire::<BootSource>(boot)),
        ("TokenBucket", wire::<TokenBucket>(bucket.clone())),
        ("RateLimiter", wire::<RateLimiter>(limiter.clone())),
        ("Drive", wire::<Drive>(drive)),
        (
            "PartialDrive",
            wire::<PartialDrive>(
                json!({"drive_id": "d", "path_on_host": "p", "rate_limiter": limiter}),
            ),
        ),
        ("NetworkInterface", wire::<NetworkInterface>(interface)),
        (
            "PartialNetworkInterface",
            wire::<PartialNetworkInterface>(partial_interface),
        ),
        ("DevicePassthrough", wire::<DevicePassthrough>(device)),
        ("Vsock", wire::<Vsock>(vsock)),
        ("Entropy", wire::<Entropy>(entropy)),
        ("Balloon", wire::<Balloon>(balloon)),
        (
            "BalloonUpdate",
            wire::<BalloonUpdate>(json!({"amount_mib": 1})),
        ),
        ("BalloonStats", wire::<BalloonStats>(stats)),
        (
            "BalloonStatsUpdate",
            wire::<BalloonStatsUpdate>(json!({"stats_polling_interval_s": 1})),
        ),
        ("Serial", wire::<Serial>(serial)),
        ("Logger", wire::<Logger>(logger)),
        ("Lifecycle", wire::<Lifecycle>(lifecycle)),
        (
            "InstanceActionInfo",
            wire::<InstanceActionInfo>(json!({"action_type": "InstanceStart"})),
        ),
        ("Vm", wire::<Vm>(json!({"state": "Resumed"}))),
        ("FullVmConfiguration", wire::<FullVmConfiguration>(whole)),
    ])
}

#[test]
fn every_route_stands_in_the_document_and_no_other() {
    let document = document();
    let mut written = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in names(item).iter().filter(|name| *name != "parameters") {
            written.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let coded: BTreeSet<String> = ROUTES
        .iter()
        .map(|route| format!("{} {}", route.method, route.path))
        .collect();
    assert_eq!(written, coded);
}

#[test]
fn every_route_has_the_documented_body_and_answer() {
    let document = document();
    for route in ROUTES {
        let operation = &document["paths"][route.path][route.method.name().to_lowercase()];
        let schema = |at: &Value| {
            let reference = at["content"]["application/json"]["schema"]["$ref"].as_str()?;
            reference
                .strip_prefix("#/components/schemas/")
                .map(str::to_owned)
        };
        assert_eq!(
            schema(&operation["requestBody"]).as_deref(),
            route.request,
            "{route:?}"
        );
        let responses = &operation["responses"];
        assert_eq!(
            schema(&responses["200"]).as_deref(),
            route.response,
            "{route:?}"
        );
        assert_eq!(
            responses["204"].is_object(),
            route.response.is_none(),
            "{route:?}"
        );
        assert!(responses["400"].is_object(), "{route:?}");
    }
}

#[test]
fn every_route_leads_to_an_endpoint_with_that_method_and_path() {
    for route in ROUTES {
        let path = route
            .path
            .replace("{drive_id}", "root")
            .replace("{iface_id}", "eth0")
            .replace("{id}", "gpu0");
        let endpoint = Endpoint::find(route.method.name(), &path).unwrap();
        assert_eq!(endpoint.request_line(), (route.method, path));
    }
}

#[test]
fn every_type_stands_in_the_document_with_its_fields() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let types = types();
    let coded: BTreeSet<String> = types.keys().map(|name| (*name).to_owned()).collect();
    assert_eq!(names(schemas), coded);
    for (name, wire) in &types {
        assert_eq!(
            names(&schemas[name]["properties"]),
            names(&wire.full),
            "{name}"
        );
        assert_eq!(schemas[name]["additionalProperties"], false, "{name}");
    }
}

#[test]
fn exactly_the_documented_fields_are_required() {
    let document = document();
    for (name, wire) in &types() {
        let schema = &document["components"]["schemas"][name];
        let written: BTreeSet<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for field in names(&wire.full) {
            let mut without = wire.full.clone();
            without.as_object_mut().unwrap().remove(&field);
            let required = (wire.reads)(without).is_err();
            assert_eq!(required, written.contains(field.as_str()), "{name}.{field}");
        }
    }
}

#[test]
fn enumerations_take_the_documented_words_and_no_others() {
    let document = document();
    let mut checked = 0;
    for (name, wire) in &types() {
        let properties = &document["components"]["schemas"][name]["properties"];
        for field in names(&wire.full) {
            let with = |word: &Value| {
                let mut value = wire.full.clone();
                value[&field] = word.clone();
                (wire.reads)(value)
            };
            let Some(words) = properties[&field]["enum"].as_array() else {
                continue;
            };
            for word in words {
                assert!(with(word).is_ok(), "{name}.{field}: {word}");
            }
            // The refusal lists what the code takes.
            let refusal = with(&json!("Nonsense")).unwrap_err();
            for word in words.iter().filter_map(Value::as_str) {
                assert!(refusal.contains(word), "{name}.{field}: {word}: {refusal}");
            }
            let listed = match field.as_str() {
                "level" => LogLevel::ALL.len(),
                _ => refusal.split('`').count() / 2 - 1,
            };
            assert_eq!(listed, words.len(), "{name}.{field}: {refusal}");
            checked += 1;
        }
    }
    assert_eq!(
        checked, 10,
        "an enumeration is new or gone: say so in the document"
    );
}

#[test]
fn types_and_defaults_are_the_documented_ones() {
    let document = document();
    for (name, wire) in &types() {
        let properties = &document["components"]["schemas"][name]["properties"];
        for (field, value) in wire.full.as_object().unwrap() {
            let property = &properties[field];
            let expected = match value {
                Value::String(_) => "string",
                Value::Bool(_) => "boolean",
                Value::Number(_) => "integer",
                Value::Array(_) => "array",
                _ => {
                    assert!(property["$ref"].is_string(), "{name}.{field}");
                    continue;
                }
            };
            assert_eq!(property["type"], expected, "{name}.{field}");
            let Some(default) = property.get("default") else {
                continue;
            };
            // Left out and given its default, a field must mean the same.
            let mut without = wire.full.clone();
            without.as_object_mut().unwrap().remove(field);
            let mut with = without.clone();
            with[field] = default.clone();
            let (without, with) = ((wire.reads)(without).unwrap(), (wire.reads)(with).unwrap());
            let decided_by_the_monitor = ["boot_args", "cpu_template"].contains(&field.as_str());
            assert!(decided_by_the_monitor || without == with, "{name}.{field}");
        }
    }
}
