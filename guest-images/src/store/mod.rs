//! The content-addressed store.
//!
//! ```text
//! artifacts/<id>/artifact.json   what it is: kind, properties, and path, size and SHA-256 of every file
//! artifacts/<id>/...             the files, read-only; <id> is the SHA-256 of artifact.json
//! refs/<kind>/<name>.json        which artifact has that name, and the digest of the request it was made for
//! locks/<kind>-<name>.lock       held (flock) by whoever makes that name
//! tmp/<kind>-<name>@<random>/    work in progress of the lock's holder; anybody else's to remove once the lock is free
//! ```
//!
//! Nothing under `artifacts` or `refs` is ever written in place: both appear by rename, after fsync.

mod artifact;
mod file;
mod transfer;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

pub use artifact::{Artifact, ArtifactId, Damage, FileEntry, Properties};
pub use file::{hash_bytes, hash_file};
pub use transfer::ExportFile;

use crate::progress::Progress;
use file::{create_dir, io, read, remove_any, sync_tree, write_atomic};

/// Part of every request: raise it when what this crate makes changes without its inputs changing.
pub const RECIPE_VERSION: u32 = 1;

/// Longest name of an artifact.
const NAME_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} {} failed", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{} is not a description this version understands; remove it and run `fief setup`", path.display())]
    Description {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("artifact {} is damaged: {what} in {}; `fief setup` makes it again", id.short(), path.display())]
    Damaged {
        id: ArtifactId,
        path: PathBuf,
        what: String,
    },
    #[error(
        "`{0}` cannot be a name: 1 to {NAME_MAX} of a-z, 0-9, `.`, `_`, `-` are allowed, beginning with a letter or digit"
    )]
    Name(String),
    #[error("there is no {kind} `{name}`")]
    Missing { kind: Kind, name: String },
    #[error("artifact {0} is not in the store")]
    NoArtifact(String),
}

/// What an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Kernel,
    Rootfs,
    Initramfs,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Kernel, Kind::Rootfs, Kind::Initramfs];

    fn directory(self) -> &'static str {
        match self {
            Kind::Kernel => "kernel",
            Kind::Rootfs => "rootfs",
            Kind::Initramfs => "initramfs",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Kernel => "kernel",
            Kind::Rootfs => "image",
            Kind::Initramfs => "initramfs",
        })
    }
}

/// How the locks' names begin.
const KEYS: [&str; 4] = ["kernel-", "rootfs-", "initramfs-", "store"];

/// `refs/<kind>/<name>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ref {
    /// Digest of everything the maker was asked for that can be known without making it.
    request: String,
    artifact: ArtifactId,
}

/// A name and its artifact, or why that cannot be used.
pub type Named = (String, Result<Artifact, Error>);

/// Where a maker works: what it leaves in `out` becomes the artifact, `scratch` is thrown away.
#[derive(Debug)]
pub struct Work {
    pub out: PathBuf,
    pub scratch: PathBuf,
}

