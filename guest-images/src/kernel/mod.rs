//! Kernels: the distribution's, and ours built from the distribution's source.

pub mod apt;
mod build;
pub mod modules;
mod packaged;
pub mod payload;

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(io("writing", path))
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Error + use<'a> {
    move |source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::progress::Progress;
use crate::store::{self, Artifact, ArtifactId, Kind, RECIPE_VERSION, Store, hash_bytes};
use crate::{erofs, space, tool, tree};

/// Files of a kernel's artifact.
const BZIMAGE: &str = "vmlinuz";
const ELF: &str = "vmlinux";
const CONFIG: &str = "config";
const MODULES_IMAGE: &str = "modules.erofs";
const MODULES_INDEX: &str = "modules.json";
/// Property: as in `uname -r`.
const RELEASE: &str = "release";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no kernel `{0}`: choose one of debian, debian-full, tuned, micro")]
    UnknownKind(String),
    #[error("building a kernel needs these packages: run `apt-get install {0}`")]
    Toolchain(String),
    #[error("the package {0} holds no kernel where one is expected")]
    NoKernel(String),
    #[error("the kernel's source has no `{0}`")]
    Source(&'static str),
    #[error("{what} {} failed", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the kernel's artifact lacks {0}; `fief setup` makes it again")]
    Incomplete(&'static str),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Apt(#[from] apt::Error),
    #[error(transparent)]
    Tool(#[from] tool::Error),
    #[error(transparent)]
    Space(#[from] space::Error),
    #[error("taking the ELF kernel out of the bzImage failed")]
    Payload(#[from] payload::Error),
    #[error(transparent)]
    Modules(#[from] modules::Error),
    #[error("packing the modules failed")]
    Tree(#[from] tree::Error),
    #[error("packing the modules failed")]
    Erofs(#[from] erofs::Error),
    #[error("the index of the kernel's modules is damaged; `fief setup` makes it again")]
    Index(#[source] serde_json::Error),
}

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KernelKind {
    /// The distribution's cloud kernel, with modules. The default for tenants and the emulated host.
    Debian,
    /// The distribution's kernel with drivers of all hardware: for tenants with a GPU.
    DebianFull,
    /// Our own configuration for tenants, everything built in, from the distribution's kernel source.
    Tuned,
    /// As small as boots: for measuring boot and for quick tests.
    Micro,
}

impl KernelKind {
    pub const ALL: [Self; 4] = [Self::Debian, Self::DebianFull, Self::Tuned, Self::Micro];

    pub fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::DebianFull => "debian-full",
            Self::Tuned => "tuned",
            Self::Micro => "micro",
        }
    }
}

impl std::fmt::Display for KernelKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KernelKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| Error::UnknownKind(text.to_owned()))
    }
}

/// A kernel in the store.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub kind: KernelKind,
    pub artifact: ArtifactId,
    /// As in `uname -r`.
    pub release: String,
    pub bzimage: PathBuf,
    /// The uncompressed ELF inside `bzimage`: 64-bit and PVH entry.
    pub elf: PathBuf,
    /// A read-only erofs image whose root directory holds `<release>/`: to be mounted on `/lib/modules`. `None` for a
    /// kernel without modules.
    pub modules_image: Option<PathBuf>,
    index: Option<PathBuf>,
}

impl Kernel {
    fn open(kind: KernelKind, artifact: &Artifact) -> Result<Self, Error> {
        Ok(Self {
            kind,
            artifact: artifact.id().clone(),
            release: artifact
                .property(RELEASE)
                .ok_or(Error::Incomplete("its release"))?
                .to_owned(),
            bzimage: artifact
                .path(BZIMAGE)
                .ok_or(Error::Incomplete("the bzImage"))?,
            elf: artifact
                .path(ELF)
                .ok_or(Error::Incomplete("the ELF kernel"))?,
            modules_image: artifact.path(MODULES_IMAGE),
            index: artifact.path(MODULES_INDEX),
        })
    }

    /// Its modules; of a kernel without any, an index in which everything counts as built in.
    pub fn modules(&self) -> Result<modules::Index, Error> {
        let Some(path) = &self.index else {
            return Ok(modules::Index {
                monolithic: true,
                ..Default::default()
            });
        };
        let text = fs::read(path).map_err(io("reading", path))?;
        serde_json::from_slice(&text).map_err(Error::Index)
    }
}

/// The kernel if it is there.
pub fn find(store: &Store, kind: KernelKind) -> Result<Option<Kernel>, Error> {
    store
        .find(Kind::Kernel, kind.name())?
        .map(|artifact| Kernel::open(kind, &artifact))
        .transpose()
}

/// The kernel, made if need be.
pub fn ensure(store: &Store, kind: KernelKind, progress: &dyn Progress) -> Result<Kernel, Error> {
    let request = match kind {
        KernelKind::Debian => packaged::CLOUD.request.join(" "),
        KernelKind::DebianFull => packaged::FULL.request.join(" "),
        KernelKind::Tuned | KernelKind::Micro => build::request(kind),
    };
    let request = hash_bytes(format!("{RECIPE_VERSION} {kind} {request}").as_bytes());
    let artifact = store.ensure(
        Kind::Kernel,
        kind.name(),
        &request,
        progress,
        |work| match kind {
            KernelKind::Debian => packaged::make(work, packaged::CLOUD, progress),
            KernelKind::DebianFull => packaged::make(work, packaged::FULL, progress),
            KernelKind::Tuned | KernelKind::Micro => build::make(work, kind, progress),
        },
    )?;
    Kernel::open(kind, &artifact)
}
