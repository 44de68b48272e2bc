//! Copies fief's binaries and images into the emulated host, once each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use fief_agent_proto::{Connection, ExecRequest, ReadFile, WriteFile};
use fief_images::store::hash_bytes;
use fief_images::{Images, Kind, Progress, Unit};
use serde::{Deserialize, Serialize};

use super::directory::Directory;
use super::{EmulatedError, INNER_BINARIES, INNER_STATE};

/// Largest file of a store that is a description or a ref and not content.
const INDEX_MAX: u64 = 16 << 10;

/// What the emulated host's disk holds, by path inside; each with the fingerprint of what was copied.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Copies(BTreeMap<String, String>);

impl Copies {
    fn load(directory: &Directory) -> Self {
        // A record that cannot be read costs a second copy, nothing else.
        fs::read(directory.copies())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }
}

/// A file to copy.
struct Item {
    from: PathBuf,
    to: String,
    mode: u32,
    fingerprint: String,
    size: u64,
}

impl Item {
    /// The directory it is in.
    fn directory(&self) -> &str {
        self.to.rsplit_once('/').map_or("", |(parent, _)| parent)
    }

    /// A description of an artifact or a name for one: without it, what it stands for does not count.
    fn is_index(&self) -> bool {
        self.to.starts_with(INNER_STATE) && self.size <= INDEX_MAX
    }
}

pub(super) fn synchronise(
    directory: &Directory,
    connection: &Connection,
    binaries: &[PathBuf],
    images: &Images,
    artifacts: &[(Kind, &str)],
    progress: &dyn Progress,
) -> Result<(), EmulatedError> {
    let mut copies = Copies::load(directory);
    let mut items = binaries
        .iter()
        .map(|path| binary(path))
        .collect::<Result<Vec<_>, _>>()?;
    for file in images.export(artifacts)? {
        items.push(Item {
            from: images.store().root().join(&file.relative),
            to: format!("{INNER_STATE}/images/{}", file.relative.display()),
            mode: 0o644,
            fingerprint: file.sha256,
            size: file.size,
        });
    }
    let recorded = |item: &Item| copies.0.get(&item.to) == Some(&item.fingerprint);
    // What was copied may have been removed inside since (`fief images rm` there): then nothing beside it is believed.
    let mut missing = BTreeSet::new();
    for item in items
        .iter()
        .filter(|item| recorded(item) && item.is_index())
    {
        if !is_inside(connection, item) {
            missing.insert(item.directory().to_owned());
        }
    }
    items.retain(|item| !recorded(item) || missing.contains(item.directory()));
    if items.is_empty() {
        return Ok(());
    }
    progress.begin(
        "copying into the emulated host",
        Unit::Bytes,
        Some(items.iter().map(|item| item.size).sum()),
    );
    let mut before = 0;
    for item in items {
        copy(connection, &item, before, progress)?;
        before += item.size;
        copies.0.insert(item.to, item.fingerprint);
    }
    // The record must not promise what a sudden end of the emulated host could still lose.
    connection.exec(&ExecRequest::new(["sync"]))?.output()?;
    progress.end();
    directory.write_json("copies.json", &copies)
}

fn binary(path: &Path) -> Result<Item, EmulatedError> {
    let failed = || EmulatedError::io(format!("cannot read {}", path.display()));
    let data = fs::metadata(path).map_err(failed())?;
    let changed = data
        .modified()
        .map_err(failed())?
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(Item {
        from: path.to_owned(),
        to: format!("{INNER_BINARIES}/{name}"),
        mode: 0o755,
        // As make(1) sees it: a binary of the same age and size is the same.
        fingerprint: format!("{} bytes of {}", data.len(), changed.as_nanos()),
        size: data.len(),
    })
}

/// Whether the file is inside as it is here.
fn is_inside(connection: &Connection, item: &Item) -> bool {
    let mut content = Vec::new();
    let request = ReadFile {
        path: item.to.clone(),
    };
    connection.read_file(&request, &mut content).is_ok() && hash_bytes(&content) == item.fingerprint
}

fn copy(
    connection: &Connection,
    item: &Item,
    before: u64,
    progress: &dyn Progress,
) -> Result<(), EmulatedError> {
    let file = File::open(&item.from).map_err(EmulatedError::io(format!(
        "cannot read {}",
        item.from.display()
    )))?;
    let request = WriteFile {
        path: item.to.clone(),
        mode: item.mode,
        owner: None,
        parents: true,
    };
    connection.write_file(
        &request,
        Counted {
            file,
            done: before,
            progress,
        },
    )?;
    Ok(())
}

/// Tells the progress how far a file has been read.
struct Counted<'a> {
    file: File,
    done: u64,
    progress: &'a dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.done += count as u64;
        self.progress.done(self.done);
        Ok(count)
    }
}
