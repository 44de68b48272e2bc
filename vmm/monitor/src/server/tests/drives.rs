//! Drives that come, change and go while the machine runs.

use fief_api::{Client, ClientError, Drive, PartialDrive, RateLimiter, TokenBucket};

use super::rig::Rig;
use crate::config::MAX_DRIVES;
use crate::machine::{DriveError, MachineError};

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

/// Ids of the drives, and of those that the guest was asked to release.
fn shown(client: &Client) -> (Vec<String>, Vec<String>) {
    let whole = client.vm_config().unwrap();
    let drives = whole.drives.into_iter().map(|drive| drive.drive_id);
    (drives.collect(), whole.releasing)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn update(id: &str) -> PartialDrive {
    PartialDrive {
        drive_id: id.to_owned(),
        path_on_host: None,
        rate_limiter: None,
    }
}

fn bucket(size: u64) -> Option<TokenBucket> {
    Some(TokenBucket {
        size,
        one_time_burst: None,
        refill_time: 100,
    })
}

/// A machine that runs, with a root device and a drive "a".
fn started() -> Rig {
    let rig = Rig::new();
    let root = Drive {
        is_root_device: true,
        ..Drive::new("root", rig.file("root"))
    };
    rig.client().put_drive(&root).unwrap();
    let drive = Drive::new("a", rig.file("a"));
    rig.client().put_drive(&drive).unwrap();
    rig.start();
    rig
}

#[test]
fn a_drive_is_added_to_a_running_machine() {
    let rig = started();
    let client = rig.client();
    client.put_drive(&Drive::new("b", rig.file("b"))).unwrap();
    assert_eq!(rig.notes.done(), ["resume", "add b"]);
    assert_eq!(shown(&client), (words(&["root", "a", "b"]), words(&[])));
}

#[test]
fn what_cannot_be_added_changes_nothing() {
    let rig = started();
    let client = rig.client();
    let disk = rig.file("b");
    let before = client.vm_config().unwrap();
    let root = Drive {
        is_root_device: true,
        ..Drive::new("b", &*disk)
    };
    let queues = Drive {
        num_queues: 2,
        ..Drive::new("b", &*disk)
    };
    for (drive, expected) in [
        (Drive::new("a", &*disk), "a drive a already"),
        (Drive::new("root", &*disk), "a drive root already"),
        (root, "is_root_device"),
        (queues, "1 vCPUs"),
        (Drive::new("b", "/no/such/disk"), "/no/such/disk"),
        (Drive::new("b-b", &*disk), "not allowed"),
    ] {
        let said = message(client.put_drive(&drive));
        assert!(said.contains(expected), "{said}");
    }
    let refused = MachineError::Drive(DriveError::Pci(fief_devices::pci::PciError::NoFreeSlot));
    *rig.notes.plug_error.lock().unwrap() = Some(refused);
    let said = message(client.put_drive(&Drive::new("b", &*disk)));
    assert!(said.contains("all 32 PCI slots"), "{said}");
    assert_eq!(client.vm_config().unwrap(), before);
    assert_eq!(rig.notes.done(), ["resume"]);
    // The control.
    client.put_drive(&Drive::new("b", &*disk)).unwrap();
}

#[test]
fn there_are_never_more_drives_than_fit() {
    let rig = started();
    let client = rig.client();
    let disk = rig.file("b");
    for number in 2..MAX_DRIVES {
        let drive = Drive::new(format!("d{number}"), &*disk);
        client.put_drive(&drive).unwrap();
    }
    let said = message(client.put_drive(&Drive::new("more", &*disk)));
    assert!(said.contains("26 drives already"), "{said}");
    rig.release("d7");
    client.put_drive(&Drive::new("more", &*disk)).unwrap();
}

#[test]
fn a_release_is_pending_until_the_guest_lets_go() {
    let rig = started();
    let client = rig.client();
    client.delete_drive("a").unwrap();
    assert_eq!(shown(&client), (words(&["root", "a"]), words(&["a"])));
    // A guest that does nothing: asked again, everything else goes on, and the id stays taken.
    client.delete_drive("a").unwrap();
    let again = Drive::new("a", rig.file("a"));
    assert!(message(client.put_drive(&again)).contains("released it"));
    client.put_drive(&Drive::new("b", rig.file("b"))).unwrap();
    client.pause().unwrap();
    client.resume().unwrap();
    rig.release("a");
    assert_eq!(shown(&client), (words(&["root", "b"]), words(&[])));
    assert!(message(client.delete_drive("a")).contains("no drive a"));
    client.put_drive(&again).unwrap();
    let events = std::fs::read_to_string(rig.path("events")).unwrap();
    assert!(
        events.contains(r#"{"drive_id":"a","event":"drive-released"}"#),
        "{events}"
    );
}

#[test]
fn a_drive_gets_another_file_and_other_limits() {
    let rig = started();
    let client = rig.client();
    let other = rig.file("other");
    client
        .patch_drive(&PartialDrive {
            path_on_host: Some(other.clone()),
            ..update("a")
        })
        .unwrap();
    let limited = |bandwidth, ops| PartialDrive {
        rate_limiter: Some(RateLimiter { bandwidth, ops }),
        ..update("a")
    };
    client.patch_drive(&limited(bucket(7), None)).unwrap();
    // What is left out stays; a bucket of zero is switched off.
    client.patch_drive(&limited(None, bucket(3))).unwrap();
    client.patch_drive(&limited(bucket(0), None)).unwrap();
    let done = rig.notes.done();
    let expected = [
        format!("a is {other}"),
        "a has Some(7) None".to_owned(),
        "a has Some(7) Some(3)".to_owned(),
        "a has None Some(3)".to_owned(),
    ];
    assert_eq!(done[1..], expected);
    let drive = &client.vm_config().unwrap().drives[1];
    assert_eq!(drive.path_on_host, Some(other));
    assert_eq!(drive.rate_limiter.unwrap().ops, bucket(3));
    let said = message(client.patch_drive(&PartialDrive {
        path_on_host: Some("x".to_owned()),
        ..update("c")
    }));
    assert!(said.contains("no drive c"), "{said}");
    assert!(message(client.patch_drive(&update("a"))).contains("names no field"));
    assert_eq!(rig.notes.done(), done);
}
