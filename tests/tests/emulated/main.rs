//! The emulated rig: real Linux tenants in KVM guests, in the emulated host, driven by the `fief` command line.
#![allow(clippy::unwrap_used)]

#[macro_use]
mod backend;

mod access;
mod bad_input;
mod bench;
mod by_path;
mod changes;
mod commands;
mod containers;
mod control;
mod copies;
mod crashes;
mod demo;
mod density;
mod disks;
mod gpus;
mod hostile;
mod images;
mod instructions;
mod isolation;
mod keeping;
mod kernels;
mod lifecycle;
mod limits;
mod listings;
mod memory;
mod moves;
mod network;
mod outside;
mod passthrough;
mod rates;
mod runtimes;
mod ssh;
mod streams;
mod terminal;
mod traces;
mod usage;
mod vfio_user;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;

/// Held by tests that make images, and by those that make sure that none was made.
static IMAGES: Mutex<()> = Mutex::new(());

/// Puts a program to `path` where `fief LINE` runs commands, with `-i`. One that runs stays as it was.
fn put(line: &str, path: &str, content: Vec<u8>) {
    let script =
        format!("cat > {path}.new && chmod 755 {path}.new && mv {path}.new {path} && sync");
    let words = line.split_whitespace().chain(["sh", "-c", script.as_str()]);
    let child = fief_tests::fief(words)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    fief_tests::Said::from(fief_tests::feed(child, content)).ok();
}

/// What `text` says as JSON.
#[track_caller]
fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Where the files of an image or kernel of the test state directory are.
#[track_caller]
fn artifact(kind: &str, name: &str) -> PathBuf {
    let all = json(&fief_tests::run("images --json").ok());
    let entries = all.as_array().unwrap();
    let entry = entries
        .iter()
        .find(|entry| entry["kind"] == kind && entry["name"] == name);
    let artifact = entry.unwrap_or_else(|| panic!("no {kind} {name} in {all}"))["artifact"].clone();
    fief_tests::state_directory()
        .join("images/artifacts")
        .join(artifact.as_str().unwrap())
}

/// Makes `root` in `directory`: a root file system with nothing but this machine's static busybox.
fn busybox_root(directory: &Path) -> PathBuf {
    let root = directory.join("root");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for program in [
        "sh", "cat", "uname", "head", "sync", "poweroff", "kill", "pidof", "sleep",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(program)).unwrap();
    }
    root
}

fn executable(path: &Path, content: &str) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A tenant that is removed at the end of its test, whatever its end.
struct Tenant(String);

impl Tenant {
    /// Starts `fief run -d --name NAME OPTIONS`; names differ by test, so that tests may run at once.
    #[track_caller]
    fn start(name: &str, options: &str) -> Self {
        let tenant = Self::named(name);
        fief_tests::run(&format!("run -d --name {name} {options}")).ok();
        tenant
    }

    /// Makes it with `fief create NAME OPTIONS`.
    #[track_caller]
    fn create(name: &str, options: &str) -> Self {
        let tenant = Self::named(name);
        assert_eq!(
            fief_tests::run(&format!("create {name} {options}")).ok(),
            name
        );
        tenant
    }

    fn named(name: &str) -> Self {
        // What a killed earlier run of the tests may have left.
        fief_tests::run(&format!("rm -f {name}"));
        Self(name.to_owned())
    }

    /// Waits until it has ended; why it did.
    #[track_caller]
    fn ended(&self) -> String {
        fief_tests::run(&format!("wait {}", self.0)).ok();
        let listed = self.listed();
        listed["exit"]["reason"]
            .as_str()
            .unwrap_or_else(|| panic!("{listed}"))
            .to_owned()
    }

    /// Runs a shell script in it.
    fn sh(&self, script: &str) -> fief_tests::Said {
        fief_tests::run_with(&format!("exec {} -- sh -c", self.0), script)
    }

    /// What tells a boot of its kernel and a start of its process 1 from others; none while it cannot be asked.
    fn boot(&self) -> Option<String> {
        let said = self.sh("cat /proc/sys/kernel/random/boot_id; cut -d ' ' -f 22 /proc/1/stat");
        (said.code == Some(0)).then_some(said.out)
    }

    /// Its entry in `fief ps -a --json`.
    #[track_caller]
    fn listed(&self) -> serde_json::Value {
        let all = json(&fief_tests::run("ps -a --json").ok());
        let entry = all
            .as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["name"] == self.0.as_str());
        entry
            .unwrap_or_else(|| panic!("{} is not in {all}", self.0))
            .clone()
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        fief_tests::run(&format!("rm -f {}", self.0));
    }
}
