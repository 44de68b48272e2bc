//! Copying artifacts into another store.

use std::fs;
use std::path::{Path, PathBuf};

use super::artifact::DESCRIPTION;
use super::file::{create_dir, hash_bytes, io, read};
use super::{Artifact, ArtifactId, Error, Kind, Ref, Store, read_json};
use crate::progress::{Progress, Unit};

/// One file to copy, at the same place below both stores' directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFile {
    /// Below the store's directory, here and there.
    pub relative: PathBuf,
    pub size: u64,
    /// Hex.
    pub sha256: String,
}

impl Store {
    /// Every file that another store needs to have these names: the artifacts, their descriptions, and last the refs.
    /// Copied in this order, each by rename, the other store is right at every moment.
    pub fn export(&self, names: &[(Kind, &str)]) -> Result<Vec<ExportFile>, Error> {
        let (mut files, mut refs) = (Vec::new(), Vec::new());
        for &(kind, name) in names {
            let missing = || Error::Missing {
                kind,
                name: name.to_owned(),
            };
            let artifact = self.find(kind, name)?.ok_or_else(missing)?;
            let dir = Path::new("artifacts").join(artifact.id().as_str());
            let of = |entry: &super::FileEntry| ExportFile {
                relative: dir.join(&entry.path),
                size: entry.size,
                sha256: entry.sha256.clone(),
            };
            files.extend(artifact.files().iter().map(of));
            files.push(self.describe(dir.join(DESCRIPTION))?);
            let path = self.ref_path(kind, name);
            let relative = path.strip_prefix(&self.root).unwrap_or(&path).to_owned();
            refs.push(self.describe(relative)?);
        }
        files.extend(refs);
        Ok(files)
    }

    /// Copies one named artifact from another store; every byte is verified before it counts.
    pub fn import(
        &self,
        from: &Store,
        kind: Kind,
        name: &str,
        progress: &dyn Progress,
    ) -> Result<Artifact, Error> {
        let entry: Ref = match from.find_ref(kind, name)? {
            Some(entry) => entry,
            None => {
                return Err(Error::Missing {
                    kind,
                    name: name.to_owned(),
                });
            }
        };
        let source = Artifact::open(from, &entry.artifact)?;
        let title = format!("copying {kind} {name}");
        let artifact = self.ensure(kind, name, &entry.request, progress, |work| {
            progress.begin(&title, Unit::Bytes, Some(source.size()));
            let mut before = 0;
            for file in source.files() {
                let target = work.out.join(&file.path);
                if let Some(dir) = target.parent() {
                    create_dir(dir)?;
                }
                let origin = from.artifact_dir(source.id()).join(&file.path);
                fs::copy(&origin, &target).map_err(io("copying", &origin))?;
                before += file.size;
                progress.done(before);
            }
            progress.end();
            check_copy(&work.out, &source)?;
            Ok::<_, Error>(source.properties().clone())
        })?;
        Ok(artifact)
    }

    /// Takes artifacts that were copied file by file below `artifacts` and `refs` (see [`Store::export`]), after reading
    /// all of their bytes; a name whose artifact is not right loses it.
    pub fn accept(&self, names: &[(Kind, &str)], progress: &dyn Progress) -> Result<(), Error> {
        for &(kind, name) in names {
            progress.begin(&format!("verifying {kind} {name}"), Unit::Bytes, None);
            let path = self.ref_path(kind, name);
            let entry: Ref = read_json(&path)?;
            let checked = Artifact::open(self, &entry.artifact)
                .and_then(|artifact| artifact.verify(&|done| progress.done(done)));
            progress.end();
            if let Err(error) = checked {
                fs::remove_file(&path).map_err(io("removing", &path))?;
                return Err(error);
            }
        }
        Ok(())
    }

    fn describe(&self, relative: PathBuf) -> Result<ExportFile, Error> {
        let bytes = read(&self.root.join(&relative))?;
        Ok(ExportFile {
            relative,
            size: bytes.len() as u64,
            sha256: hash_bytes(&bytes),
        })
    }
}

/// The source may be damaged: what was copied must have the hashes its description promises.
fn check_copy(work: &Path, source: &Artifact) -> Result<(), Error> {
    for file in source.files() {
        let path = work.join(&file.path);
        let (_, sha256) = super::hash_file(&path, &|_| ())?;
        if sha256 != file.sha256 {
            let id: ArtifactId = source.id().clone();
            return Err(Error::Damaged {
                id,
                path,
                what: "the copied content is not what it should be".into(),
            });
        }
    }
    Ok(())
}
