//! One artifact: its description, and whether its files are what the description says.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file::{hash_bytes, hash_file, io, read};
use super::{Error, Kind, Store};

/// Name of the description in an artifact's directory.
pub(super) const DESCRIPTION: &str = "artifact.json";

/// Facts about an artifact that its users need, such as a kernel's release.
pub type Properties = BTreeMap<String, String>;

/// SHA-256, in hex, of an artifact's description, which has the SHA-256 of each file: the same content has the same id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ArtifactId(String);

impl ArtifactId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits: enough for a person.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl TryFrom<String> for ArtifactId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let hex = text.len() == 64
            && text
                .bytes()
                .all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        if hex {
            Ok(Self(text))
        } else {
            Err(Error::NoArtifact(text))
        }
    }
}

impl From<ArtifactId> for String {
    fn from(id: ArtifactId) -> String {
        id.0
    }
}

impl std::fmt::Display for ArtifactId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Below the artifact's directory.
    pub path: PathBuf,
    pub size: u64,
    /// Hex.
    pub sha256: String,
}

/// `artifact.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    kind: Kind,
    properties: Properties,
    files: Vec<FileEntry>,
}

/// What a full verification found wrong.
#[derive(Debug)]
pub struct Damage {
    pub kind: Kind,
    pub name: String,
    pub error: Error,
}

/// An artifact whose description is intact and whose files have the right sizes.
#[derive(Debug, Clone)]
pub struct Artifact {
    id: ArtifactId,
    dir: PathBuf,
    description: Description,
}

impl Artifact {
    pub(super) fn open(store: &Store, id: &ArtifactId) -> Result<Self, Error> {
        let dir = store.artifact_dir(id);
        if !dir.is_dir() {
            return Err(Error::NoArtifact(id.to_string()));
        }
        Self::open_at(dir, id)
    }

    /// As `open`, of a directory that may not be at its place yet.
    pub(super) fn open_at(dir: PathBuf, id: &ArtifactId) -> Result<Self, Error> {
        let path = dir.join(DESCRIPTION);
        let text = read(&path)?;
        if hash_bytes(&text) != id.as_str() {
            return Err(Error::Damaged {
                id: id.clone(),
                path,
                what: "the description was changed".into(),
            });
        }
        let description: Description =
            serde_json::from_slice(&text).map_err(|source| Error::Description {
                path: path.clone(),
                source,
            })?;
        if let Some(bad) = description.files.iter().find(|file| !is_plain(&file.path)) {
            let what = format!("a file outside the artifact, {},", bad.path.display());
            return Err(Error::Damaged {
                id: id.clone(),
                path,
                what,
            });
        }
        let artifact = Self {
            id: id.clone(),
            dir,
            description,
        };
        artifact.check_sizes()?;
        Ok(artifact)
    }

    pub fn id(&self) -> &ArtifactId {
        &self.id
    }

    pub fn kind(&self) -> Kind {
        self.description.kind
    }

    pub fn files(&self) -> &[FileEntry] {
        &self.description.files
    }

    pub fn size(&self) -> u64 {
        self.files().iter().map(|file| file.size).sum()
    }

    pub fn property(&self, key: &str) -> Option<&str> {
        self.description.properties.get(key).map(String::as_str)
    }

    pub fn properties(&self) -> &Properties {
        &self.description.properties
    }

    /// The path of one of its files; `None` if it has no such file.
    pub fn path(&self, file: &str) -> Option<PathBuf> {
        self.files()
            .iter()
            .find(|entry| entry.path == Path::new(file))
            .map(|entry| self.dir.join(&entry.path))
    }

    /// Reads every file and compares its hash. `done` is told the bytes read so far.
    pub fn verify(&self, done: &dyn Fn(u64)) -> Result<(), Error> {
        let mut before = 0;
        for file in self.files() {
            let path = self.dir.join(&file.path);
            let (size, sha256) = hash_file(&path, &|n| done(before + n))?;
            if sha256 != file.sha256 {
                return Err(Error::Damaged {
                    id: self.id.clone(),
                    path,
                    what: "the content was changed".into(),
                });
            }
            before += size;
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), Error> {
        for file in self.files() {
            let path = self.dir.join(&file.path);
            let what = match path.symlink_metadata() {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    "a file is missing".to_owned()
                }
                Err(source) => {
                    return Err(Error::Io {
                        what: "reading",
                        path,
                        source,
                    });
                }
                Ok(meta) if !meta.is_file() => "something that is no file".to_owned(),
                Ok(meta) if meta.len() != file.size => {
                    format!("{} bytes where {} belong", meta.len(), file.size)
                }
                Ok(_) => continue,
            };
            return Err(Error::Damaged {
                id: self.id.clone(),
                path,
                what,
            });
        }
        Ok(())
    }
}

/// Describes what is in `dir`, and makes its files read-only.
pub(super) fn seal(dir: &Path, kind: Kind, properties: Properties) -> Result<ArtifactId, Error> {
    let mut files = Vec::new();
    collect(dir, Path::new(""), &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let path = dir.join(DESCRIPTION);
    let describe = |source| Error::Description {
        path: path.clone(),
        source,
    };
    let text = serde_json::to_vec_pretty(&Description {
        kind,
        properties,
        files,
    })
    .map_err(describe)?;
    fs::write(&path, &text).map_err(io("writing", &path))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).map_err(io("changing", &path))?;
    ArtifactId::try_from(hash_bytes(&text))
}

fn collect(dir: &Path, below: &Path, files: &mut Vec<FileEntry>) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(io("reading", dir))? {
        let entry = entry.map_err(io("reading", dir))?;
        let (path, relative) = (entry.path(), below.join(entry.file_name()));
        if entry.file_type().map_err(io("reading", &path))?.is_dir() {
            collect(&path, &relative, files)?;
            continue;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444))
            .map_err(io("changing", &path))?;
        let (size, sha256) = hash_file(&path, &|_| ())?;
        files.push(FileEntry {
            path: relative,
            size,
            sha256,
        });
    }
    Ok(())
}

/// Neither absolute nor with `..`: stays below the directory it is joined to.
fn is_plain(path: &Path) -> bool {
    path.file_name().is_some()
        && path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}
