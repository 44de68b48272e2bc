//! The monitor's verdict on this machine's KVM, remembered: asking takes a tenth of a second at every command, and the
//! answer stays the same until the machine starts again or something that it rests on changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::choice::Probe;

/// What the verdict rests on, in one line. Compared, never read.
type Basis = String;

#[derive(Serialize, Deserialize)]
struct Remembered {
    basis: Basis,
    verdict: Probe,
}

/// The verdict that `file` has, if it still holds; otherwise `ask`'s, which is then remembered. What was not answered is
/// asked again the next time.
pub fn verdict(
    file: &Path,
    monitor: &Path,
    ask: impl FnOnce() -> Result<Probe, String>,
) -> Result<Probe, String> {
    let basis = basis(monitor);
    let found = fs::read(file)
        .ok()
        .and_then(|text| serde_json::from_slice::<Remembered>(&text).ok());
    if let Some(found) = found.filter(|found| found.basis == basis) {
        return Ok(found.verdict);
    }
    let verdict = ask()?;
    // A directory that is not there yet or may not be written costs the next command a tenth of a second.
    let _ = remember(
        file,
        &Remembered {
            basis,
            verdict: verdict.clone(),
        },
    );
    Ok(verdict)
}

fn remember(file: &Path, what: &Remembered) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("."));
    let new = tempfile::NamedTempFile::new_in(directory)?;
    fs::write(new.path(), serde_json::to_vec(what)?)?;
    new.persist(file)?;
    Ok(())
}

/// The start of the machine, the user, the monitor, and KVM's device and modules.
fn basis(monitor: &Path) -> Basis {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let file = |path: &Path| {
        fs::metadata(path).map_or_else(
            |error| error.kind().to_string(),
            |data| {
                format!(
                    "{}:{} {} bytes, changed {}.{}",
                    data.dev(),
                    data.ino(),
                    data.len(),
                    data.ctime(),
                    data.ctime_nsec()
                )
            },
        )
    };
    let modules = ["kvm_intel", "kvm_amd", "kvm_pvm"]
        .map(|name| Path::new("/sys/module").join(name).exists())
        .map(u8::from);
    format!(
        "boot {}; user {}; monitor {}; device {}; modules {modules:?}",
        text("/proc/sys/kernel/random/boot_id").trim(),
        nix::unistd::geteuid(),
        file(monitor),
        file(Path::new("/dev/kvm")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(why: &str) -> Probe {
        Probe {
            linux_guests: true,
            why: why.to_owned(),
        }
    }

    #[test]
    fn a_verdict_is_asked_for_once_and_again_when_the_monitor_changes() {
        let directory = tempfile::tempdir().unwrap();
        let (file, monitor) = (
            directory.path().join("probe.json"),
            directory.path().join("monitor"),
        );
        fs::write(&monitor, "one").unwrap();
        let first = verdict(&file, &monitor, || Ok(probe("asked")));
        assert_eq!(first, Ok(probe("asked")));
        let again = verdict(&file, &monitor, || panic!("asked twice"));
        assert_eq!(again, Ok(probe("asked")));
        fs::write(&monitor, "another").unwrap();
        let changed = verdict(&file, &monitor, || Ok(probe("asked anew")));
        assert_eq!(changed, Ok(probe("asked anew")));
    }

    #[test]
    fn what_was_not_answered_or_is_damaged_is_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("probe.json");
        let monitor = Path::new("no-such-monitor");
        let failed = verdict(&file, monitor, || Err("no answer".to_owned()));
        assert_eq!(failed, Err("no answer".to_owned()));
        assert!(!file.exists());
        fs::write(&file, "{").unwrap();
        assert_eq!(verdict(&file, monitor, || Ok(probe("x"))), Ok(probe("x")));
    }

    #[test]
    fn a_place_that_cannot_be_written_only_forgets() {
        let file = Path::new("/no/such/directory/probe.json");
        let monitor = Path::new("no-such-monitor");
        assert_eq!(verdict(file, monitor, || Ok(probe("x"))), Ok(probe("x")));
    }
}
