//! Who has which PCI device of the host, and who had it last.
//!
//! A device belongs to the tenant whose spec names it, and to no other. What its last user left in a device that cannot be
//! reset is there until the host restarts; so it is written down, in a place that is gone then too, who that was.

use std::path::{Path, PathBuf};

use fief_api::PciAddress;
use serde::{Deserialize, Serialize};

use crate::spec::Device;
use crate::store::{
    FileError, Held, MACHINE, Store, StoreError, Tenant, read_json, remove, write_json,
};

/// Lock of the machine, held while devices are given away.
const LOCK: &str = "devices.lock";

/// Why a tenant cannot have a device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "{address} belongs to tenant '{owner}'; take it from there with `fief gpu detach {owner} {address}`, or remove that \
         tenant"
    )]
    Taken { address: PciAddress, owner: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// The last user of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    /// The state directory of the tenant.
    store: PathBuf,
    /// None: it was removed.
    tenant: Option<String>,
}

/// Who used functions last.
pub struct Users(Vec<(PciAddress, Option<User>)>);

/// Gives devices to tenants; nobody else does as long as this is there.
pub struct Registry {
    _lock: Held,
    directory: PathBuf,
}

impl Registry {
    /// Waits until nobody else gives devices away.
    ///
    /// # Errors
    /// No permission.
    pub fn open() -> Result<Self, DeviceError> {
        let lock = Held::take_machines(LOCK)?;
        Ok(Self::new(lock, Path::new(MACHINE).join("devices")))
    }

    /// What is written down is in `directory`, which need not be there.
    fn new(lock: Held, directory: PathBuf) -> Self {
        Self {
            _lock: lock,
            directory,
        }
    }

