//! The one way in: everything the crate makes, in one store.

use std::path::Path;

use crate::initramfs::{self, Initramfs, InitramfsSpec};
use crate::kernel::{self, Kernel, KernelKind};
use crate::progress::Progress;
use crate::rootfs::{self, RootImage};
use crate::store::{self, ArtifactId, Damage, ExportFile, Kind, Store};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel `{0}` is not made yet: `fief setup --kernel {0}` does it")]
    NoKernel(KernelKind),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Rootfs(#[from] rootfs::Error),
    #[error(transparent)]
    Initramfs(#[from] initramfs::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// One line of a listing.
#[derive(Debug)]
pub struct Listed {
    pub kind: Kind,
    pub name: String,
    /// `None` when something is wrong with it; `problem` says what.
    pub artifact: Option<ArtifactId>,
    /// Bytes of all files.
    pub size: u64,
    /// Such as `release`, `version`, `format`, `init`.
    pub properties: store::Properties,
    pub problem: Option<String>,
}

/// Kernels, root images and initramfs images in one store. Cheap to clone; several processes may use one store.
#[derive(Debug, Clone)]
pub struct Images {
    store: Store,
}

impl Images {
    /// Opens (and makes, if need be) the store below `dir`.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self {
            store: Store::open(dir)?,
        })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The kernel as it is; an error if it was never made or is damaged.
    pub fn kernel(&self, kind: KernelKind) -> Result<Kernel, Error> {
        kernel::find(&self.store, kind)?.ok_or(Error::NoKernel(kind))
    }

    /// The root image as it is; an error if there is none of that name (it lists those there are) or it is damaged.
    pub fn rootfs(&self, name: &str) -> Result<RootImage, Error> {
        Ok(rootfs::get(&self.store, name)?)
    }

    /// The root image of that artifact, also if its name `name` means another one by now or is gone; `None` if its files
    /// are gone.
    pub fn rootfs_artifact(&self, name: &str, id: &ArtifactId) -> Result<Option<RootImage>, Error> {
        Ok(rootfs::find_artifact(&self.store, name, id)?)
    }

    /// The kernel; made if it is missing, damaged, or its recipe changed.
    pub fn ensure_kernel(
        &self,
        kind: KernelKind,
        progress: &dyn Progress,
    ) -> Result<Kernel, Error> {
        Ok(kernel::ensure(&self.store, kind, progress)?)
    }

    /// The root image; made if it is one of fief's own and missing, damaged, or its recipe changed.
    pub fn ensure_rootfs(&self, name: &str, progress: &dyn Progress) -> Result<RootImage, Error> {
        Ok(rootfs::ensure(&self.store, name, progress)?)
    }

    /// The initramfs for this kernel, agent and list; made if there is none.
    pub fn ensure_initramfs(
        &self,
        spec: &InitramfsSpec,
        progress: &dyn Progress,
    ) -> Result<Initramfs, Error> {
        Ok(initramfs::ensure(&self.store, spec, progress)?)
    }

    /// Takes a directory, a tar (also .gz, .xz, .zst) or an image file as the root image `name`, replacing one of that name.
    pub fn import_rootfs(
        &self,
        name: &str,
        source: &Path,
        progress: &dyn Progress,
    ) -> Result<RootImage, Error> {
        Ok(rootfs::import(&self.store, name, source, progress)?)
    }

    /// Everything that has a name.
    pub fn list(&self) -> Result<Vec<Listed>, Error> {
        let mut listed = Vec::new();
        for kind in Kind::ALL {
            for (name, artifact) in self.store.names(kind)? {
                listed.push(match artifact {
                    Ok(artifact) => Listed {
                        kind,
                        name,
                        artifact: Some(artifact.id().clone()),
                        size: artifact.size(),
                        properties: artifact.properties().clone(),
                        problem: None,
                    },
                    Err(error) => Listed {
                        kind,
                        name,
                        artifact: None,
                        size: 0,
                        properties: Default::default(),
                        problem: Some(error.to_string()),
                    },
                });
            }
        }
        Ok(listed)
    }

    /// Forgets a name, and removes all files that no name has and that belong to none of `kept`. What has them open keeps
    /// them.
    pub fn remove(&self, kind: Kind, name: &str, kept: &[ArtifactId]) -> Result<(), Error> {
        Ok(self.store.remove(kind, name, kept)?)
    }

    /// Reads everything in full; what is not as it was made.
    pub fn verify(&self, progress: &dyn Progress) -> Result<Vec<Damage>, Error> {
        Ok(self.store.verify(progress)?)
    }

    /// The files another store needs to have these names, in the order to copy them; see [`Images::accept`].
    pub fn export(&self, names: &[(Kind, &str)]) -> Result<Vec<ExportFile>, Error> {
        Ok(self.store.export(names)?)
    }

    /// Verifies what was copied into this store's directory from an export, before its first use.
    pub fn accept(&self, names: &[(Kind, &str)], progress: &dyn Progress) -> Result<(), Error> {
        Ok(self.store.accept(names, progress)?)
    }

    /// Copies these names from another store on this machine, verified; nothing to do if they are here already.
    pub fn copy_from(
        &self,
        other: &Images,
        names: &[(Kind, &str)],
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        for &(kind, name) in names {
            self.store.import(&other.store, kind, name, progress)?;
        }
        Ok(())
    }
}
