//! Functions that are passed through.

use std::path::PathBuf;

use fief_api::PciAddress;

use super::{ConfigError, is_id, shortened};

/// Most passed-through devices: bus 0 has 32 slots, which virtio devices want too.
pub const MAX_DEVICES: usize = 16;

/// Most functions of a device.
const MAX_FUNCTIONS: usize = 8;

/// A passed-through device: one or several functions in one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassthroughConfig {
    pub id: String,
    pub source: Source,
    /// Other functions of the guest reach its BARs by DMA.
    pub peer_access: bool,
    /// It is taken even if it cannot be reset.
    pub allow_no_reset: bool,
}

/// Where a passed-through device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// In the host: functions of one device, in the order of their numbers.
    Host {
        functions: Vec<PciAddress>,
        /// Their IOMMU group, if the monitor cannot look it up.
        group: Option<u32>,
    },
    /// In the process that serves this socket.
    Process { socket: PathBuf },
}

impl PassthroughConfig {
    /// The host's functions of one device.
    ///
    /// # Errors
    /// A companion is of another device, or is named twice.
    pub fn functions(
        id: &str,
        first: PciAddress,
        companions: &[PciAddress],
    ) -> Result<Vec<PciAddress>, ConfigError> {
        let mut functions: Vec<PciAddress> = companions.to_vec();
        functions.push(first);
        functions.sort_unstable();
        functions.dedup();
        let beside = functions.iter().all(|function| function.is_beside(first));
        if !beside || functions.len() != companions.len() + 1 || functions.len() > MAX_FUNCTIONS {
            return Err(ConfigError::Companions {
                id: shortened(id),
                first,
            });
        }
        Ok(functions)
    }

    /// # Errors
    /// The id is none, or the socket's path is empty.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !is_id(&self.id) {
            return Err(ConfigError::DeviceId(shortened(&self.id)));
        }
        match &self.source {
            Source::Process { socket } if socket.as_os_str().is_empty() => {
                Err(ConfigError::EmptyPath { name: "socket" })
            }
            _ => Ok(()),
        }
    }

    /// The host's hardware writes to the guest's memory by itself, so that all of it is pinned.
    pub fn pins_memory(&self) -> bool {
        matches!(self.source, Source::Host { .. })
    }
}

/// Adds `device`, or puts it in the place of the one with its id.
///
/// # Errors
/// Another device has one of its functions, or there are too many.
pub fn insert_device(
    devices: &mut Vec<PassthroughConfig>,
    device: PassthroughConfig,
) -> Result<(), ConfigError> {
    device.check()?;
    let mut others = devices.iter().filter(|other| other.id != device.id);
    if let Some(other) = others.find(|other| shares(&other.source, &device.source)) {
        return Err(ConfigError::SameFunction {
            first: other.id.clone(),
            second: device.id,
        });
    }
    let is_full = devices.len() >= MAX_DEVICES;
    match devices.iter_mut().find(|other| other.id == device.id) {
        Some(other) => *other = device,
        None if is_full => return Err(ConfigError::TooManyDevices),
        None => devices.push(device),
    }
    Ok(())
}

fn shares(one: &Source, other: &Source) -> bool {
    match (one, other) {
        (
            Source::Host { functions, .. },
            Source::Host {
                functions: others, ..
            },
        ) => functions.iter().any(|function| others.contains(function)),
        (Source::Process { socket }, Source::Process { socket: other }) => socket == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, functions: &[&str]) -> PassthroughConfig {
        PassthroughConfig {
            id: id.to_owned(),
            source: Source::Host {
                functions: functions.iter().map(|f| f.parse().unwrap()).collect(),
                group: None,
            },
            peer_access: false,
            allow_no_reset: false,
        }
    }

    #[test]
    fn companions_are_functions_of_the_same_device() {
        let address = |text: &str| text.parse::<PciAddress>().unwrap();
        let first = address("01:00.1");
        let functions = |all: &[&str]| {
            let all: Vec<_> = all.iter().map(|text| address(text)).collect();
            PassthroughConfig::functions("gpu", first, &all)
        };
        let in_order = ["01:00.0", "01:00.1", "01:00.3"].map(address);
        assert_eq!(functions(&["01:00.3", "01:00.0"]).unwrap(), in_order);
        for wrong in [&["01:01.0"][..], &["01:00.1"], &["01:00.0", "01:00.0"]] {
            let error = functions(wrong).unwrap_err();
            assert!(matches!(error, ConfigError::Companions { .. }), "{error}");
        }
    }

    #[test]
    fn a_function_is_given_once() {
        let mut devices = Vec::new();
        insert_device(&mut devices, host("a", &["01:00.0", "01:00.1"])).unwrap();
        let error = insert_device(&mut devices, host("b", &["01:00.1"])).unwrap_err();
        assert!(matches!(error, ConfigError::SameFunction { .. }), "{error}");
        insert_device(&mut devices, host("a", &["01:00.1"])).unwrap();
        insert_device(&mut devices, host("b", &["01:00.0"])).unwrap();
        assert_eq!(devices.len(), 2);
        for n in 2..MAX_DEVICES {
            let address = format!("02:{n:02x}.0");
            insert_device(&mut devices, host(&format!("d{n}"), &[&address])).unwrap();
        }
        let error = insert_device(&mut devices, host("x", &["03:00.0"])).unwrap_err();
        assert_eq!(error, ConfigError::TooManyDevices);
        let error = insert_device(&mut devices, host("a b", &["03:00.0"])).unwrap_err();
        assert!(matches!(error, ConfigError::DeviceId(_)));
    }
}
