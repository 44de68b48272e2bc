//! The initramfs: the agent as init and the modules it loads.
//!
//! Uncompressed: the kernel unpacks it once, at boot, and under emulation decompressing costs more than copying.

mod cpio;

#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::kernel::{self, Kernel, modules};
use crate::progress::{Progress, Unit};
use crate::rootfs;
use crate::store::{
    self, Artifact, ArtifactId, Kind, Properties, RECIPE_VERSION, Store, Work, hash_bytes,
};
use crate::tree::{self, Tree};

const ARCHIVE: &str = "initramfs.cpio";
/// Where the agent finds what to load.
pub const MODULES_LOAD: &str = "/etc/fief/modules.load";
/// Where the agent finds what to load once it serves.
pub const MODULES_LATER: &str = "/etc/fief/modules.later";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the agent's binary {} cannot be read", path.display())]
    Agent {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("writing {} failed", path.display())]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the initramfs' artifact lacks its archive; `fief setup` makes it again")]
    Incomplete,
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Modules(#[from] modules::Error),
    #[error(transparent)]
    Busybox(#[from] Box<rootfs::Error>),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// What goes into an initramfs.
#[derive(Debug, Clone)]
pub struct InitramfsSpec {
    pub kernel: Kernel,
    /// A static binary, becomes `/init`.
    pub agent: PathBuf,
    /// Modules to load at boot, without their dependencies (added) and whether built in or not (left out if so).
    /// `modules::TENANT` and `modules::HOST` are lists that work.
    pub modules: Vec<String>,
    /// More of them, to load when the agent serves already.
    pub later: Vec<String>,
    /// Put this machine's busybox at /bin/busybox, with a link `sh`: for tests that have no root image.
    pub busybox: bool,
}

/// An initramfs in the store: an uncompressed cpio archive. In it: `/init`, `/dev/console`, `/dev/null`, empty
/// mount points, modules below `/lib/modules/<release>/`, and [`MODULES_LOAD`] and [`MODULES_LATER`]: their absolute paths
/// in load order, one a line. A module may fail to load (the KVM of another maker): its loader goes on.
#[derive(Debug, Clone)]
pub struct Initramfs {
    pub artifact: ArtifactId,
    /// Its name in the store, for copying it elsewhere.
    pub name: String,
    pub path: PathBuf,
}

/// The initramfs, made if need be.
pub fn ensure(
    store: &Store,
    spec: &InitramfsSpec,
    progress: &dyn Progress,
) -> Result<Initramfs, Error> {
    let agent = fs::read(&spec.agent).map_err(|source| Error::Agent {
        path: spec.agent.clone(),
        source,
    })?;
    let busybox = if spec.busybox {
        Some(rootfs::static_busybox().map_err(Box::new)?)
    } else {
        None
    };
    let request = hash_bytes(
        format!(
            "{RECIPE_VERSION} {} {} {:?} {:?} {:?}",
            spec.kernel.artifact,
            hash_bytes(&agent),
            spec.modules,
            spec.later,
            busybox.as_deref().map(hash_bytes),
        )
        .as_bytes(),
    );
    // Every agent and list has a name of its own: two callers with different ones do not take turns in making theirs.
    let name = format!("{}-{}", spec.kernel.kind, &request[..16]);
    let artifact = store.ensure(Kind::Initramfs, &name, &request, progress, |work| {
        make(work, spec, &agent, busybox.as_deref(), progress)
    })?;
    open(name, &artifact)
}

fn open(name: String, artifact: &Artifact) -> Result<Initramfs, Error> {
    let path = artifact.path(ARCHIVE).ok_or(Error::Incomplete)?;
    Ok(Initramfs {
        artifact: artifact.id().clone(),
        name,
        path,
    })
}

fn make(
    work: &Work,
    spec: &InitramfsSpec,
    agent: &[u8],
    busybox: Option<&[u8]>,
    progress: &dyn Progress,
) -> Result<Properties, Error> {
    progress.begin("writing the initramfs", Unit::Items, None);
    let mut tree = skeleton(agent)?;
    if let Some(busybox) = busybox {
        tree.file("bin/busybox", 0o755, busybox)?;
        tree.symlink("bin/sh", "busybox")?;
    }
    add_modules(&mut tree, spec)?;
    let path = work.out.join(ARCHIVE);
    write(&tree, &path).map_err(|source| Error::Write { path, source })?;
    progress.end();
    Ok([("kernel".to_owned(), spec.kernel.release.clone())].into())
}

fn skeleton(agent: &[u8]) -> Result<Tree, tree::Error> {
    let mut tree = Tree::default();
    tree.file("init", 0o755, agent)?;
    for directory in ["proc", "sys", "dev", "run", "tmp", "mnt", "bin", "root"] {
        tree.directory(directory, 0o755)?;
    }
    // The kernel opens /dev/console for init before anything is mounted (5:1, Documentation/admin-guide/devices.txt).
    tree.character("dev/console", 0o600, 5, 1)?;
    tree.character("dev/null", 0o666, 1, 3)?;
    Ok(tree)
}

fn add_modules(tree: &mut Tree, spec: &InitramfsSpec) -> Result<(), Error> {
    let index = spec.kernel.modules()?;
    let all = index.load_order(&[spec.modules.as_slice(), &spec.later].concat())?;
    // The order begins with what the first list alone would give.
    let first = index.load_order(&spec.modules)?.len();
    let (mut load, mut later) = (String::new(), String::new());
    for (number, module) in all.into_iter().enumerate() {
        let image = spec
            .kernel
            .modules_image
            .as_deref()
            .unwrap_or(Path::new(""));
        let path = format!(
            "/lib/modules/{}/{}",
            spec.kernel.release,
            modules::uncompressed_path(&module.path)
        );
        tree.file(&path, 0o644, modules::read(image, module)?)?;
        let list = if number < first {
            &mut load
        } else {
            &mut later
        };
        list.push_str(&path);
        list.push('\n');
    }
    tree.file(MODULES_LOAD, 0o644, load.into_bytes())?;
    tree.file(MODULES_LATER, 0o644, later.into_bytes())?;
    Ok(())
}

fn write(tree: &Tree, path: &Path) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    cpio::write(tree, &mut out)?;
    std::io::Write::flush(&mut out)
}
