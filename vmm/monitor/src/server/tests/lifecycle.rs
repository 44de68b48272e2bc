//! Start, pause and end, with clients that come and go meanwhile.

use std::io::Write;
use std::sync::mpsc;

use fief_api::{ClientError, InstanceState};

use super::rig::Rig;
use crate::machine::ExitReason;
use crate::server::control::End;

#[test]
fn the_end_of_the_machine_ends_the_control_thread() {
    let mut rig = Rig::new();
    rig.start();
    let end = rig.end_machine(ExitReason::PowerOff);
    assert_eq!(end, End::Machine(ExitReason::PowerOff));
    assert_eq!(rig.notes.done(), ["resume", "gone"]);
    // Whoever asks now is told, and not left waiting.
    let error = rig.client().pause().unwrap_err();
    assert!(error.to_string().contains("about to exit"), "{error}");
    rig.shut_down();
    let error = rig.client().describe_instance().unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }));
}

#[test]
fn every_restart_is_an_event_after_the_start_even_one_just_before_the_end() {
    let mut rig = Rig::new();
    rig.start();
    rig.restart_machine();
    rig.restart_machine();
    rig.end_machine(ExitReason::PowerOff);
    let events = std::fs::read_to_string(rig.path("events")).unwrap();
    let reboots = events
        .strip_prefix(&format!(
            "{{\"event\":\"started\",\"pid\":{}}}\n",
            std::process::id()
        ))
        .unwrap_or_else(|| panic!("{events}"));
    assert_eq!(reboots, "{\"event\":\"reboot\"}\n".repeat(2));
}

#[test]
fn a_client_that_goes_away_does_not_undo_what_it_asked_for() {
    let rig = Rig::new();
    rig.start();
    let (release, hold) = mpsc::channel();
    *rig.notes.hold.lock().unwrap() = Some(hold);
    let mut stream = rig.connect();
    let body = r#"{"state":"Paused"}"#;
    let head = format!(
        "PATCH /vm HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .unwrap();
    // Taken by the control thread once the hold is.
    while rig.notes.hold.lock().is_ok_and(|hold| hold.is_some()) {
        std::thread::yield_now();
    }
    drop(stream);
    release.send(()).unwrap();
    assert_eq!(
        rig.client().describe_instance().unwrap().state,
        InstanceState::Paused
    );
    assert_eq!(rig.notes.done(), ["resume", "pause"]);
}

#[test]
fn requests_wait_for_the_one_before_them() {
    let rig = Rig::new();
    rig.start();
    let (release, hold) = mpsc::channel();
    *rig.notes.hold.lock().unwrap() = Some(hold);
    let client = rig.client();
    let first = std::thread::spawn(move || client.pause());
    while rig.notes.hold.lock().is_ok_and(|hold| hold.is_some()) {
        std::thread::yield_now();
    }
    let client = rig.client();
    let second = std::thread::spawn(move || client.resume());
    release.send(()).unwrap();
    first.join().unwrap().unwrap();
    second.join().unwrap().unwrap();
    assert_eq!(rig.notes.done(), ["resume", "pause", "resume"]);
}

#[test]
fn shutting_down_lets_an_answer_out_first_and_idle_clients_go() {
    let mut rig = Rig::new();
    rig.start();
    let _idle = rig.connect();
    let (release, hold) = mpsc::channel();
    *rig.notes.hold.lock().unwrap() = Some(hold);
    let client = rig.client();
    let asking = std::thread::spawn(move || client.pause());
    while rig.notes.hold.lock().is_ok_and(|hold| hold.is_some()) {
        std::thread::yield_now();
    }
    release.send(()).unwrap();
    rig.shut_down();
    asking.join().unwrap().unwrap();
    assert!(!rig.socket.exists());
}
