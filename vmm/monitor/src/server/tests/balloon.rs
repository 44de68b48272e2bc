//! The balloon's part of the API.

use fief_api::{Balloon, BalloonStats, ClientError, FullVmConfiguration, MachineConfiguration};

use super::rig::Rig;

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> String {
    match result.unwrap_err() {
        ClientError::Refused {
            status: 400,
            fault_message,
            ..
        } => fault_message,
        other => panic!("{other}"),
    }
}

/// For a guest of 128 MiB.
fn balloon(amount_mib: u64, stats_polling_interval_s: u64) -> Balloon {
    Balloon {
        amount_mib,
        deflate_on_oom: true,
        stats_polling_interval_s,
        free_page_reporting: true,
        ..Balloon::default()
    }
}

#[test]
fn a_balloon_is_configured_before_the_start_and_built() {
    let rig = Rig::new();
    let client = rig.client();
    assert!(refused(client.balloon()).contains("no balloon"));
    client.put_balloon(&balloon(1, 0)).unwrap();
    client.put_balloon(&balloon(128, 5)).unwrap();
    assert_eq!(client.balloon().unwrap(), balloon(128, 5));
    for result in [
        client.patch_balloon(1),
        client.patch_balloon_statistics(1),
        client.balloon_statistics().map(drop),
    ] {
        assert!(refused(result).contains("before starting the microVM"));
    }
    rig.start();
    let built = rig.notes.config.lock().unwrap().clone().unwrap();
    let built = built.balloon.unwrap();
    assert_eq!((built.target_mib, built.interval_s), (128, 5));
    assert!(built.deflate_on_oom && built.reporting && built.statistics);
    let whole = client.vm_config().unwrap();
    assert_eq!(whole.balloon, Some(balloon(128, 5)));
}

#[test]
fn a_running_balloon_is_changed_and_the_description_follows() {
    let rig = Rig::new();
    let client = rig.client();
    client.put_balloon(&balloon(0, 5)).unwrap();
    rig.start();
    client.patch_balloon(64).unwrap();
    client.patch_balloon_statistics(9).unwrap();
    let expected = BalloonStats {
        target_pages: 64 * 256,
        target_mib: 64,
        ..BalloonStats::default()
    };
    assert_eq!(client.balloon_statistics().unwrap(), expected);
    assert_eq!(client.balloon().unwrap(), balloon(64, 9));
    assert_eq!(client.vm_config().unwrap().balloon, Some(balloon(64, 9)));
    client.pause().unwrap();
    client.patch_balloon(0).unwrap();
    assert_eq!(client.balloon_statistics().unwrap().target_mib, 0);
}

#[test]
fn more_than_the_guest_has_is_refused_wherever_it_is_asked_for() {
    let rig = Rig::new();
    let client = rig.client();
    let beyond = "cannot be larger than its guest";
    assert!(refused(client.put_balloon(&balloon(129, 0))).contains(beyond));
    assert!(refused(client.put_balloon(&balloon(1 << 32, 0))).contains(beyond));
    assert!(refused(client.balloon()).contains("no balloon"));
    client.put_balloon(&balloon(128, 0)).unwrap();
    let smaller = MachineConfiguration {
        mem_size_mib: 127,
        ..MachineConfiguration::default()
    };
    assert!(refused(client.put_machine_config(&smaller)).contains(beyond));
    assert_eq!(client.machine_config().unwrap().mem_size_mib, 128);
    rig.start();
    for amount in [129, 1 << 24, u64::MAX] {
        assert!(refused(client.patch_balloon(amount)).contains(beyond));
    }
    assert_eq!(client.balloon().unwrap(), balloon(128, 0));
}

#[test]
fn statistics_are_on_or_off_from_the_start() {
    let rig = Rig::new();
    let client = rig.client();
    client.put_balloon(&balloon(0, 0)).unwrap();
    rig.start();
    assert!(refused(client.balloon_statistics()).contains("no statistics"));
    assert!(refused(client.patch_balloon_statistics(1)).contains("no statistics"));

    let rig = Rig::new();
    let client = rig.client();
    client.put_balloon(&balloon(0, 1)).unwrap();
    rig.start();
    assert!(refused(client.patch_balloon_statistics(0)).contains("cannot become 0"));
    assert!(refused(client.patch_balloon_statistics(65_536)).contains("at most 65535"));
    client.patch_balloon_statistics(65_535).unwrap();
}

#[test]
fn statistics_on_demand_need_no_interval_and_no_guest_that_answers() {
    let rig = Rig::new();
    let client = rig.client();
    let on_demand = Balloon {
        stats_on_demand: true,
        ..balloon(3, 0)
    };
    client.put_balloon(&on_demand).unwrap();
    rig.start();
    assert_eq!(client.balloon_statistics().unwrap().target_mib, 3);
    client.patch_balloon_statistics(1).unwrap();
    client.patch_balloon_statistics(0).unwrap();
    client.pause().unwrap();
    assert_eq!(client.balloon_statistics().unwrap().target_mib, 3);
}

#[test]
fn without_a_balloon_there_is_nothing_to_change_or_ask() {
    let rig = Rig::new();
    rig.start();
    let client = rig.client();
    for result in [
        client.balloon().map(drop),
        client.patch_balloon(0),
        client.patch_balloon_statistics(1),
        client.balloon_statistics().map(drop),
    ] {
        assert!(refused(result).contains("no balloon"));
    }
}

#[test]
fn hinting_is_refused_and_says_what_to_take() {
    let rig = Rig::new();
    let hinting = Balloon {
        free_page_hinting: true,
        ..balloon(0, 0)
    };
    let message = refused(rig.client().put_balloon(&hinting));
    assert!(message.contains("free_page_reporting"), "{message}");
}

#[test]
fn a_configuration_file_may_have_a_balloon_of_firecrackers() {
    let text = r#"{"balloon": {"amount_mib": 5, "deflate_on_oom": false, "stats_polling_interval_s": 1,
        "free_page_hinting": false, "free_page_reporting": false}}"#;
    let config: FullVmConfiguration = serde_json::from_str(text).unwrap();
    let expected = Balloon {
        amount_mib: 5,
        stats_polling_interval_s: 1,
        ..Balloon::default()
    };
    assert_eq!(config.balloon, Some(expected));
    let short = r#"{"balloon": {"amount_mib": 5, "deflate_on_oom": false}}"#;
    let config: FullVmConfiguration = serde_json::from_str(short).unwrap();
    assert_eq!(config.balloon.unwrap().amount_mib, 5);
}
