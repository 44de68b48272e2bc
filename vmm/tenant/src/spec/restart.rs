//! Restart policies, with docker's names and meanings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether a tenant that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    #[default]
    No,
    /// After an end with another exit code than 0, at most so many times in a row if a number is given.
    OnFailure(Option<u32>),
    /// After every end that was not asked for with `fief stop` or `fief kill`.
    Always,
    /// The same; and `fief start --all` leaves it stopped if it was stopped.
    UnlessStopped,
}

/// A word that is no policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is no restart policy; say no, on-failure, on-failure:N, always or unless-stopped")]
pub struct PolicyError(String);

impl RestartPolicy {
    /// Whether to start again after an end with `code`, when it was restarted `restarts` times in a row already.
    pub fn again(self, code: i32, restarts: u64) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(most) => {
                code != 0 && most.is_none_or(|most| restarts < u64::from(most))
            }
            Self::Always | Self::UnlessStopped => true,
        }
    }
}

impl FromStr for RestartPolicy {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        Ok(match text {
            "no" => Self::No,
            "on-failure" => Self::OnFailure(None),
            "always" => Self::Always,
            "unless-stopped" => Self::UnlessStopped,
            other => {
                let most = other.strip_prefix("on-failure:");
                let most = most.and_then(|most| most.parse().ok());
                Self::OnFailure(Some(most.ok_or_else(|| PolicyError(other.to_owned()))?))
            }
        })
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure(None) => f.write_str("on-failure"),
            Self::OnFailure(Some(most)) => write!(f, "on-failure:{most}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = PolicyError;

    fn try_from(text: String) -> Result<Self, PolicyError> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> String {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_dockers_words_and_come_back_as_they_were() {
        for text in [
            "no",
            "on-failure",
            "on-failure:3",
            "always",
            "unless-stopped",
        ] {
            assert_eq!(text.parse::<RestartPolicy>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "yes",
            "on-failure:",
            "on-failure:-1",
            "on-failure:x",
            "No",
        ] {
            assert_eq!(
                bad.parse::<RestartPolicy>(),
                Err(PolicyError(bad.to_owned()))
            );
        }
    }

    #[test]
    fn a_failure_is_tried_again_as_often_as_asked_and_success_is_not() {
        let three = RestartPolicy::OnFailure(Some(3));
        assert!(three.again(1, 2) && !three.again(1, 3) && !three.again(0, 0));
        assert!(RestartPolicy::OnFailure(None).again(137, 1000));
        assert!(RestartPolicy::Always.again(0, 1000));
        assert!(!RestartPolicy::No.again(1, 0));
    }
}
