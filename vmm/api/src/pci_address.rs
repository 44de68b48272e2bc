//! Where a PCI function is: domain, bus, device, function, as Linux writes them in sysfs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The place of a PCI function on a machine, as in `0000:01:00.0`.
///
/// Addresses are in the order in which `lspci` lists functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// Which tree of buses. Firmware counts them in 16 bits; Linux gives those behind an Intel VMD controller numbers
    /// from 0x10000 on (drivers/pci/controller/vmd.c).
    domain: u32,
    bus: u8,
    /// 0 to 31.
    device: u8,
    /// 0 to 7.
    function: u8,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no PCI address; write DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, as in 0000:01:00.0, or 01:00.0 without the domain \
     (`fief gpu list --all` shows them)"
)]
pub struct PciAddressError(String);

impl PciAddress {
    /// The function at this place; none where there is no such device (0 to 31) or function (0 to 7) number.
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self {
            domain,
            bus,
            device,
            function,
        })
    }

    /// The tree of buses.
    pub fn domain(self) -> u32 {
        self.domain
    }

    /// The bus in its domain.
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The device on its bus, 0 to 31.
    pub fn device(self) -> u8 {
        self.device
    }

    /// The function of its device, 0 to 7.
    pub fn function(self) -> u8 {
        self.function
    }

    /// Whether both are functions of one device: same domain, bus and device number.
    pub fn is_beside(self, other: Self) -> bool {
        (self.domain, self.bus, self.device) == (other.domain, other.bus, other.device)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            self.domain, self.bus, self.device, self.function
        )
    }
}

impl FromStr for PciAddress {
    type Err = PciAddressError;

    fn from_str(text: &str) -> Result<Self, PciAddressError> {
        parse(text).ok_or_else(|| PciAddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.split_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = match rest.split_once(':') {
        Some((domain, bus)) => (hexadecimal(domain, 4..=8)?, bus),
        None => (0, rest),
    };
    let small = |text, digits| u8::try_from(hexadecimal(text, digits)?).ok();
    PciAddress::new(
        domain,
        small(bus, 2..=2)?,
        small(device, 2..=2)?,
        small(function, 1..=1)?,
    )
}

/// A number of so many digits: no sign and no prefix, which the standard library would let through.
fn hexadecimal(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let plain = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl TryFrom<String> for PciAddress {
    type Error = PciAddressError;

    fn try_from(text: String) -> Result<Self, PciAddressError> {
        text.parse()
    }
}

impl From<PciAddress> for String {
    fn from(address: PciAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_read_long_or_short_and_written_in_full() {
        for (text, full) in [
            ("0000:01:00.0", "0000:01:00.0"),
            ("01:00.0", "0000:01:00.0"),
            ("00:1F.7", "0000:00:1f.7"),
            ("ABCD:EF:0A.1", "abcd:ef:0a.1"),
            ("10000:e1:00.0", "10000:e1:00.0"),
            ("ffffffff:ff:1f.7", "ffffffff:ff:1f.7"),
        ] {
            assert_eq!(address(text).to_string(), full);
        }
    }

    #[test]
    fn what_is_no_address_is_told_with_how_to_write_one() {
        for text in [
            "",
            ".",
            ":",
            "0",
            "01:00",
            "0000:01:00",
            "01:20.0",
            "01:00.8",
            "01:00.a",
            "01:00.00",
            "1:0.0",
            "001:00.0",
            "000:01:00.0",
            "100000000:01:00.0",
            "0000:0000:01:00.0",
            "+1:00.0",
            "0x:00.0",
            " 01:00.0",
            "01:00.0 ",
            "01:00.0.0",
            "01:é.0",
            "../../etc",
            "0000:01:00.0/../x",
        ] {
            let error = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("'{text}'")) && error.contains("0000:01:00.0"),
                "{error}"
            );
        }
    }

    #[test]
    fn addresses_are_in_the_order_of_buses() {
        let mut all = ["0001:00:00.0", "00:02.1", "01:00.0", "00:02.0", "00:1f.0"].map(address);
        all.sort();
        let sorted = all.map(|address| address.to_string());
        assert_eq!(
            sorted,
            [
                "0000:00:02.0",
                "0000:00:02.1",
                "0000:00:1f.0",
                "0000:01:00.0",
                "0001:00:00.0"
            ]
        );
    }

    #[test]
    fn functions_of_one_device_are_beside_each_other() {
        assert!(address("01:00.0").is_beside(address("01:00.1")));
        for other in ["01:01.0", "02:00.0", "0001:01:00.0"] {
            assert!(!address("01:00.0").is_beside(address(other)), "{other}");
        }
    }

    #[test]
    fn in_json_it_is_text() {
        let json = serde_json::to_string(&address("01:00.0")).unwrap();
        assert_eq!(json, "\"0000:01:00.0\"");
        assert_eq!(serde_json::from_str::<PciAddress>("\"1:0\"").ok(), None);
        assert_eq!(
            serde_json::from_str::<PciAddress>(&json).unwrap(),
            address("01:00.0")
        );
    }
}
