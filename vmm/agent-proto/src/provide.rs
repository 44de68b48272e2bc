//! What a tenant is to have of its host's: names of other tenants, and an account to log in to.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Most names in one request.
pub const MAX_NAMES: usize = 256;
/// Most keys of one login.
pub const MAX_KEYS: usize = 64;
/// Longest name of an account (useradd(8)).
pub const LONGEST_LOGIN: usize = 32;
/// Longest line of one key in bytes; an RSA key of 16384 bits has 2,800.
const LONGEST_KEY: usize = 8 * 1024;
/// Longest name of a host (RFC 1035 §2.3.4, as text).
const LONGEST_NAME: usize = 253;

/// Asks for a state, so it may be asked for again and again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provide {
    /// All names that the tenant's `/etc/hosts` is to have from its host, in place of those before. What else is in the file
    /// stays.
    #[serde(default)]
    pub names: Vec<(IpAddr, String)>,
    /// An account, made if there is none of that name. None: accounts stay as they are.
    #[serde(default)]
    pub login: Option<Login>,
}

/// An account that becomes root by `sudo` without a password, where there is a `sudo`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// See [`is_login`].
    pub name: String,
    /// Lines for its `~/.ssh/authorized_keys`, in place of those that the host gave before. With any, the agent also sees to
    /// it that sshd runs, if the image has one.
    pub keys: Vec<String>,
}

/// Why a [`Provide`] is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvideError {
    #[error("{0} names at once; {MAX_NAMES} are possible")]
    Names(usize),
    #[error("'{0}' cannot be a host's name; use letters, digits, '-', '_' and '.'")]
    Name(String),
    #[error(
        "'{0}' cannot be an account's name; use a letter or '_', then letters, digits, '-', '_', at most {LONGEST_LOGIN}"
    )]
    Login(String),
    #[error("{0} keys at once; {MAX_KEYS} are possible")]
    Keys(usize),
    #[error("key {0} is no line of an authorized_keys file (sshd(8))")]
    Key(usize),
}

impl Provide {
    /// Checks everything that goes into files of the tenant.
    ///
    /// # Errors
    /// See [`ProvideError`].
    pub fn check(&self) -> Result<(), ProvideError> {
        if self.names.len() > MAX_NAMES {
            return Err(ProvideError::Names(self.names.len()));
        }
        if let Some((_, name)) = self.names.iter().find(|(_, name)| !is_name(name)) {
            return Err(ProvideError::Name(name.clone()));
        }
        let Some(login) = &self.login else {
            return Ok(());
        };
        if !is_login(&login.name) {
            return Err(ProvideError::Login(login.name.clone()));
        }
        if login.keys.len() > MAX_KEYS {
            return Err(ProvideError::Keys(login.keys.len()));
        }
        match login.keys.iter().position(|key| !is_public_key_line(key)) {
            Some(index) => Err(ProvideError::Key(index + 1)),
            None => Ok(()),
        }
    }
}

fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(good)
}

/// Whether every Linux takes it as the name of an account.
pub fn is_login(name: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let good = |byte: u8| first(byte) || byte.is_ascii_digit() || byte == b'-';
    (1..=LONGEST_LOGIN).contains(&name.len())
        && name.bytes().next().is_some_and(first)
        && name.bytes().all(good)
}

/// Whether it is one line of an `authorized_keys` file: somewhere in it is a key's type and its base64 (sshd(8),
/// "AUTHORIZED_KEYS FILE FORMAT"), which begins with that type again (RFC 4253 §6.6).
pub fn is_public_key_line(line: &str) -> bool {
    let printable = line.len() <= LONGEST_KEY && !line.chars().any(|c| c.is_control() && c != '\t');
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    printable && !line.starts_with('#') && words.windows(2).any(|pair| is_key(pair[0], pair[1]))
}

fn is_key(kind: &str, base64: &str) -> bool {
    // The first string of the blob: its length in four bytes, then the type.
    let mut blob = u32::try_from(kind.len())
        .unwrap_or(0)
        .to_be_bytes()
        .to_vec();
    blob.extend(kind.as_bytes());
    let known = ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-"];
    known.iter().any(|start| kind.starts_with(start))
        // What follows is the key itself; none is shorter than that of ed25519, 32 bytes.
        && decode(base64).is_some_and(|bytes| bytes.starts_with(&blob) && bytes.len() >= blob.len() + 32)
}

/// Base64 (RFC 4648 §4).
fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
