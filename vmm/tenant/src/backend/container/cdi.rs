//! Devices of the host for a container, as files of the Container Device Interface describe them (CDI, SPEC.md 1.1.0): device
//! nodes, mounts and variables. Hooks are programs of the host that would run with its root's rights on what is a tenant's:
//! a device that wants one is refused.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::ids;
use crate::spec::Gpu;

/// Where the files are, those that count more last (SPEC.md, "CDI JSON Specification").
const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// Largest file that is read, in bytes: NVIDIA's of a large machine have some 50 KiB.
const LARGEST: u64 = 1 << 20;
/// Places in a container that are the runtime's and the agent's, and what is below them.
const OWN: [&str; 3] = ["/proc", "/sys", "/run/fief"];
/// Places that may get something below them only.
const FILLED: [&str; 5] = ["/run", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"];
/// What a mount may ask for (mount(8)); the rest is fief's to say.
const MOUNT_OPTIONS: [&str; 9] = [
    "ro", "rw", "bind", "private", "rprivate", "nosuid", "nodev", "noexec", "exec",
];

/// What a container is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Devices {
    pub nodes: Vec<Node>,
    pub mounts: Vec<Mount>,
    pub variables: Vec<(String, String)>,
}

/// A character device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// In the container.
    pub path: String,
    pub major: u64,
    pub minor: u64,
    /// Permission bits.
    pub mode: u32,
    /// Ids as the tenant sees them.
    pub uid: u32,
    pub gid: u32,
}

/// A file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    pub source: PathBuf,
    /// In the container.
    pub destination: String,
    /// Always with `bind`, `nosuid` and `nodev`.
    pub options: Vec<String>,
}

/// Why a device cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    #[error(
        "no file in {directories} describes the device {name}{there}; make one with the vendor's tool (`nvidia-ctk cdi generate \
         --disable-hooks all`)"
    )]
    Unknown {
        name: String,
        directories: String,
        there: String,
    },
    #[error("{} and {} both describe {name}; remove one of them", first.display(), second.display())]
    Twice {
        name: String,
        first: PathBuf,
        second: PathBuf,
    },
    #[error("{}: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    #[error(
        "{name} of {} wants the host's program {program} to run for each container (a hook), and fief runs none; make the file \
         without hooks (`nvidia-ctk cdi generate --disable-hooks all`)", path.display()
    )]
    Hook {
        name: String,
        path: PathBuf,
        program: String,
    },
    #[error("{name} of {} asks for {what}, which a container of fief cannot have", path.display())]
    Unsupported {
        name: String,
        path: PathBuf,
        what: String,
    },
    #[error("{name} of {} needs {}, and this machine has no such {what}; is its driver loaded?", path.display(), missing.display())]
    Missing {
        name: String,
        path: PathBuf,
        what: &'static str,
        missing: PathBuf,
    },
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Described {
    cdi_version: String,
    kind: String,
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(rename = "annotations")]
    _annotations: Option<IgnoredAny>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<DeviceNode>,
    mounts: Vec<Mounted>,
    hooks: Vec<Hook>,
    /// Groups that may use the host's nodes: the tenant's are its own, and its root's.
    #[serde(rename = "additionalGids")]
    _additional_gids: Vec<u32>,
    intel_rdt: Option<IgnoredAny>,
    net_devices: Vec<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeviceNode {
    path: String,
    host_path: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    major: Option<u64>,
    minor: Option<u64>,
    file_mode: Option<u32>,
    #[serde(rename = "permissions")]
    _permissions: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mounted {
    host_path: PathBuf,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Hook {
    path: String,
}

/// What `gpus` are on this machine.
///
/// # Errors
/// See [`CdiError`].
pub fn resolve(gpus: &[Gpu]) -> Result<Devices, CdiError> {
    resolve_in(gpus, &DIRECTORIES.map(Path::new))
}

fn resolve_in(gpus: &[Gpu], directories: &[&Path]) -> Result<Devices, CdiError> {
    let mut devices = Devices::default();
    if gpus.is_empty() {
        return Ok(devices);
    }
    let (all, damaged) = read_all(directories);
    let mut begun = Vec::new();
    for gpu in gpus {
        let Some((file, device)) = find(&all, gpu)? else {
            // It may be in a file that cannot be read.
            return Err(damaged
                .into_iter()
                .next()
                .unwrap_or_else(|| unknown(gpu, directories, all.iter().map(|(_, file)| file))));
        };
        let (_, (path, described)) = file;
        let mut edits = vec![&device.container_edits];
        // What a file says of all its devices is given once.
        if !begun.contains(&path) {
            begun.push(path);
            edits.insert(0, &described.container_edits);
        }
        let of = Of { gpu, path };
        edits
            .into_iter()
            .try_for_each(|edits| of.add(edits, &mut devices))?;
    }
    Ok(devices)
}

/// Variables of every command beside those of the tenant. None if the devices are not there: then the tenant does not start.
pub fn variables(gpus: &[Gpu]) -> Vec<(String, String)> {
    resolve(gpus).map_or_else(|_| Vec::new(), |devices| devices.variables)
}

type Found = (usize, (PathBuf, Described));

/// All files, each with the number of its directory, and what is wrong with those that cannot be read.
fn read_all(directories: &[&Path]) -> (Vec<Found>, Vec<CdiError>) {
    let (mut all, mut damaged) = (Vec::new(), Vec::new());
    for (number, directory) in directories.iter().enumerate() {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let kind = path.extension().and_then(|extension| extension.to_str());
            if !matches!(kind, Some("json" | "yaml" | "yml")) {
                continue;
            }
            match read(&path) {
                Ok(described) => all.push((number, (path, described))),
                Err(why) => damaged.push(CdiError::Damaged { path, why }),
            }
        }
    }
    (all, damaged)
}

fn read(path: &Path) -> Result<Described, String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    let count = file.take(LARGEST + 1).read_to_string(&mut text);
    if count.map_err(|error| error.to_string())? as u64 > LARGEST {
        return Err("it is larger than 1 MiB".to_owned());
    }
    // JSON is YAML, too.
    let described: Described = serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())?;
    let mut version = described.cdi_version.splitn(3, '.').map(str::parse::<u32>);
    match (version.next(), version.next()) {
        (Some(Ok(0)), Some(Ok(3..))) | (Some(Ok(1)), Some(Ok(0 | 1))) => Ok(described),
        _ => Err(format!(
            "it is of version {:?} of CDI, and fief knows 0.3 to 1.1",
            described.cdi_version
        )),
    }
}

