//! Disks that a tenant has besides its own.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Bytes;

/// Most of them: as many drives as a machine has, less image, disk and modules.
pub const MAX_DISKS: usize = 23;
/// Bytes of the serial number that the guest sees (virtio 1.3 §5.2.6).
const MAX_NAME: usize = 20;
/// Names of the drives that every tenant has.
const RESERVED: [&str; 3] = ["image", "disk", "modules"];

/// Name of a disk, and the serial number that the guest finds it by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskName(String);

/// A word that is no name of a disk.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is no name for a disk; use 1 to {MAX_NAME} letters, digits and underscores, but not image, disk or modules"
)]
pub struct DiskNameError(String);

impl DiskName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name that none of `disks` has.
    pub fn unused(disks: &[Disk]) -> Self {
        let taken = |name: &str| disks.iter().any(|disk| disk.name.as_str() == name);
        let names = (1..).map(|number: u32| format!("disk{number}"));
        let mut free = names.filter(|name| !taken(name));
        Self(free.next().unwrap_or_default())
    }
}

impl FromStr for DiskName {
    type Err = DiskNameError;

    fn from_str(text: &str) -> Result<Self, DiskNameError> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let fits = (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(good);
        if !fits || RESERVED.contains(&text) {
            return Err(DiskNameError(text.chars().take(64).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for DiskName {
    type Error = DiskNameError;

    fn try_from(text: String) -> Result<Self, DiskNameError> {
        text.parse()
    }
}

impl From<DiskName> for String {
    fn from(name: DiskName) -> Self {
        name.0
    }
}

impl std::fmt::Display for DiskName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is behind a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskSource {
    /// A sparse file of this size in the tenant's directory; it goes with the disk.
    Own(Bytes),
    /// A file or block device elsewhere, used in place.
    File(PathBuf),
}

/// A disk that a tenant has besides its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    pub name: DiskName,
    pub source: DiskSource,
    #[serde(default)]
    pub read_only: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_that_fit_a_serial_number_and_no_drive_of_ours() {
        for good in ["a", "data_1", "X", &"a".repeat(20)] {
            assert_eq!(good.parse::<DiskName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "a-b",
            "a/b",
            "ä",
            "..",
            "image",
            "disk",
            "modules",
            &"a".repeat(21),
        ] {
            assert!(bad.parse::<DiskName>().is_err(), "{bad}");
            let json = serde_json::to_string(bad).unwrap();
            assert!(serde_json::from_str::<DiskName>(&json).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_that_is_made_up_is_not_taken() {
        let disk = |name: &str| Disk {
            name: name.parse().unwrap(),
            source: DiskSource::Own(Bytes(1)),
            read_only: false,
        };
        assert_eq!(DiskName::unused(&[]).as_str(), "disk1");
        let some = [disk("disk1"), disk("disk3")];
        assert_eq!(DiskName::unused(&some).as_str(), "disk2");
    }
}
