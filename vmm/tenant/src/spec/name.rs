//! Names of tenants. They become directories, host names and words on command lines, so little is allowed in them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::str::FromStr;

use fief_agent_proto::LONGEST_LOGIN;
use serde::{Deserialize, Serialize};

/// Longest name.
const LONGEST: usize = 63;

/// A tenant's name: a lower-case letter or digit, then up to 62 of those, `_`, `.` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(String);

/// A word that is no tenant's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' cannot be a tenant's name; use 1 to {LONGEST} of a-z, 0-9, '_', '.' and '-', beginning with a letter or digit"
)]
pub struct NameError(String);

impl TenantName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that is easy to say and to remember.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn generate() -> io::Result<Self> {
        let mut random = [0; 4];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let [first, second, third, fourth] = random;
        let pick = |list: &[&'static str], high: u8, low: u8| {
            let index = usize::from(u16::from_be_bytes([high, low])) % list.len();
            list[index]
        };
        let adjective = pick(&ADJECTIVES, first, second);
        let noun = pick(&NOUNS, third, fourth);
        Ok(Self(format!("{adjective}-{noun}")))
    }

    /// The account inside that is this tenant's owner's: the name itself where it can be one. Dots may not be in it, a letter
    /// comes first, and it is shorter.
    pub fn login(&self) -> String {
        let mut login = self.0.replace('.', "-");
        if !login.starts_with(|first: char| first.is_ascii_lowercase()) {
            login.insert(0, 'u');
        }
        login.truncate(LONGEST_LOGIN);
        login
    }

    /// What can serve as a host name: dots and underscores may not be in one.
    pub fn hostname(&self) -> String {
        self.0.replace(['_', '.'], "-").trim_matches('-').to_owned()
    }
}

impl FromStr for TenantName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let good = |byte: u8| plain(byte) || b"_.-".contains(&byte);
        let fits = text.len() <= LONGEST
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(good);
        if fits && !text.contains("..") {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for TenantName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<TenantName> for String {
    fn from(name: TenantName) -> String {
        name.0
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

const ADJECTIVES: [&str; 48] = [
    "airy", "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy",
    "crisp", "deft", "eager", "early", "fair", "fleet", "fond", "fresh", "gentle", "glad",
    "golden", "grand", "green", "happy", "hardy", "jolly", "keen", "kind", "light", "lively",
    "lucky", "mellow", "merry", "mild", "neat", "noble", "plain", "proud", "quick", "quiet",
    "ready", "silver", "sturdy", "sunny", "tidy", "warm", "wise", "young",
];

const NOUNS: [&str; 48] = [
    "abbey", "acre", "barn", "bridge", "brook", "castle", "chapel", "cliff", "copse", "cottage",
    "court", "croft", "dale", "dell", "farm", "fen", "ferry", "field", "ford", "forge", "garden",
    "gate", "glen", "grange", "grove", "hall", "hamlet", "harbour", "haven", "heath", "hedge",
    "hill", "keep", "lane", "lodge", "manor", "marsh", "meadow", "mill", "moor", "orchard",
    "parish", "park", "ridge", "shire", "spring", "tower", "vale",
];