/// The file and the device in it, of the directory that counts most.
fn find<'a>(all: &'a [Found], gpu: &Gpu) -> Result<Option<(&'a Found, &'a Device)>, CdiError> {
    let mut best: Option<(&Found, &Device)> = None;
    for found in all {
        let (number, (path, described)) = found;
        if described.kind != gpu.kind() {
            continue;
        }
        for device in &described.devices {
            if device.name != gpu.device() {
                continue;
            }
            if let Some(((before, (first, _)), _)) = best
                && before == number
            {
                return Err(CdiError::Twice {
                    name: gpu.to_string(),
                    first: first.clone(),
                    second: path.clone(),
                });
            }
            best = Some((found, device));
        }
    }
    Ok(best)
}

fn unknown<'a>(
    gpu: &Gpu,
    directories: &[&Path],
    files: impl Iterator<Item = &'a (PathBuf, Described)>,
) -> CdiError {
    let names = files.flat_map(|(_, file)| {
        let names = file.devices.iter();
        names.map(|device| format!("{}={}", file.kind, device.name))
    });
    let names: Vec<_> = names.collect();
    let directories: Vec<_> = directories
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    CdiError::Unknown {
        name: gpu.to_string(),
        directories: directories.join(" or "),
        there: if names.is_empty() {
            String::new()
        } else {
            format!(" (there are {})", names.join(", "))
        },
    }
}

/// What is described, for errors.
struct Of<'a> {
    gpu: &'a Gpu,
    path: &'a Path,
}

