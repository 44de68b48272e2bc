//! Passed-through devices, before the start and while the machine runs.

use fief_api::{Balloon, Client, ClientError, DevicePassthrough, HugePages, MachineConfiguration};

use super::rig::Rig;
use crate::config::{MemoryBacking, Source};
use crate::machine::Notice;

fn message(result: Result<(), ClientError>) -> String {
    match result.unwrap_err() {
        ClientError::Refused {
            status: 400,
            fault_message,
            ..
        } => fault_message,
        other => panic!("{other}"),
    }
}

fn host(id: &str, sbdf: &str) -> DevicePassthrough {
    DevicePassthrough::function(id, sbdf.parse().unwrap())
}

/// Ids of the devices, and of those that the guest was asked to release.
fn shown(client: &Client) -> (Vec<String>, Vec<String>) {
    let whole = client.vm_config().unwrap();
    let devices = whole.device_passthrough.into_iter().map(|device| device.id);
    (devices.collect(), whole.releasing_devices)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn what_was_configured_is_shown_changed_and_removed_until_the_start() {
    let rig = Rig::new();
    let client = rig.client();
    let gpu = DevicePassthrough {
        companions: vec!["01:00.1".parse().unwrap()],
        peer_access: true,
        ..host("gpu", "01:00.0")
    };
    client.put_device(&gpu).unwrap();
    assert_eq!(client.device("gpu").unwrap(), gpu);
    client.put_device(&host("nvme", "02:00.0")).unwrap();
    client.put_device(&host("nvme", "03:00.0")).unwrap();
    client.put_device(&host("gone", "04:00.0")).unwrap();
    client.delete_device("gone").unwrap();
    assert!(message(client.delete_device("gone")).contains("no passed-through device gone"));
    assert_eq!(shown(&client), (words(&["gpu", "nvme"]), words(&[])));
    rig.start();
    let config = rig.notes.config.lock().unwrap().clone().unwrap();
    let functions: Vec<Vec<String>> = config
        .passthrough
        .iter()
        .map(|device| match &device.source {
            Source::Host { functions, .. } => functions.iter().map(ToString::to_string).collect(),
            Source::Process { .. } => panic!("{device:?}"),
        })
        .collect();
    let expected = [
        words(&["0000:01:00.0", "0000:01:00.1"]),
        words(&["0000:03:00.0"]),
    ];
    assert_eq!(functions, expected);
    assert!(matches!(
        config.memory.backing,
        MemoryBacking::Anonymous { .. }
    ));
}

#[test]
fn what_makes_no_device_is_refused_with_the_reason() {
    let rig = Rig::new();
    let client = rig.client();
    client.put_device(&host("gpu", "01:00.0")).unwrap();
    let both = DevicePassthrough {
        socket: Some("s".into()),
        ..host("x", "02:00.0")
    };
    let neither = DevicePassthrough {
        sbdf: None,
        ..host("x", "02:00.0")
    };
    let strange = DevicePassthrough {
        companions: vec!["03:00.0".parse().unwrap()],
        ..host("x", "02:00.0")
    };
    let grouped = DevicePassthrough {
        iommu_group: Some(1),
        ..DevicePassthrough::user("x", "s")
    };
    let peer = DevicePassthrough {
        peer_access: true,
        ..DevicePassthrough::user("x", "s")
    };
    for (device, expected) in [
        (both, "either sbdf"),
        (neither, "either sbdf"),
        (strange, "companions must be other functions"),
        (grouped, "leave them out"),
        (peer, "peer_access is for functions of the host"),
        (host("y", "01:00.0"), "function of device gpu"),
        (host("a-b", "05:00.0"), "'a-b' is not allowed"),
        (DevicePassthrough::user("x", ""), "socket is empty"),
    ] {
        let said = message(client.put_device(&device));
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(shown(&client).0, ["gpu"]);
}

#[test]
fn pinned_memory_and_a_balloon_exclude_each_other_at_any_time() {
    let rig = Rig::new();
    let client = rig.client();
    client.put_device(&host("gpu", "01:00.0")).unwrap();
    client.put_balloon(&Balloon::default()).unwrap();
    client.put_boot_source(&rig.boot_source()).unwrap();
    let said = message(client.start());
    assert!(said.contains("pinned"), "{said}");
    client.delete_device("gpu").unwrap();
    client.start().unwrap();
    let said = message(client.put_device(&host("gpu", "01:00.0")));
    assert!(said.contains("pinned"), "{said}");
}

#[test]
fn a_device_of_another_process_shares_the_guests_memory() {
    let rig = Rig::new();
    let client = rig.client();
    client
        .put_device(&DevicePassthrough::user("d", "s"))
        .unwrap();
    // The memory of such a machine can be given back, and so it may have a balloon.
    client.put_balloon(&Balloon::default()).unwrap();
    let huge = MachineConfiguration {
        huge_pages: HugePages::Hugetlbfs2M,
        ..MachineConfiguration::default()
    };
    client.put_machine_config(&huge).unwrap();
    client.put_boot_source(&rig.boot_source()).unwrap();
    assert!(message(client.start()).contains("huge_pages 2M"));
    client
        .put_machine_config(&MachineConfiguration::default())
        .unwrap();
    client.start().unwrap();
    let config = rig.notes.config.lock().unwrap().clone().unwrap();
    assert_eq!(config.memory.backing, MemoryBacking::Memfd);
}

#[test]
fn a_device_comes_and_goes_while_the_machine_runs() {
    let rig = Rig::new();
    let client = rig.client();
    client.put_device(&host("fixed", "01:00.0")).unwrap();
    rig.start();
    client.put_device(&host("gpu", "02:00.0")).unwrap();
    let said = message(client.put_device(&host("gpu", "03:00.0")));
    assert!(
        said.contains("a passed-through device gpu already"),
        "{said}"
    );
    let said = message(client.put_device(&host("other", "02:00.0")));
    assert!(said.contains("function of device gpu"), "{said}");
    client.delete_device("gpu").unwrap();
    assert_eq!(shown(&client), (words(&["fixed", "gpu"]), words(&["gpu"])));
    rig.release_device("gpu");
    assert_eq!(shown(&client), (words(&["fixed"]), words(&[])));
    assert!(message(client.delete_device("gpu")).contains("no passed-through device gpu"));
    client.put_device(&host("gpu", "02:00.0")).unwrap();
    let expected = [
        "resume",
        "add device gpu",
        "release device gpu",
        "close",
        "add device gpu",
    ];
    assert_eq!(rig.notes.done(), expected);
    // The host wants it back: the guest is asked.
    rig.notice("gpu", Notice::Requested);
    assert_eq!(shown(&client).1, ["gpu"]);
    rig.notice("fixed", Notice::Error);
    rig.notice("fixed", Notice::Gone);
    shown(&client);
    let events = std::fs::read_to_string(rig.path("events")).unwrap();
    for (event, id) in [
        ("device-released", "gpu"),
        ("device-requested", "gpu"),
        ("device-error", "fixed"),
        ("device-gone", "fixed"),
    ] {
        let line = format!(r#"{{"event":"{event}","id":"{id}"}}"#);
        assert!(events.contains(&line), "{line} in {events}");
    }
}
