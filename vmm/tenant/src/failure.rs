//! Errors as people see them: what failed, why, and what to do next, on one line.

use std::error::Error;

/// The error and its causes on one line, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Many messages hold their cause already.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text.replace('\n', " ")
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
}
