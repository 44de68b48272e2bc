//! Read-only root file systems.

mod busybox;
mod debian;
pub mod format;
mod import;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::kernel::apt;
use crate::progress::{Progress, Unit};
use crate::store::{
    self, Artifact, ArtifactId, Kind, Properties, RECIPE_VERSION, Store, Work, hash_bytes,
};
use crate::tree::tarball::Skipped;
use crate::tree::{self, Tree};
use crate::{erofs, space, tool};
use format::ImageFormat;

/// The image's file in its artifact.
const IMAGE: &str = "root.img";
/// Properties.
const FORMAT: &str = "format";
const INIT: &str = "init";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "there is no image `{name}`; there are {known}; `fief setup --image NAME` makes {makeable}, `fief images import NAME PATH` takes a directory, a tar or an image file"
    )]
    Unknown {
        name: String,
        known: String,
        makeable: String,
    },
    #[error("the name `{0}` is that of an image fief makes itself: choose another")]
    Reserved(String),
    #[error("{} holds no files", path.display())]
    Empty { path: PathBuf },
    #[error("{what} {} failed", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the busybox of this machine, {}, is not static: run `apt-get install busybox-static`", path.display())]
    DynamicBusybox { path: PathBuf },
    #[error(
        "this machine's apt has no source of its own release {0}: add one, a Debian image is made from it"
    )]
    NoSources(String),
    #[error(
        "/etc/os-release does not name a release: a Debian image is made from the sources of the running one"
    )]
    NoRelease,
    #[error("the image's artifact lacks {0}; `fief setup` makes it again")]
    Incomplete(&'static str),
    #[error(transparent)]
    Format(#[from] format::Error),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error(transparent)]
    Erofs(#[from] erofs::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Tool(#[from] tool::Error),
    #[error(transparent)]
    Space(#[from] space::Error),
    #[error(transparent)]
    Apt(#[from] apt::Error),
}

/// A read-only root file system in the store.
#[derive(Debug, Clone)]
pub struct RootImage {
    pub name: String,
    pub artifact: ArtifactId,
    pub path: PathBuf,
    pub format: ImageFormat,
    /// Bytes of the image file.
    pub size: u64,
    /// The image's own init, if it has one that can be PID 1 (spec `init: image`).
    pub init: Option<String>,
}

/// An image that fief makes itself.
#[derive(Debug, Clone, Copy)]
struct Recipe {
    name: &'static str,
    /// What decides the result and is known beforehand.
    request: fn() -> String,
    make: fn(&Work, &dyn Progress) -> Result<Properties, Error>,
}

const RECIPES: [Recipe; 4] = [
    Recipe {
        name: "debian",
        request: debian::tenant_request,
        make: debian::make_tenant,
    },
    Recipe {
        name: "busybox",
        request: busybox::request,
        make: busybox::make,
    },
    Recipe {
        name: "bench",
        request: debian::bench_request,
        make: debian::make_bench,
    },
    Recipe {
        name: "host",
        request: debian::host_request,
        make: debian::make_host,
    },
];

/// Names of the images that fief makes itself.
pub fn recipes() -> impl Iterator<Item = &'static str> {
    RECIPES.iter().map(|recipe| recipe.name)
}

impl RootImage {
    fn open(name: &str, artifact: &Artifact) -> Result<Self, Error> {
        let path = artifact
            .path(IMAGE)
            .ok_or(Error::Incomplete("the image file"))?;
        let format = match artifact.property(FORMAT) {
            Some("erofs") => ImageFormat::Erofs,
            Some("ext4") => ImageFormat::Ext4,
            _ => return Err(Error::Incomplete("its format")),
        };
        let size = artifact.files().iter().map(|file| file.size).sum();
        let init = artifact.property(INIT).map(str::to_owned);
        Ok(Self {
            name: name.to_owned(),
            artifact: artifact.id().clone(),
            path,
            format,
            size,
            init,
        })
    }
}

/// The image if it is there.
pub fn find(store: &Store, name: &str) -> Result<Option<RootImage>, Error> {
    store
        .find(Kind::Rootfs, name)?
        .map(|artifact| RootImage::open(name, &artifact))
        .transpose()
}

/// The image of that artifact, whose name is or was `name`; `None` if the artifact is gone.
pub fn find_artifact(
    store: &Store,
    name: &str,
    id: &ArtifactId,
) -> Result<Option<RootImage>, Error> {
    store
        .artifact(id)?
        .map(|artifact| RootImage::open(name, &artifact))
        .transpose()
}

/// The image; an error that lists the known ones if there is none of that name.
pub fn get(store: &Store, name: &str) -> Result<RootImage, Error> {
    match find(store, name)? {
        Some(image) => Ok(image),
        None => Err(unknown(store, name)?),
    }
}

/// The image, made if need be; one that fief does not make itself must be there.
pub fn ensure(store: &Store, name: &str, progress: &dyn Progress) -> Result<RootImage, Error> {
    let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name == name) else {
        return get(store, name);
    };
    let request = hash_bytes(format!("{RECIPE_VERSION} {name} {}", (recipe.request)()).as_bytes());
    let artifact = store.ensure(Kind::Rootfs, name, &request, progress, |work| {
        (recipe.make)(work, progress)
    })?;
    RootImage::open(name, &artifact)
}

/// Takes an image from elsewhere: a directory, a tar (plain, .gz, .xz, .zst), or a file with an erofs or ext4 in it.
pub fn import(
    store: &Store,
    name: &str,
    source: &Path,
    progress: &dyn Progress,
) -> Result<RootImage, Error> {
    store::check_name(name)?;
    if recipes().any(|recipe| recipe == name) {
        return Err(Error::Reserved(name.to_owned()));
    }
    let request = import::request(source)?;
    let artifact = store.ensure(Kind::Rootfs, name, &request, progress, |work| {
        import::make(work, source, progress)
    })?;
    RootImage::open(name, &artifact)
}

fn unknown(store: &Store, name: &str) -> Result<Error, Error> {
    let known: Vec<String> = store
        .names(Kind::Rootfs)?
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    let known = if known.is_empty() {
        "none yet".to_owned()
    } else {
        known.join(", ")
    };
    let makeable = recipes().collect::<Vec<_>>().join(", ");
    Ok(Error::Unknown {
        name: name.to_owned(),
        known,
        makeable,
    })
}

/// Writes the tree as the artifact's image and says what it is.
fn pack(
    work: &Work,
    tree: &mut Tree,
    skipped: Skipped,
    progress: &dyn Progress,
) -> Result<Properties, Error> {
    tree.clamp_times();
    let estimate = erofs::estimate(tree);
    space::require(&work.out, "the image", estimate)?;
    progress.begin("writing the image", Unit::Bytes, Some(estimate));
    let path = work.out.join(IMAGE);
    let file = File::create(&path).map_err(|source| Error::Io {
        what: "writing",
        path,
        source,
    })?;
    erofs::write(tree, file, &|done| progress.done(done))?;
    progress.end();
    let mut properties =
        Properties::from([(FORMAT.to_owned(), ImageFormat::Erofs.name().to_owned())]);
    if let Some(init) = init_of(tree) {
        properties.insert(INIT.to_owned(), init.to_owned());
    }
    for (key, number) in [
        ("skipped_devices", skipped.devices),
        ("skipped_xattrs", skipped.xattrs),
    ] {
        if number > 0 {
            properties.insert(key.to_owned(), number.to_string());
        }
    }
    Ok(properties)
}

/// Where the image's own init is, if it has one: through the link that Debian's merged /usr makes of /sbin.
fn init_of(tree: &Tree) -> Option<&'static str> {
    let candidates = [
        "usr/sbin/init",
        "sbin/init",
        "usr/lib/systemd/systemd",
        "lib/systemd/systemd",
    ];
    // busybox's `init` applet is no init that a tenant asked for: it is there by default.
    let real = |path: &&str| {
        tree.find(path).is_some_and(|node| match &node.content {
            tree::Content::File(_) => true,
            tree::Content::Symlink(target) => !target.ends_with(b"busybox"),
            _ => false,
        })
    };
    let found = candidates.into_iter().find(real)?;
    Some(match found {
        "usr/sbin/init" => "/usr/sbin/init",
        "sbin/init" => "/sbin/init",
        "usr/lib/systemd/systemd" => "/usr/lib/systemd/systemd",
        _ => "/lib/systemd/systemd",
    })
}

/// The bytes of this machine's busybox, which must be static.
pub fn static_busybox() -> Result<Vec<u8>, Error> {
    busybox::static_busybox().map(|(_, bytes)| bytes)
}

/// Directories that something is mounted on: an image that lacks one could not boot read-only.
fn add_mount_points(tree: &mut Tree) -> Result<(), tree::Error> {
    for (path, mode) in [
        ("proc", 0o555),
        ("sys", 0o555),
        ("dev", 0o755),
        ("run", 0o755),
        ("tmp", 0o1777),
    ] {
        if tree.find(path).is_none() {
            tree.directory(path, mode)?;
        }
    }
    Ok(())
}
