//! Drives that come, change and go.

use std::path::PathBuf;

use fief_api::{CacheType, Drive, IoEngine, PartialDrive, RateLimiter};

use super::Draft;
use crate::config::{ConfigError, DriveConfig, MAX_DRIVES, insert_drive};
use crate::server::error::RequestError;
use crate::server::limits::limits;

impl Draft {
    /// Adds a drive, or replaces the one with its id, before the start.
    pub fn put_drive(&mut self, drive: Drive) -> Result<(), RequestError> {
        let config = self.drive_config(&drive)?;
        self.remember_drive(drive, config)
    }

    /// Checks a drive that is to be added to the running machine.
    ///
    /// # Errors
    /// There is one with its id, it wants to be the root device, or it could not be configured either.
    pub fn check_new_drive(&self, drive: &Drive) -> Result<DriveConfig, RequestError> {
        if self.drives.iter().any(|other| other.id == drive.drive_id) {
            return Err(RequestError::DriveExists(drive.drive_id.clone()));
        }
        if drive.is_root_device {
            return Err(RequestError::Unsupported(
                "the machine runs already, so no drive can become its root device; set is_root_device to false",
            ));
        }
        let config = self.drive_config(drive)?;
        if self.drives.len() >= MAX_DRIVES {
            return Err(ConfigError::TooManyDrives.into());
        }
        config.check_queues(self.cpus.count())?;
        Ok(config)
    }

    /// A drive was added.
    pub fn remember_drive(
        &mut self,
        drive: Drive,
        config: DriveConfig,
    ) -> Result<(), RequestError> {
        insert_drive(&mut self.drives, config)?;
        // The drives of `wire` stay in the order of the machine's.
        (self.wire.drives).retain(|other| other.drive_id != drive.drive_id);
        self.wire.drives.push(drive);
        let place = |id: &str| self.drives.iter().position(|drive| drive.id == id);
        self.wire.drives.sort_by_key(|drive| place(&drive.drive_id));
        Ok(())
    }

    /// Removes a drive before the start.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_drive(&mut self, id: &str) -> Result<(), RequestError> {
        self.drive(id)?;
        self.keep_drives(|other| other != id);
        Ok(())
    }

    /// Forgets the drives that `stays` says no to.
    pub fn keep_drives(&mut self, stays: impl Fn(&str) -> bool) {
        self.drives.retain(|drive| stays(&drive.id));
        self.wire.drives.retain(|drive| stays(&drive.drive_id));
    }

    /// What a drive's limits become with `update`.
    ///
    /// # Errors
    /// The update says nothing, or there is no such drive.
    pub fn check_update(&self, update: &PartialDrive) -> Result<Option<RateLimiter>, RequestError> {
        if update.path_on_host.is_none() && update.rate_limiter.is_none() {
            return Err(RequestError::EmptyUpdate);
        }
        let before = self.drive(&update.drive_id)?.rate_limiter;
        Ok((update.rate_limiter).map(|update| before.unwrap_or_default().updated(update)))
    }

    /// A drive was changed.
    pub fn change_drive(&mut self, id: &str, change: impl FnOnce(&mut Drive)) {
        let drives = &mut self.wire.drives;
        if let Some(drive) = drives.iter_mut().find(|drive| drive.drive_id == id) {
            change(drive);
        }
    }

    /// # Errors
    /// There is no such drive.
    pub fn drive(&self, id: &str) -> Result<&Drive, RequestError> {
        let drive = (self.wire.drives.iter()).find(|drive| drive.drive_id == id);
        drive.ok_or_else(|| RequestError::NoDrive(id.chars().take(64).collect()))
    }

    fn drive_config(&self, drive: &Drive) -> Result<DriveConfig, RequestError> {
        if drive.socket.is_some() {
            return Err(RequestError::Unsupported(
                "vhost-user drives (socket) are not supported; give a path_on_host",
            ));
        }
        let Some(path) = &drive.path_on_host else {
            return Err(RequestError::NoDrivePath(drive.drive_id.clone()));
        };
        let config = DriveConfig {
            id: drive.drive_id.clone(),
            path: PathBuf::from(path),
            read_only: drive.is_read_only,
            root_device: drive.is_root_device,
            // Firecracker looks at it for the root device only.
            partuuid: drive.partuuid.clone().filter(|_| drive.is_root_device),
            writeback: drive.cache_type == CacheType::Writeback,
            io_uring: drive.io_engine == IoEngine::Async,
            direct: drive.direct_io,
            queues: DriveConfig::queues(&drive.drive_id, drive.num_queues)?,
            limits: limits(drive.rate_limiter),
        };
        config.check()?;
        self.check_disk(&config)?;
        Ok(config)
    }
}
