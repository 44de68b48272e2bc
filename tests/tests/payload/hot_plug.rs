//! Disks that come and go while a machine runs.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use fief_api::{Client, ClientError, Drive, IoEngine, PartialDrive};
use fief_tests::waiting;

use super::Rig;

/// How often a disk comes and goes.
const ROUNDS: usize = 1000;

/// What a process has open, maps and runs.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    pub fn by(process: u32) -> Self {
        let count = |what: &str| {
            let path = format!("/proc/{process}/{what}");
            fs::read_dir(Path::new(&path)).unwrap().count()
        };
        Self {
            descriptors: count("fd"),
            threads: count("task"),
        }
    }
}

/// The drives; none once the machine has ended.
fn ids(client: &Client) -> Vec<String> {
    let drives = client.vm_config().map(|whole| whole.drives);
    let drives = drives.unwrap_or_default().into_iter();
    drives.map(|drive| drive.drive_id).collect()
}

fn add(client: &Client, rig: &Rig, id: &str) -> Result<(), ClientError> {
    client.put_drive(&Drive {
        io_engine: IoEngine::Async,
        ..Drive::new(id, rig.path("plugged").to_str().unwrap())
    })
}

/// Reads the console up to this line.
#[track_caller]
pub fn read_until(out: &mut impl BufRead, console: &mut String, line: &str) {
    while !console.ends_with(line) {
        let length = out.read_line(console).unwrap();
        assert_ne!(length, 0, "ended early: {console}");
    }
}

#[test]
fn disks_come_and_go_a_thousand_times_and_leave_nothing_behind() {
    let mut rig = Rig::new();
    rig.api = true;
    fs::copy(rig.path("disk"), rig.path("plugged")).unwrap();
    rig.describe("hot-plug block", "Async");
    let mut child = rig.spawn();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut console = String::new();
    let client = Client::new(rig.path("api"));
    let ready = || client.describe_instance().ok();
    waiting::until("the API answers", ready);
    let at_first = ids(&client);
    let mut held = Vec::new();
    for round in 0..ROUNDS {
        let id = format!("d{round}");
        add(&client, &rig, &id).unwrap();
        if round == 0 {
            let again = add(&client, &rig, &id);
            assert!(matches!(
                again,
                Err(ClientError::Refused { status: 400, .. })
            ));
        }
        read_until(&mut out, &mut console, &format!("PLUGGED {round}\n"));
        client.delete_drive(&id).unwrap();
        read_until(&mut out, &mut console, &format!("GONE {round}\n"));
        assert_eq!(ids(&client), at_first, "{console}");
        held.push(Held::by(child.id()));
    }
    // A disk that is not asked to go stays, and serves whoever uses it.
    let kept = PartialDrive {
        drive_id: "disk".to_owned(),
        path_on_host: Some(rig.path("disk").to_str().unwrap().to_owned()),
        rate_limiter: None,
    };
    client.patch_drive(&kept).unwrap();
    client.press_power_button().unwrap();
    out.read_to_string(&mut console).unwrap();
    let run = rig.finish(child, console);
    run.passed("hot-plug block");
    let told = format!("CAME {ROUNDS} LEFT {ROUNDS}\n");
    assert!(run.console.contains(&told), "{}", run.console);
    let released = run.events.matches("drive-released").count();
    assert_eq!(released, ROUNDS, "{}", run.events);
    // At a given moment a connection of ours may still be open there.
    let (first, last) = (
        held.iter().take(100).min(),
        held.iter().rev().take(100).min(),
    );
    assert_eq!(first, last);
    let disk = fs::read(rig.path("plugged")).unwrap();
    assert_eq!(
        disk[2047 * 512..],
        [0xA5; 512],
        "what the guest wrote is not there"
    );
}

#[test]
fn a_guest_that_never_lets_go_holds_up_nobody_else() {
    let mut rig = Rig::new();
    rig.api = true;
    fs::copy(rig.path("disk"), rig.path("plugged")).unwrap();
    // It reads no register.
    rig.describe("hang", "Async");
    let child = rig.spawn();
    let client = Client::new(rig.path("api"));
    // Read-only: so many drives may share one file.
    let path = rig.path("plugged");
    let add = |id: &str| {
        client.put_drive(&Drive {
            is_read_only: true,
            ..Drive::new(id, path.to_str().unwrap())
        })
    };
    waiting::until("the API answers", || client.describe_instance().ok());
    add("stuck").unwrap();
    for _ in 0..3 {
        client.delete_drive("stuck").unwrap();
        assert_eq!(client.vm_config().unwrap().releasing, ["stuck"]);
    }
    client.pause().unwrap();
    client.resume().unwrap();
    // With the two of the start, and the stuck one.
    for number in 3..26 {
        add(&format!("d{number}")).unwrap();
    }
    let full = add("more").unwrap_err().to_string();
    assert!(full.contains("26 drives"), "{full}");
    assert_eq!(ids(&client).len(), 26);
    super::end(child);
}
