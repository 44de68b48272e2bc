//! Sizes as people write them: `512M`, `10G`, `1048576`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// A word that is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is no size; write a whole number of bytes, or one with K, M, G or T, such as 512M or 10G"
)]
pub struct SizeError(String);

const UNITS: [(char, u32); 5] = [('b', 0), ('k', 10), ('m', 20), ('g', 30), ('t', 40)];

impl Bytes {
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// Whole MiB in it.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

impl FromStr for Bytes {
    type Err = SizeError;

    /// Units are powers of 1024, in any case, with or without `B` or `iB` behind them, as docker takes them.
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let error = || SizeError(text.to_owned());
        let end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let number: u64 = digits.parse().map_err(|_| error())?;
        let unit = unit.to_ascii_lowercase();
        let shift = match unit.chars().next() {
            None => 0,
            Some(letter) => {
                let known = UNITS
                    .iter()
                    .find(|(name, _)| *name == letter)
                    .ok_or_else(error)?;
                let rest = &unit[1..];
                if !(rest.is_empty() || (letter != 'b' && matches!(rest, "b" | "ib"))) {
                    return Err(error());
                }
                known.1
            }
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(error)
    }
}

impl fmt::Display for Bytes {
    /// The largest unit that leaves no fraction, else one decimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, shift) = match self.0 {
            0..0x400 => return f.pad(&format!("{} B", self.0)),
            0x400..0x10_0000 => ("KiB", 10),
            0x10_0000..0x4000_0000 => ("MiB", 20),
            0x4000_0000..0x100_0000_0000 => ("GiB", 30),
            _ => ("TiB", 40),
        };
        let unit = 1_u64 << shift;
        let text = if self.0.is_multiple_of(unit) {
            format!("{} {name}", self.0 / unit)
        } else {
            let tenths = u128::from(self.0) * 10 / u128::from(unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        };
        f.pad(&text)
    }
}
