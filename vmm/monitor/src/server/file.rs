//! The configuration file: a whole machine in the format of `GET /vm/config`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use fief_api::FullVmConfiguration;
use serde_json::{Map, Value};

use crate::machine::files::Files;

/// Largest configuration file in bytes. A description of 26 drives is some ten kilobytes.
const MAX_SIZE: u64 = 1 << 20;

/// Sections that Firecracker has and this monitor has not.
const NOT_OFFERED: [&str; 5] = [
    "cpu-config",
    "memory-hotplug",
    "metrics",
    "mmds-config",
    "pmem",
];

/// Why a configuration file is no description of a machine.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read the configuration file {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration file {} is larger than {MAX_SIZE} bytes; is it the right file?", .0.display())]
    TooLarge(PathBuf),
    #[error(
        "the configuration file {} has a section '{section}', which fief-vmm {} does not offer yet; remove it",
        path.display(), env!("CARGO_PKG_VERSION")
    )]
    NotOffered {
        path: PathBuf,
        section: &'static str,
    },
    #[error("the configuration file {} is not understood", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// Reads a description.
///
/// # Errors
/// The file cannot be read, or is none.
pub fn read(files: &Files, path: &Path) -> Result<FullVmConfiguration, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = Vec::new();
    let file = files.open_read(path).map_err(failed)?;
    file.take(MAX_SIZE + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if u64::try_from(text.len()).map_or(true, |size| size > MAX_SIZE) {
        return Err(FileError::TooLarge(path.to_owned()));
    }
    parse(&text, path)
}

/// Reads the description in `text`; `path` is for messages.
pub(super) fn parse(text: &[u8], path: &Path) -> Result<FullVmConfiguration, FileError> {
    let source = match FullVmConfiguration::from_json(text) {
        Ok(config) => return Ok(config),
        Err(source) => source,
    };
    let path = path.to_owned();
    // Only now, as the detour loses line numbers: sections that Firecracker has and we have not.
    let Ok(mut whole) = serde_json::from_slice::<Map<String, Value>>(text) else {
        return Err(FileError::Json { path, source });
    };
    let mut removed = false;
    for section in NOT_OFFERED {
        match whole.remove(section) {
            None => {}
            Some(Value::Null) => removed = true,
            Some(Value::Array(list)) if list.is_empty() => removed = true,
            Some(Value::Object(fields)) if fields.is_empty() => removed = true,
            Some(_) => return Err(FileError::NotOffered { path, section }),
        }
    }
    if !removed {
        return Err(FileError::Json { path, source });
    }
    // As text again: reading it from a map would take all of the reading code once more.
    let rest = serde_json::to_vec(&whole);
    rest.and_then(|rest| FullVmConfiguration::from_json(&rest))
        .map_err(|source| FileError::Json { path, source })
}
