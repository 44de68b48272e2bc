//! Other monitors that are compared, as they are named on the command line.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Backend;
use crate::error::{Error, Result};

/// Longest name of a peer, in bytes.
const LONGEST_NAME: usize = 32;

/// A word that names no peer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadPeer {
    #[error("'{0}' is not NAME=PATH; give the peer a name and the path of its monitor")]
    Form(String),
    #[error(
        "'{0}' cannot be a peer's name; use 1 to {LONGEST_NAME} small letters, digits and dashes, a letter first, and neither vm, \
         container nor host"
    )]
    Name(String),
}

/// Whether a peer may be called so.
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=LONGEST_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(plain)
        && Backend::from_str(name, false).is_err()
}

/// A monitor to be compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    /// As it was given.
    pub path: PathBuf,
    /// Where it is run.
    pub program: PathBuf,
}

impl FromStr for Peer {
    type Err = BadPeer;

    fn from_str(text: &str) -> std::result::Result<Self, BadPeer> {
        let parts = text.split_once('=').filter(|(_, path)| !path.is_empty());
        let (name, path) = parts.ok_or_else(|| BadPeer::Form(text.to_owned()))?;
        if !is_name(name) {
            return Err(BadPeer::Name(name.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            path: path.into(),
            program: path.into(),
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.path.display())
    }
}

/// The same with their programs found on this machine.
///
/// # Errors
/// One is missing or cannot be executed, or two have one name.
pub fn found(peers: &[Peer]) -> Result<Vec<Peer>> {
    let mut all: Vec<Peer> = Vec::new();
    for peer in peers {
        if all.iter().any(|one| one.name == peer.name) {
            let name = &peer.name;
            return Err(Error::Other(format!(
                "two peers are called '{name}'; give each a name of its own"
            )));
        }
        let executable = |path: PathBuf| {
            let about = fs::metadata(&path)?;
            if about.is_file() && about.permissions().mode() & 0o111 != 0 {
                return Ok(path);
            }
            Err(std::io::Error::other("it is no file that can be executed"))
        };
        let program = fs::canonicalize(&peer.path).and_then(executable);
        let program = program.map_err(|source| Error::PeerProgram {
            name: peer.name.clone(),
            path: peer.path.clone(),
            source,
        })?;
        all.push(Peer {
            program,
            ..peer.clone()
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_peer_has_a_name_and_a_path_and_is_said_as_it_was() {
        let peer: Peer = "fire-2=/opt/a=b".parse().unwrap();
        assert_eq!(peer.name, "fire-2");
        assert_eq!(peer.path, Path::new("/opt/a=b"));
        assert_eq!(peer.to_string(), "fire-2=/opt/a=b");
        let parse = |text: &str| text.parse::<Peer>().unwrap_err();
        for text in ["fire", "fire=", ""] {
            assert_eq!(parse(text), BadPeer::Form(text.to_owned()));
        }
        let long = "a".repeat(LONGEST_NAME + 1);
        for name in ["", "vm", "container", "host", "A", "a/b", "-a", "1", &long] {
            let error = parse(&format!("{name}=/opt"));
            assert_eq!(error, BadPeer::Name(name.to_owned()));
        }
    }

    #[test]
    fn a_backend_is_its_name_in_files() {
        for name in ["vm", "container", "host", "fire"] {
            let text = format!("\"{name}\"");
            let backend: Backend = serde_json::from_str(&text).unwrap();
            assert_eq!(serde_json::to_string(&backend).unwrap(), text);
            assert_eq!(backend == Backend::Peer(name.to_owned()), name == "fire");
        }
        serde_json::from_str::<Backend>("\"No name\"").unwrap_err();
    }

    #[test]
    fn programs_are_found_before_anything_is_measured() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("monitor");
        let peer = |path: &Path| Peer {
            name: "fire".to_owned(),
            path: path.to_owned(),
            program: path.to_owned(),
        };
        let look = |path: &Path| found(&[peer(path)]);
        let missing = look(&path).unwrap_err();
        assert!(matches!(missing, Error::PeerProgram { .. }), "{missing}");
        fs::write(&path, "").unwrap();
        let plain = look(&path).unwrap_err().to_string();
        assert!(plain.contains("executed"), "{plain}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(look(&path).unwrap().len(), 1);
        look(directory.path()).unwrap_err();
        let twice = found(&[peer(&path), peer(&path)]).unwrap_err();
        assert!(twice.to_string().contains("a name of its own"), "{twice}");
    }
}
