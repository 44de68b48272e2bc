//! The emulated rig: real Linux tenants in KVM guests, in the emulated host, driven by the `fief` command line.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod commands;
mod crashes;
mod instructions;
mod images;
mod isolation;
mod kernels;
mod lifecycle;
mod streams;

/// A tenant that is removed at the end of its test, whatever its end.
struct Tenant(String);

impl Tenant {
    /// Starts `fief run -d --name NAME OPTIONS`; names differ by test, so that tests may run at once.
    #[track_caller]
    fn start(name: &str, options: &str) -> Self {
        let tenant = Self(name.to_owned());
        // What a killed earlier run of the tests may have left.
        fief_tests::run(&format!("rm -f {name}"));
        fief_tests::run(&format!("run -d --name {name} {options}")).ok();
        tenant
    }

    /// Runs a shell script in it.
    fn sh(&self, script: &str) -> fief_tests::Said {
        fief_tests::run_with(&format!("exec {} -- sh -c", self.0), script)
    }

    /// Its entry in `fief ps -a --json`.
    #[track_caller]
    fn listed(&self) -> serde_json::Value {
        let all: serde_json::Value =
            serde_json::from_str(&fief_tests::run("ps -a --json").ok()).unwrap();
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