/// A store below one directory. Several processes may use it at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store below `root`, makes it if need be, and removes what killed makers left.
    pub fn open(root: &Path) -> Result<Self, Error> {
        for dir in ["artifacts", "locks", "tmp"] {
            create_dir(&root.join(dir))?;
        }
        for kind in Kind::ALL {
            create_dir(&root.join("refs").join(kind.directory()))?;
        }
        let store = Self {
            root: root.to_owned(),
        };
        store.sweep()?;
        Ok(store)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The artifact of that name, its files' sizes checked; `None` if there is none.
    pub fn find(&self, kind: Kind, name: &str) -> Result<Option<Artifact>, Error> {
        self.find_ref(kind, name)?
            .map(|found| Artifact::open(self, &found.artifact))
            .transpose()
    }

    /// All names of a kind, in order, with their artifacts.
    pub fn names(&self, kind: Kind) -> Result<Vec<Named>, Error> {
        let dir = self.root.join("refs").join(kind.directory());
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io("reading", &dir))? {
            let entry = entry.map_err(io("reading", &dir))?;
            if let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.strip_suffix(".json"))
            {
                // Temporary files of a ref being replaced begin with a dot, which no name does.
                if check_name(name).is_ok() {
                    names.push(name.to_owned());
                }
            }
        }
        names.sort();
        // `None`: removed since the directory was read.
        let open = |name: String| {
            self.find(kind, &name)
                .transpose()
                .map(|artifact| (name, artifact))
        };
        Ok(names.into_iter().filter_map(open).collect())
    }

    /// The artifact `name`, as it is if it was made for the same `request`, else made by `make`.
    ///
    /// Of several callers one makes and the others wait and take its result. `make` returns the artifact's properties;
    /// every file in its `out` becomes part of the artifact.
    pub fn ensure<E: From<Error>>(
        &self,
        kind: Kind,
        name: &str,
        request: &str,
        progress: &dyn Progress,
        make: impl FnOnce(&Work) -> Result<Properties, E>,
    ) -> Result<Artifact, E> {
        check_name(name)?;
        if let Some(found) = self.usable(kind, name, request) {
            return Ok(found);
        }
        let key = format!("{}-{name}", kind.directory());
        let _lock = match self.try_lock(&key)? {
            Some(lock) => lock,
            None => {
                let title = format!("waiting for another process that makes {kind} {name}");
                progress.begin(&title, crate::progress::Unit::Items, None);
                let lock = self.lock(&key)?;
                progress.end();
                lock
            }
        };
        if let Some(found) = self.usable(kind, name, request) {
            return Ok(found);
        }
        self.clean_tmp(&key)?;
        let tmp = self.root.join("tmp");
        let work = tempfile::Builder::new()
            .prefix(&format!("{key}@"))
            .tempdir_in(&tmp)
            .map_err(|source| Error::Io {
                what: "making a directory in",
                path: tmp,
                source,
            })?;
        let places = Work {
            out: work.path().join("out"),
            scratch: work.path().join("scratch"),
        };
        create_dir(&places.out)?;
        create_dir(&places.scratch)?;
        let properties = make(&places)?;
        let id = artifact::seal(&places.out, kind, properties)?;
        let made = self.publish(kind, name, request, &id, &places.out)?;
        // The lock is still held: nobody else takes this directory for a dead maker's.
        remove_any(&work.keep())?;
        Ok(made)
    }

    /// The artifact, whatever name it has or had; `None` if there is none.
    pub fn artifact(&self, id: &ArtifactId) -> Result<Option<Artifact>, Error> {
        match Artifact::open(self, id) {
            Err(Error::NoArtifact(_)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Takes the name away, and then every artifact that no name has and that is none of `kept`.
    pub fn remove(&self, kind: Kind, name: &str, kept: &[ArtifactId]) -> Result<(), Error> {
        check_name(name)?;
        {
            let _store = self.lock("store")?;
            let path = self.ref_path(kind, name);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Err(Error::Missing {
                        kind,
                        name: name.to_owned(),
                    });
                }
                Err(source) => {
                    return Err(Error::Io {
                        what: "removing",
                        path,
                        source,
                    });
                }
            }
        }
        self.prune(kept)?;
        Ok(())
    }

    /// Removes artifacts that no name refers to and that are none of `kept`; their number.
    pub fn prune(&self, kept: &[ArtifactId]) -> Result<usize, Error> {
        let _store = self.lock("store")?;
        let mut used: std::collections::HashSet<String> =
            kept.iter().map(ArtifactId::to_string).collect();
        for kind in Kind::ALL {
            let dir = self.root.join("refs").join(kind.directory());
            for entry in fs::read_dir(&dir).map_err(io("reading", &dir))? {
                let path = entry.map_err(io("reading", &dir))?.path();
                // A ref that cannot be read keeps nothing: what it named is made again.
                if let Ok(found) = read_json::<Ref>(&path) {
                    used.insert(found.artifact.as_str().to_owned());
                }
            }
        }
        let dir = self.root.join("artifacts");
        let mut removed = 0;
        for entry in fs::read_dir(&dir).map_err(io("reading", &dir))? {
            let entry = entry.map_err(io("reading", &dir))?;
            if entry
                .file_name()
                .to_str()
                .is_none_or(|name| !used.contains(name))
            {
                self.discard(&entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Reads every named artifact in full and compares hashes.
    pub fn verify(&self, progress: &dyn Progress) -> Result<Vec<Damage>, Error> {
        let mut damage = Vec::new();
        for kind in Kind::ALL {
            for (name, artifact) in self.names(kind)? {
                progress.begin(
                    &format!("verifying {kind} {name}"),
                    crate::progress::Unit::Bytes,
                    None,
                );
                let checked =
                    artifact.and_then(|artifact| artifact.verify(&|done| progress.done(done)));
                progress.end();
                if let Err(error) = checked {
                    damage.push(Damage { kind, name, error });
                }
            }
        }
        Ok(damage)
    }

    fn usable(&self, kind: Kind, name: &str, request: &str) -> Option<Artifact> {
        // Whatever is wrong with what is there, making it again is the cure.
        let found = self.find_ref(kind, name).ok()??;
        if found.request != request {
            return None;
        }
        Artifact::open(self, &found.artifact).ok()
    }

    fn find_ref(&self, kind: Kind, name: &str) -> Result<Option<Ref>, Error> {
        check_name(name)?;
        match read_json(&self.ref_path(kind, name)) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Moves a sealed directory to its place and gives it its name.
    fn publish(
        &self,
        kind: Kind,
        name: &str,
        request: &str,
        id: &ArtifactId,
        out: &Path,
    ) -> Result<Artifact, Error> {
        sync_tree(out)?;
        // Between the rename and the ref a prune must not see the artifact as nobody's.
        let _store = self.lock("store")?;
        self.place(id, out)?;
        let entry = Ref {
            request: request.to_owned(),
            artifact: id.clone(),
        };
        let path = self.ref_path(kind, name);
        let text = serde_json::to_vec_pretty(&entry).map_err(|source| Error::Description {
            path: path.clone(),
            source,
        })?;
        write_atomic(&path, &text)?;
        Artifact::open(self, id)
    }

    /// Puts a sealed directory at `artifacts/<id>`, unless a good one is there. The store's lock is held.
    fn place(&self, id: &ArtifactId, out: &Path) -> Result<(), Error> {
        let target = self.artifact_dir(id);
        if target.exists() {
            if Artifact::open(self, id)
                .and_then(|artifact| artifact.verify(&|_| ()))
                .is_ok()
            {
                return Ok(());
            }
            self.discard(&target)?;
        }
        fs::set_permissions(out, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(io("changing", out))?;
        fs::rename(out, &target).map_err(io("renaming", out))?;
        file::sync(&self.root.join("artifacts"))
    }

    /// Takes a directory out of its place at once, then removes it.
    fn discard(&self, path: &Path) -> Result<(), Error> {
        let trash = tempfile::Builder::new()
            .prefix("store@")
            .tempdir_in(self.root.join("tmp"))
            .map_err(io("making a directory in", &self.root))?;
        let moved = trash.path().join("artifact");
        fs::rename(path, &moved).map_err(io("renaming", path))?;
        remove_any(&trash.keep())
    }

    /// Removes the work of makers that are gone: those whose lock is free.
    ///
    /// A killed maker's programs may live a little longer and write on: what cannot be removed now is in nobody's way, since
    /// every maker works in a directory of a new name, and the next call takes it.
    fn sweep(&self) -> Result<(), Error> {
        for (path, key) in self.leftovers()? {
            match key {
                Some(key) => {
                    if let Some(_lock) = self.try_lock(&key)? {
                        let _ = remove_any(&path);
                    }
                }
                None => {
                    let _ = remove_any(&path);
                }
            }
        }
        Ok(())
    }

    /// Removes earlier work on `key`, whose lock the caller holds; as `sweep`.
    fn clean_tmp(&self, key: &str) -> Result<(), Error> {
        for (path, found) in self.leftovers()? {
            if found.as_deref() == Some(key) {
                let _ = remove_any(&path);
            }
        }
        Ok(())
    }

    /// What is under `tmp`, and whose lock covers it.
    fn leftovers(&self) -> Result<Vec<(PathBuf, Option<String>)>, Error> {
        let dir = self.root.join("tmp");
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io("reading", &dir))? {
            let entry = entry.map_err(io("reading", &dir))?;
            let name = entry.file_name();
            let key = name
                .to_str()
                .and_then(|name| name.split_once('@'))
                .map(|(key, _)| key);
            let key = key
                .filter(|key| KEYS.iter().any(|kind| key.starts_with(kind)))
                .map(str::to_owned);
            found.push((entry.path(), key));
        }
        Ok(found)
    }

    fn lock(&self, key: &str) -> Result<Flock<fs::File>, Error> {
        let (path, file) = self.lock_file(key)?;
        Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| Error::Io {
            what: "locking",
            path,
            source: errno.into(),
        })
    }

    fn try_lock(&self, key: &str) -> Result<Option<Flock<fs::File>>, Error> {
        let (path, file) = self.lock_file(key)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::Io {
                what: "locking",
                path,
                source: errno.into(),
            }),
        }
    }

    fn lock_file(&self, key: &str) -> Result<(PathBuf, fs::File), Error> {
        // Lock files stay: removing one while another process waits for it would let two in.
        let path = self.root.join("locks").join(format!("{key}.lock"));
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(io("opening", &path))?;
        Ok((path, file))
    }

    fn ref_path(&self, kind: Kind, name: &str) -> PathBuf {
        self.root
            .join("refs")
            .join(kind.directory())
            .join(format!("{name}.json"))
    }

    fn artifact_dir(&self, id: &ArtifactId) -> PathBuf {
        self.root.join("artifacts").join(id.as_str())
    }
}

/// Names become file names: no separator, no leading dot, nothing that another file system folds.
pub fn check_name(name: &str) -> Result<(), Error> {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = name.as_bytes();
    let fits = (1..=NAME_MAX).contains(&bytes.len())
        && bytes.first().copied().is_some_and(good)
        && bytes.iter().all(|&c| good(c) || b"._-".contains(&c));
    if fits {
        Ok(())
    } else {
        Err(Error::Name(name.to_owned()))
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Error> {
    serde_json::from_slice(&read(path)?).map_err(|source| Error::Description {
        path: path.to_owned(),
        source,
    })
}
