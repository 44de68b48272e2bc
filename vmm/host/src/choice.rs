//! Native or emulated: which host runs the tenants, and why.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::str::FromStr;

use crate::remembered;

/// What the user asked for (`--host`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HostChoice {
    /// Native where Linux guests run at speed on this machine's KVM, emulated elsewhere.
    #[default]
    Auto,
    Native,
    Emulated,
}

/// `--host` was none of the words it takes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no kind of host; say auto, native or emulated")]
pub struct UnknownHost(String);

impl fmt::Display for HostChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Emulated => "emulated",
        })
    }
}

impl FromStr for HostChoice {
    type Err = UnknownHost;

    fn from_str(word: &str) -> Result<Self, UnknownHost> {
        match word {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "emulated" => Ok(Self::Emulated),
            other => Err(UnknownHost(other.to_owned())),
        }
    }
}

/// Which host runs the tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HostKind {
    Native,
    Emulated,
}

/// A choice and its reason, in one line for people.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Decision {
    pub kind: HostKind,
    pub why: String,
}

/// What `fief-vmm --probe` says of this machine's KVM.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Probe {
    /// Linux guests run here, at speed.
    pub linux_guests: bool,
    /// The reason, in plain words.
    pub why: String,
}

/// Decides where tenants run. `monitor` is the `fief-vmm` binary; it is only run when the choice is `Auto`, and not if
/// `remembered`, a file that this function keeps, still has its answer.
pub fn choose(choice: HostChoice, monitor: &Path, remembered: Option<&Path>) -> Decision {
    match choice {
        HostChoice::Native => Decision {
            kind: HostKind::Native,
            why: "asked for with --host native".to_owned(),
        },
        HostChoice::Emulated => Decision {
            kind: HostKind::Emulated,
            why: "asked for with --host emulated".to_owned(),
        },
        HostChoice::Auto => match answer(monitor, remembered) {
            Ok(Probe {
                linux_guests: true,
                why,
            }) => Decision {
                kind: HostKind::Native,
                why,
            },
            Ok(Probe {
                linux_guests: false,
                why,
            }) => Decision {
                kind: HostKind::Emulated,
                why,
            },
            Err(why) => Decision {
                kind: HostKind::Emulated,
                why,
            },
        },
    }
}

fn answer(monitor: &Path, remembered: Option<&Path>) -> Result<Probe, String> {
    match remembered {
        Some(file) => remembered::verdict(file, monitor, || probe(monitor)),
        None => probe(monitor),
    }
}

/// Asks the monitor what this machine's KVM can do.
///
/// # Errors
/// A sentence that says why it could not be asked.
pub fn probe(monitor: &Path) -> Result<Probe, String> {
    let output = Command::new(monitor)
        .arg("--probe")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {} --probe: {error}", monitor.display()))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "fief-vmm --probe failed ({}): {}",
            output.status,
            message.trim()
        ));
    }
    parse(&output.stdout)
}

fn parse(json: &[u8]) -> Result<Probe, String> {
    /// The monitor's whole answer; only the verdict decides.
    #[derive(serde::Deserialize)]
    struct Answer {
        verdict: Probe,
    }
    let answer: Answer = serde_json::from_slice(json)
        .map_err(|error| format!("fief-vmm --probe answered no verdict: {error}"))?;
    Ok(answer.verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_others_refused() {
        assert_eq!("auto".parse(), Ok(HostChoice::Auto));
        assert_eq!("native".parse(), Ok(HostChoice::Native));
        assert_eq!("emulated".parse(), Ok(HostChoice::Emulated));
        let error = "kvm".parse::<HostChoice>().unwrap_err();
        assert!(error.to_string().contains("auto, native or emulated"));
    }

    #[test]
    fn an_explicit_choice_does_not_run_the_monitor() {
        let nowhere = Path::new("no-such-monitor");
        assert_eq!(
            choose(HostChoice::Native, nowhere, None).kind,
            HostKind::Native
        );
        assert_eq!(
            choose(HostChoice::Emulated, nowhere, None).kind,
            HostKind::Emulated
        );
    }

    #[test]
    fn a_monitor_that_cannot_be_asked_means_emulated_and_says_why() {
        let decision = choose(HostChoice::Auto, Path::new("no-such-monitor"), None);
        assert_eq!(decision.kind, HostKind::Emulated);
        assert!(decision.why.contains("no-such-monitor"), "{}", decision.why);
    }

    #[test]
    fn the_verdict_is_read_from_the_whole_answer() {
        let json = br#"{"api_version":12,"verdict":{"linux_guests":true,"why":"fast"},"more":[1]}"#;
        assert_eq!(
            parse(json),
            Ok(Probe {
                linux_guests: true,
                why: "fast".to_owned()
            })
        );
        assert!(parse(b"{}").is_err());
    }
}
