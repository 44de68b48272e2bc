//! Passed-through devices that come and go.

use std::path::PathBuf;

use fief_api::DevicePassthrough;

use super::Draft;
use crate::config::{ConfigError, MemoryBacking, PassthroughConfig, Source, insert_device};
use crate::server::error::RequestError;

impl Draft {
    /// Adds a device, or replaces the one with its id, before the start.
    pub fn put_device(&mut self, device: DevicePassthrough) -> Result<(), RequestError> {
        let config = device_config(&device)?;
        self.remember_device(device, config)
    }

    /// Checks a device that is to be added to the running machine.
    ///
    /// # Errors
    /// There is one with its id, the machine has a balloon, or it could not be configured either.
    pub fn check_new_device(
        &self,
        device: &DevicePassthrough,
    ) -> Result<PassthroughConfig, RequestError> {
        if self.passthrough.iter().any(|other| other.id == device.id) {
            return Err(RequestError::DeviceExists(device.id.clone()));
        }
        let config = device_config(device)?;
        insert_device(&mut self.passthrough.clone(), config.clone())?;
        if config.pins_memory() && self.balloon.is_some() {
            return Err(ConfigError::BalloonWithPinnedMemory.into());
        }
        Ok(config)
    }

    /// A device was added.
    pub fn remember_device(
        &mut self,
        device: DevicePassthrough,
        config: PassthroughConfig,
    ) -> Result<(), RequestError> {
        insert_device(&mut self.passthrough, config)?;
        let devices = &mut self.wire.device_passthrough;
        match devices.iter_mut().find(|other| other.id == device.id) {
            Some(other) => *other = device,
            None => devices.push(device),
        }
        Ok(())
    }

    /// Removes a device before the start.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_device(&mut self, id: &str) -> Result<(), RequestError> {
        self.device(id)?;
        self.keep_devices(|other| other != id);
        Ok(())
    }

    /// Forgets the devices that `stays` says no to.
    pub fn keep_devices(&mut self, stays: impl Fn(&str) -> bool) {
        self.passthrough.retain(|device| stays(&device.id));
        let devices = &mut self.wire.device_passthrough;
        devices.retain(|device| stays(&device.id));
    }

    /// # Errors
    /// There is no such device.
    pub fn device(&self, id: &str) -> Result<&DevicePassthrough, RequestError> {
        let mut devices = self.wire.device_passthrough.iter();
        let device = devices.find(|device| device.id == id);
        device.ok_or_else(|| RequestError::NoDevice(id.chars().take(64).collect()))
    }

    /// What is behind the guest's memory: something that a process can share, if a device lives in one.
    ///
    /// # Errors
    /// It was to be something else.
    pub fn backing(&self) -> Result<MemoryBacking, RequestError> {
        let elsewhere = |device: &PassthroughConfig| !device.pins_memory();
        match &self.memory.backing {
            MemoryBacking::Anonymous { .. } if self.passthrough.iter().any(elsewhere) => {
                Ok(MemoryBacking::Memfd)
            }
            MemoryBacking::HugeTlb if self.passthrough.iter().any(elsewhere) => {
                Err(ConfigError::SharedHugePages.into())
            }
            backing => Ok(backing.clone()),
        }
    }
}

fn device_config(device: &DevicePassthrough) -> Result<PassthroughConfig, RequestError> {
    let source = match (&device.sbdf, &device.socket) {
        (Some(first), None) => Source::Host {
            functions: PassthroughConfig::functions(&device.id, *first, &device.companions)?,
            group: device.iommu_group,
        },
        (None, Some(socket))
            if device.companions.is_empty()
                && device.iommu_group.is_none()
                && !device.peer_access =>
        {
            Source::Process {
                socket: PathBuf::from(socket),
            }
        }
        (None, Some(_)) if device.peer_access => {
            return Err(RequestError::Unsupported(
                "peer_access is for functions of the host, whose IOMMU leads to each other's BARs; leave it out with a socket",
            ));
        }
        (None, Some(_)) => {
            return Err(RequestError::Unsupported(
                "companions and iommu_group are of a host's function (sbdf), not of a socket; leave them out",
            ));
        }
        _ => {
            return Err(RequestError::Unsupported(
                "give either sbdf, a function of the host, or socket, a process that the device lives in",
            ));
        }
    };
    let config = PassthroughConfig {
        id: device.id.clone(),
        source,
        peer_access: device.peer_access,
        allow_no_reset: device.allow_no_reset,
    };
    config.check()?;
    Ok(config)
}