impl Of<'_> {
    fn unsupported(&self, what: impl Into<String>) -> CdiError {
        CdiError::Unsupported {
            name: self.gpu.to_string(),
            path: self.path.to_owned(),
            what: what.into(),
        }
    }

    fn missing(&self, what: &'static str, missing: &Path) -> CdiError {
        CdiError::Missing {
            name: self.gpu.to_string(),
            path: self.path.to_owned(),
            what,
            missing: missing.to_owned(),
        }
    }

    fn add(&self, edits: &Edits, devices: &mut Devices) -> Result<(), CdiError> {
        if let Some(hook) = edits.hooks.first() {
            return Err(CdiError::Hook {
                name: self.gpu.to_string(),
                path: self.path.to_owned(),
                program: hook.path.clone(),
            });
        }
        let others = [
            (edits.intel_rdt.is_some(), "a share of caches (intelRdt)"),
            (!edits.net_devices.is_empty(), "network interfaces"),
        ];
        if let Some((_, what)) = others.iter().find(|(asked, _)| *asked) {
            return Err(self.unsupported(*what));
        }
        for variable in &edits.env {
            let pair = variable.split_once('=').filter(|(name, value)| {
                !name.is_empty() && !name.contains('\0') && !value.contains('\0')
            });
            let (name, value) =
                pair.ok_or_else(|| self.unsupported(format!("the variable {variable:?}")))?;
            devices.variables.push((name.to_owned(), value.to_owned()));
        }
        for node in &edits.device_nodes {
            devices.nodes.push(self.node(node)?);
        }
        for mount in &edits.mounts {
            devices.mounts.push(self.mount(mount)?);
        }
        Ok(())
    }

    fn node(&self, node: &DeviceNode) -> Result<Node, CdiError> {
        self.check_place(&node.path)?;
        if !matches!(node.kind.as_deref(), None | Some("c" | "u")) {
            return Err(self.unsupported(format!("{}, which is no character device", node.path)));
        }
        let on_host = Path::new(node.host_path.as_deref().unwrap_or(&node.path));
        let found = match fs::metadata(on_host) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.missing("device", on_host));
            }
            Err(error) => return Err(self.unsupported(format!("{}: {error}", on_host.display()))),
        };
        if !found.file_type().is_char_device() {
            let what = format!("{}, which is no character device", on_host.display());
            return Err(self.unsupported(what));
        }
        // What is there counts: numbers of a driver may change from boot to boot, and a file says what they were.
        let told = node.major.zip(node.minor);
        let (major, minor) = (major(found.rdev()), minor(found.rdev()));
        if told.is_some_and(|told| told != (0, 0) && told != (major, minor)) {
            let what = format!(
                "{} with other numbers than it has now, {major}:{minor} (make the file anew)",
                on_host.display()
            );
            return Err(self.unsupported(what));
        }
        if node.uid.max(node.gid) >= Some(ids::COUNT) {
            return Err(self.unsupported(format!("an owner of {} beyond its ids", node.path)));
        }
        Ok(Node {
            path: node.path.clone(),
            major,
            minor,
            // Root of the tenant is not the host's, and gets what that has.
            mode: node.file_mode.unwrap_or(found.mode() | 0o600) & 0o777,
            uid: node.uid.unwrap_or(0),
            gid: node.gid.unwrap_or(0),
        })
    }

    fn mount(&self, mount: &Mounted) -> Result<Mount, CdiError> {
        self.check_place(&mount.container_path)?;
        if !matches!(mount.kind.as_deref(), None | Some("" | "none" | "bind")) {
            return Err(self.unsupported(format!("a file system on {}", mount.container_path)));
        }
        let known = |option: &&String| MOUNT_OPTIONS.contains(&option.as_str());
        if let Some(option) = mount.options.iter().find(|option| !known(option)) {
            return Err(self.unsupported(format!("a mount with the option {option:?}")));
        }
        if !mount.host_path.is_absolute() || !mount.host_path.exists() {
            return Err(self.missing("file", &mount.host_path));
        }
        let mut options: Vec<String> = ["bind", "nosuid", "nodev"].map(str::to_owned).to_vec();
        for option in &mount.options {
            if !options.contains(option) {
                options.push(option.clone());
            }
        }
        Ok(Mount {
            source: mount.host_path.clone(),
            destination: mount.container_path.clone(),
            options,
        })
    }

    /// Paths in the container go down from its root, and hide nothing that keeps it apart.
    fn check_place(&self, path: &str) -> Result<(), CdiError> {
        let place = Path::new(path);
        let mut parts = place.components();
        let plain = parts.next() == Some(Component::RootDir)
            && parts.clone().next().is_some()
            && parts.all(|part| matches!(part, Component::Normal(_)));
        let is_own = OWN.iter().any(|own| place.starts_with(own))
            || FILLED.iter().any(|filled| place == Path::new(filled));
        if !plain || is_own || path.contains('\0') {
            return Err(self.unsupported(format!("something at {path:?}")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
