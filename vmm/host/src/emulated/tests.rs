use std::fs;

use nix::sys::signal::Signal;

use super::directory::Directory;
use super::*;
use crate::qemu::{Boot, Hardware};

fn launch() -> Launch {
    let boot = Boot {
        kernel: "k".into(),
        initramfs: "i".into(),
        root: "r".into(),
        disk: "d".into(),
        modules: None,
    };
    Launch {
        hardware: Hardware {
            memory_mib: 777,
            ..Hardware::default()
        },
        boot,
    }
}

#[test]
fn a_host_that_was_never_started_is_not_running_and_leaves_no_trace() {
    let state = tempfile::tempdir().unwrap();
    let host = EmulatedHost::open(state.path());
    let status = host.status();
    assert!(!status.running && status.pid.is_none() && status.hardware.is_none());
    assert!(!host.stop().unwrap());
    assert!(matches!(host.connect(), Err(EmulatedError::NotRunning)));
    assert!(!state.path().join("host").exists());
}

#[test]
fn a_keepers_lock_tells_that_it_lives_and_ends_with_it() {
    let state = tempfile::tempdir().unwrap();
    let directory = Directory::new(state.path().to_owned());
    assert!(!directory.kept());
    let lock = directory
        .lock_keeper()
        .unwrap()
        .expect("nobody else keeps it");
    assert!(directory.kept());
    assert!(
        directory.lock_keeper().unwrap().is_none(),
        "a second keeper got the lock"
    );
    assert_eq!(
        directory.keeper_pid(),
        Some(std::process::id().cast_signed())
    );
    drop(lock);
    assert!(!directory.kept());
    // The process id is still in the file, and is not believed.
    directory.signal_keeper(Signal::SIGKILL).unwrap();
    assert!(directory.await_end(Duration::ZERO));
}

#[test]
fn a_launch_is_read_back_as_it_was_written() {
    let state = tempfile::tempdir().unwrap();
    let directory = Directory::new(state.path().to_owned());
    directory.write_launch(&launch()).unwrap();
    assert_eq!(directory.launch().unwrap(), launch());
    fs::write(state.path().join("launch.json"), "{").unwrap();
    assert!(directory.launch().is_err());
}

#[test]
fn what_an_earlier_run_left_is_removed_but_not_the_disk() {
    let state = tempfile::tempdir().unwrap();
    let directory = Directory::new(state.path().to_owned());
    for name in ["agent.sock", "serial.sock", "console.log", "disk.ext4"] {
        fs::write(state.path().join(name), "").unwrap();
    }
    directory.clear_run_files().unwrap();
    let mut left: Vec<_> = fs::read_dir(state.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["console.log.1", "disk.ext4"]);
}

#[test]
fn the_last_line_of_the_log_is_the_reason_of_an_early_end() {
    let state = tempfile::tempdir().unwrap();
    let directory = Directory::new(state.path().to_owned());
    assert_eq!(directory.last_words(), None);
    fs::write(
        state.path().join("keeper.log"),
        "first\nqemu: no such device\n\n",
    )
    .unwrap();
    assert_eq!(
        directory.last_words().as_deref(),
        Some("qemu: no such device")
    );
}

#[test]
fn a_carried_command_runs_on_the_inner_kvm_with_the_same_arguments() {
    let request =
        EmulatedHost::carried(&["run".to_owned(), "--".to_owned(), "uname -r".to_owned()]);
    let line = request.argv.join("|");
    assert_eq!(
        line,
        "/usr/local/bin/fief|--host|native|--state-dir|/var/lib/fief|run|--|uname -r"
    );
}
