//! Errors as people see them: what failed, why, and what to do next, on one line.

use std::error::Error;
use std::io;

/// What to do on a full disk, wherever that was met.
const FREE_SPACE: &str = "; free some space, or choose another place with --state-dir";

/// The error and its causes on one line, each said once.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut full = is_full(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        full |= is_full(error);
        let more = error.to_string();
        // Many messages hold their cause already.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    if full && !text.contains("; ") {
        text.push_str(FREE_SPACE);
    }
    text.replace('\n', " ")
}

fn is_full(error: &(dyn Error + 'static)) -> bool {
    let kind = error.downcast_ref().map(io::Error::kind);
    matches!(
        kind,
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn every_cause_is_said_once_and_on_one_line() {
        let inner = Layer {
            text: "no\nspace",
            source: None,
        };
        let same = Layer {
            text: "cannot write",
            source: Some(Box::new(inner)),
        };
        let outer = Layer {
            text: "making x: cannot write",
            source: Some(Box::new(same)),
        };
        assert_eq!(chain(&outer), "making x: cannot write: no space");
    }

    #[test]
    fn a_full_disk_comes_with_what_to_do() {
        let full = io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let error = crate::store::FileError::Io {
            what: "write",
            path: "/x".into(),
            source: full,
        };
        let text = chain(&error);
        assert!(
            text.starts_with("cannot write /x") && text.ends_with("--state-dir"),
            "{text}"
        );
    }
}
