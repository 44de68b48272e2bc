//! Network interfaces.

use fief_devices::limiter::Limits;

use super::{ConfigError, is_id, shortened};

/// Largest number of network interfaces.
pub const MAX_INTERFACES: usize = 8;

/// Smallest MTU: what IPv4 asks of every link (RFC 791).
const MIN_MTU: u64 = 68;

/// A virtio-net device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceConfig {
    pub id: String,
    /// The tap, in the monitor's network namespace.
    pub tap: String,
    /// The guest's address; without it the guest makes one up.
    pub mac: Option<[u8; 6]>,
    /// 68 or more.
    pub mtu: Option<u16>,
    pub rx_limits: Limits,
    pub tx_limits: Limits,
}

impl InterfaceConfig {
    /// Reads a MAC address: six hexadecimal bytes with colons.
    ///
    /// # Errors
    /// It is none, or one of a group or of nobody.
    pub fn mac(text: &str) -> Result<[u8; 6], ConfigError> {
        let refuse = || ConfigError::Mac(shortened(text));
        let mut mac = [0; 6];
        let mut bytes = text.split(':');
        for place in &mut mac {
            let byte = bytes.next().filter(|byte| byte.len() == 2);
            let digits = byte.filter(|byte| byte.bytes().all(|b| b.is_ascii_hexdigit()));
            *place = u8::from_str_radix(digits.ok_or_else(refuse)?, 16).map_err(|_| refuse())?;
        }
        // Linux would make one up in place of these.
        let is_group = mac.first().is_some_and(|byte| byte & 1 == 1);
        if bytes.next().is_some() || is_group || mac == [0; 6] {
            return Err(refuse());
        }
        Ok(mac)
    }

    /// Reads an MTU.
    ///
    /// # Errors
    /// It is out of range.
    pub fn mtu(asked: u64) -> Result<u16, ConfigError> {
        let valid = u16::try_from(asked).ok().filter(|_| asked >= MIN_MTU);
        valid.ok_or(ConfigError::Mtu(asked))
    }

    /// # Errors
    /// The id or the tap's name is none.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !is_id(&self.id) {
            return Err(ConfigError::InterfaceId(shortened(&self.id)));
        }
        // dev_valid_name of the kernel; the last of IFNAMSIZ bytes is a zero.
        let letter = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
        let valid = (1..libc::IFNAMSIZ).contains(&self.tap.len());
        if !valid || !self.tap.chars().all(letter) || [".", ".."].contains(&self.tap.as_str()) {
            return Err(ConfigError::TapName(shortened(&self.tap)));
        }
        Ok(())
    }
}

/// Adds `interface`, or puts it in the place of the one with its id.
///
/// # Errors
/// Another one has its tap or its MAC address, or there are too many.
pub fn insert_interface(
    interfaces: &mut Vec<InterfaceConfig>,
    interface: InterfaceConfig,
) -> Result<(), ConfigError> {
    interface.check()?;
    let mut others = interfaces.iter().filter(|other| other.id != interface.id);
    let same = others.find_map(|other| {
        let what = if other.tap == interface.tap {
            "host_dev_name"
        } else if other.mac.is_some() && other.mac == interface.mac {
            "guest_mac"
        } else {
            return None;
        };
        Some((other.id.clone(), what))
    });
    if let Some((first, what)) = same {
        return Err(ConfigError::SameInterface {
            first,
            second: interface.id,
            what,
        });
    }
    let is_full = interfaces.len() >= MAX_INTERFACES;
    match interfaces.iter_mut().find(|other| other.id == interface.id) {
        Some(other) => *other = interface,
        None if is_full => return Err(ConfigError::TooManyInterfaces),
        None => interfaces.push(interface),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
