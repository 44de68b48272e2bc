//! The distribution's kernels: for clouds, and for everything.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::modules::Index;
use super::{
    BZIMAGE, CONFIG, ELF, Error, MODULES_IMAGE, MODULES_INDEX, RELEASE, apt, io, payload, write,
};
use crate::progress::{Progress, Unit};
use crate::store::{Properties, Work};
use crate::tool::Tool;
use crate::{erofs, space, tree};

const DEPMOD: Tool = Tool {
    program: "depmod",
    package: "kmod",
};

/// A kernel that the distribution has as a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packaged {
    /// Meta packages, the better one first: 6.12 is bookworm's newer line, from trixie on the plain name is as new.
    pub request: [&'static str; 2],
    /// Bytes that making it takes: package, its files, the ELF kernel and the modules image.
    space: u64,
}

/// Without drivers of hardware that no cloud has.
pub const CLOUD: Packaged = Packaged {
    request: ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"],
    space: 400 << 20,
};

/// With the drivers of graphics, sound, and all other hardware.
pub const FULL: Packaged = Packaged {
    request: ["linux-image-6.12-amd64", "linux-image-amd64"],
    space: 1200 << 20,
};

pub fn make(work: &Work, packaged: Packaged, progress: &dyn Progress) -> Result<Properties, Error> {
    space::require(&work.out, "the distribution's kernel", packaged.space)?;
    let meta = apt::first_known(&packaged.request, progress)?;
    let package = apt::dependency(&meta, "linux-image-")?;
    let deb = apt::download(&package, &work.scratch, progress)?;
    progress.begin(&format!("unpacking {}", package.name), Unit::Items, None);
    let files = work.scratch.join("files");
    apt::unpack(&deb, &files)?;
    progress.end();
    let (release, bzimage) =
        kernel_in(&files.join("boot")).ok_or_else(|| Error::NoKernel(package.name.clone()))?;
    let image = fs::read(&bzimage).map_err(io("reading", &bzimage))?;
    progress.begin(
        "taking the ELF kernel out of the bzImage",
        Unit::Bytes,
        None,
    );
    write(&work.out.join(ELF), &payload::extract(&image)?)?;
    write(&work.out.join(BZIMAGE), &image)?;
    progress.end();
    let config = files.join("boot").join(format!("config-{release}"));
    if config.is_file() {
        fs::copy(&config, work.out.join(CONFIG)).map_err(io("copying", &config))?;
    }
    pack_modules(work, &files, &release, progress)?;
    let property = |key: &str, value: String| (key.to_owned(), value);
    Ok([
        property(RELEASE, release),
        property("package", package.name),
        property("version", package.version),
    ]
    .into())
}

fn kernel_in(boot: &Path) -> Option<(String, PathBuf)> {
    fs::read_dir(boot).ok()?.flatten().find_map(|entry| {
        let release = entry
            .file_name()
            .to_str()?
            .strip_prefix("vmlinuz-")?
            .to_owned();
        Some((release, entry.path()))
    })
}

/// The whole module tree as one image, with depmod's tables, and an index into it.
fn pack_modules(
    work: &Work,
    files: &Path,
    release: &str,
    progress: &dyn Progress,
) -> Result<(), Error> {
    progress.begin("packing the modules", Unit::Bytes, None);
    let base = work.scratch.join("base");
    let parent = base.join("lib/modules");
    fs::create_dir_all(&parent).map_err(io("making the directory", &parent))?;
    let packed = ["lib/modules", "usr/lib/modules"].map(|dir| files.join(dir).join(release));
    let found = packed
        .iter()
        .find(|dir| dir.is_dir())
        .ok_or_else(|| Error::NoKernel(release.to_owned()))?;
    fs::rename(found, parent.join(release)).map_err(io("moving", found))?;
    DEPMOD.output(["-b".as_ref(), base.as_os_str(), release.as_ref()])?;
    let (mut tree, _) = tree::directory::read(&parent)?;
    tree.own_by_root();
    tree.clamp_times();
    let path = work.out.join(MODULES_IMAGE);
    let image = File::create(&path).map_err(io("writing", &path))?;
    let extents = erofs::write(&tree, image, &|done| progress.done(done))?;
    let places: HashMap<usize, (u64, u64)> = extents
        .iter()
        .map(|e| (e.node, (e.offset, e.size)))
        .collect();
    let text = |name: &str| {
        let path = parent.join(release).join(name);
        fs::read_to_string(&path).map_err(io("reading", &path))
    };
    let place = |path: &str| {
        places
            .get(&tree.index(&format!("{release}/{path}"))?)
            .copied()
    };
    let index = Index::parse(&text("modules.dep")?, &text("modules.builtin")?, place)?;
    write(
        &work.out.join(MODULES_INDEX),
        &serde_json::to_vec(&index).map_err(Error::Index)?,
    )?;
    progress.end();
    Ok(())
}