    /// Checks that no tenant but `name` has a function of `devices`.
    ///
    /// # Errors
    /// Another one has.
    pub fn check(&self, store: &Store, name: &str, devices: &[Device]) -> Result<(), DeviceError> {
        if devices.is_empty() {
            return Ok(());
        }
        for tenant in store.tenants()? {
            // One whose spec cannot be read cannot be started either.
            let Ok(spec) = tenant.spec() else { continue };
            let others = spec.devices.iter().flat_map(Device::functions);
            for address in others.filter(|_| tenant.name.as_str() != name) {
                if devices
                    .iter()
                    .any(|device| device.functions().any(|f| f == address))
                {
                    return Err(DeviceError::Taken {
                        address,
                        owner: tenant.name.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Whether somebody else than `tenant` used `device` last, since the host's start.
    ///
    /// # Errors
    /// What was written down cannot be read.
    pub fn was_anothers(&self, tenant: &Tenant, device: &Device) -> Result<bool, DeviceError> {
        let user = User::of(tenant);
        let mut from_another = false;
        for address in device.functions() {
            let path = self.path(address);
            let last: Option<User> = read_json(&path)?;
            from_another |= last.is_some_and(|last| last != user);
        }
        Ok(from_another)
    }

    /// `tenant` has `device` now.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn used(&self, tenant: &Tenant, device: &Device) -> Result<(), DeviceError> {
        for address in device.functions() {
            self.write(address, &User::of(tenant))?;
        }
        Ok(())
    }

    /// Who used functions of `devices` last.
    ///
    /// # Errors
    /// What was written down cannot be read.
    pub fn users(&self, devices: &[Device]) -> Result<Users, DeviceError> {
        let functions = devices.iter().flat_map(Device::functions);
        let users = functions.map(|address| Ok((address, read_json(&self.path(address))?)));
        Ok(Users(users.collect::<Result<_, DeviceError>>()?))
    }

    /// The tenant that had them since did not get to use them.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn put_back(&self, users: &Users) -> Result<(), DeviceError> {
        for (address, user) in &users.0 {
            let path = self.path(*address);
            match user {
                Some(user) => self.write(*address, user)?,
                None => remove(&path)?,
            }
        }
        Ok(())
    }

    /// `tenant` is removed: another one of its name is somebody else.
    ///
    /// # Errors
    /// It cannot be written down.
    pub fn forget(&self, tenant: &Tenant) -> Result<(), DeviceError> {
        let user = User::of(tenant);
        // All of them: it may have had some that its spec no longer names.
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten();
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        for path in paths.filter(|path| path.extension().is_some_and(|end| end == "json")) {
            if read_json(&path)?.as_ref() == Some(&user) {
                let nobody = User {
                    tenant: None,
                    ..user.clone()
                };
                write_json(&path, &nobody)?;
            }
        }
        Ok(())
    }

    /// Whether a tenant ever had a device since the host's start.
    pub fn is_used() -> bool {
        Path::new(MACHINE).join("devices").exists()
    }

    fn write(&self, address: PciAddress, user: &User) -> Result<(), DeviceError> {
        std::fs::create_dir_all(&self.directory)
            .map_err(crate::store::failed("make", &self.directory))?;
        Ok(write_json(&self.path(address), user)?)
    }

    fn path(&self, address: PciAddress) -> PathBuf {
        self.directory.join(format!("{address}.json"))
    }
}

impl User {
    fn of(tenant: &Tenant) -> Self {
        Self {
            store: tenant
                .directory()
                .parent()
                .map(Path::to_owned)
                .unwrap_or_default(),
            tenant: Some(tenant.name.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;
    use crate::spec::tests::spec;

    struct Rig {
        directory: tempfile::TempDir,
        store: Store,
    }

    impl Rig {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::open(&directory.path().join("state")).unwrap();
            Self { directory, store }
        }

        fn registry(&self) -> Registry {
            let lock = Held::take(&self.directory.path().join("lock")).unwrap();
            Registry::new(lock, self.directory.path().join("devices"))
        }

        fn tenant(&self, name: &str, devices: &[Device]) -> Tenant {
            let spec = Spec {
                devices: devices.to_vec(),
                ..spec()
            };
            let name = name.parse().unwrap();
            let draft = self.store.draft(&name, &spec).unwrap();
            draft.publish().unwrap().let_go()
        }
    }

    fn device(address: &str, companions: &[&str]) -> Device {
        Device {
            address: address.parse().unwrap(),
            companions: companions.iter().map(|c| c.parse().unwrap()).collect(),
            allow_no_reset: false,
        }
    }

    #[test]
    fn a_function_belongs_to_one_tenant_also_as_a_companion() {
        let rig = Rig::new();
        rig.tenant("alice", &[device("01:00.0", &["01:00.1"])]);
        let registry = rig.registry();
        let check = |name, devices: &[Device]| registry.check(&rig.store, name, devices);
        check("alice", &[device("01:00.1", &[])]).unwrap();
        check("bob", &[device("02:00.0", &[])]).unwrap();
        for taken in [device("01:00.1", &[]), device("01:00.2", &["01:00.0"])] {
            let error = check("bob", &[taken]).unwrap_err().to_string();
            assert!(error.contains("belongs to tenant 'alice'"), "{error}");
        }
    }

    #[test]
    fn who_had_a_device_last_is_known_also_when_the_tenant_is_gone() {
        let rig = Rig::new();
        let pair = device("01:00.0", &["01:00.1"]);
        let (alice, bob) = (rig.tenant("alice", &[]), rig.tenant("bob", &[]));
        let registry = rig.registry();
        assert!(
            !registry.was_anothers(&alice, &pair).unwrap(),
            "nobody had it"
        );
        registry.used(&alice, &pair).unwrap();
        assert!(!registry.was_anothers(&alice, &pair).unwrap());
        assert!(
            registry
                .was_anothers(&bob, &device("01:00.1", &[]))
                .unwrap()
        );
        // Another tenant of the same name is somebody else.
        registry.forget(&bob).unwrap();
        assert!(
            !registry.was_anothers(&alice, &pair).unwrap(),
            "it was not bob's to forget"
        );
        registry.forget(&alice).unwrap();
        assert!(registry.was_anothers(&alice, &pair).unwrap());
        registry.used(&bob, &pair).unwrap();
        assert!(!registry.was_anothers(&bob, &pair).unwrap());
    }

    #[test]
    fn who_did_not_get_a_device_did_not_use_it() {
        let rig = Rig::new();
        let pair = device("01:00.0", &["01:00.1"]);
        let [first, second] = ["first", "second"].map(|name| rig.tenant(name, &[]));
        let registry = rig.registry();
        registry.used(&first, &device("01:00.0", &[])).unwrap();
        let before = registry.users(std::slice::from_ref(&pair)).unwrap();
        registry.used(&second, &pair).unwrap();
        registry.put_back(&before).unwrap();
        registry.put_back(&before).unwrap();
        assert!(!registry.was_anothers(&first, &pair).unwrap());
        let other = device("01:00.1", &[]);
        assert!(
            !registry.was_anothers(&second, &other).unwrap(),
            "nobody had it"
        );
    }
}
