//! Tenants on that host.

use fief_tests::{Said, binary, feed, fief};

use super::{run, said, start, state};

/// A machine of Debian, with Debian's kernel for its drivers; removed at the end of its test.
pub struct Tenant(pub String);

impl Tenant {
    /// Starts `fief run -d --name NAME` with what all have and `options`.
    #[track_caller]
    pub fn start(name: &str, options: &str) -> Self {
        let tenant = Self::named(name);
        run(&tenant.line(options)).ok();
        tenant
    }

    /// The start is refused, and what it says has all these words.
    #[track_caller]
    pub fn refused(name: &str, options: &str, words: &[&str]) {
        let tenant = Self::named(name);
        let said = run(&tenant.line(options)).fails(125);
        for word in words {
            assert!(said.contains(word), "no '{word}' in: {said}");
        }
    }

    fn named(name: &str) -> Self {
        // What an earlier run of the tests may have left.
        run(&format!("rm -f {name}"));
        Self(name.to_owned())
    }

    fn line(&self, options: &str) -> String {
        format!(
            "run -d --name {} --image debian --kernel debian --memory 256M --net none {options} -- sleep infinity",
            self.0
        )
    }

    /// Runs a shell script in it.
    pub fn sh(&self, script: &str) -> Said {
        said(&["exec", &self.0, "--", "sh", "-c", script])
    }

    /// Puts the program that drives devices into it, as `driver`.
    #[track_caller]
    pub fn with_driver(self) -> Self {
        put_driver(&["exec", "-i", &self.0]);
        self
    }

    /// The addresses that devices with these IDs, as `8086:10d3`, have in it, in order.
    #[track_caller]
    pub fn addresses(&self, ids: &str) -> Vec<String> {
        let (vendor, device) = ids.split_once(':').unwrap();
        let script = format!(
            "cd /sys/bus/pci/devices; for f in *; do case $(cat $f/vendor),$(cat $f/device) in 0x{vendor},0x{device}) echo $f;; esac; done"
        );
        let found = self.sh(&script).ok();
        found.lines().map(str::to_owned).collect()
    }

    /// The only address of those.
    #[track_caller]
    pub fn address(&self, ids: &str) -> String {
        let mut all = self.addresses(ids);
        assert_eq!(all.len(), 1, "{ids}: {all:?}");
        all.remove(0)
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        said(&["rm", "-f", &self.0]);
    }
}

/// Puts the program that drives devices to where `fief WORDS` runs commands, as `driver`.
#[track_caller]
pub fn put_driver(words: &[&str]) {
    start();
    let script = "cat > /usr/local/bin/driver && chmod 755 /usr/local/bin/driver";
    let mut command = fief([words, &["--", "sh", "-c", script]].concat());
    command.env("FIEF_STATE_DIR", state());
    let child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let program = std::fs::read(binary("fief-test-driver")).unwrap();
    Said::from(feed(child, program)).ok();
}

/// Makes functions ready to be passed.
#[track_caller]
pub fn bind(addresses: &[&str]) {
    run(&format!("gpu bind {}", addresses.join(" "))).ok();
}

/// Gives functions back to the host's drivers.
#[track_caller]
pub fn unbind(addresses: &[&str]) {
    run(&format!("gpu unbind {}", addresses.join(" "))).ok();
}
