//! Names of GPUs and other devices for a container: those of the Container Device Interface (SPEC.md 1.1.0, "Fully qualified
//! name").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `vendor.com/class=name`, as in `nvidia.com/gpu=0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Gpu {
    /// `vendor.com/class`.
    kind: String,
    device: String,
}

/// A word that is no device's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' names no device; write vendor/class=device, as in nvidia.com/gpu=0 (files in /etc/cdi and /var/run/cdi describe them)"
)]
pub struct GpuError(String);

impl Gpu {
    pub fn kind(&self) -> &str {
        &self.kind
    }

    pub fn device(&self) -> &str {
        &self.device
    }
}

impl FromStr for Gpu {
    type Err = GpuError;

    fn from_str(text: &str) -> Result<Self, GpuError> {
        let parts = || {
            let (kind, device) = text.split_once('=')?;
            let (vendor, class) = kind.split_once('/')?;
            let known = is_name(vendor, false, ".-_")
                && is_name(class, false, ".-_")
                && is_name(device, true, ".-_:");
            known.then(|| (kind.to_owned(), device.to_owned()))
        };
        let (kind, device) = parts().ok_or_else(|| GpuError(text.to_owned()))?;
        Ok(Self { kind, device })
    }
}

/// Letters, digits and the marks `between` them; the first may be a digit or not.
fn is_name(word: &str, digit_first: bool, between: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || (digit_first && c.is_ascii_digit());
    word.starts_with(first)
        && word.ends_with(|c: char| c.is_ascii_alphanumeric())
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || between.contains(c))
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl TryFrom<String> for Gpu {
    type Error = GpuError;

    fn try_from(text: String) -> Result<Self, GpuError> {
        text.parse()
    }
}

impl From<Gpu> for String {
    fn from(gpu: Gpu) -> Self {
        gpu.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_its_three_parts_and_nothing_that_a_path_could_have() {
        for good in ["nvidia.com/gpu=0", "amd.com/gpu=all", "a/b-c_d=GPU-1:2.3"] {
            assert_eq!(good.parse::<Gpu>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "0",
            "nvidia.com/gpu",
            "nvidia.com/gpu=",
            "gpu=0",
            "1/gpu=0",
            "nvidia.com/../gpu=0",
            "nvidia.com/gpu=0/1",
            "nvidia.com/gpu=a-",
            "0000:01:00.0",
        ] {
            assert!(bad.parse::<Gpu>().is_err(), "{bad}");
        }
    }
}
