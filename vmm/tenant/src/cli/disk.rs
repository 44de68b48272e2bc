//! `fief disk`: disks that a tenant has besides its own, while it runs and while it does not.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Context, Error, Result, exec};
use crate::backend::vm;
use crate::spec::{Bytes, Disk, DiskName, DiskSource, Isolation, MAX_DISKS, TenantName};
use crate::store::Tenant;
use crate::table::table;
use crate::terminal::{output, say};

/// How long the monitor and the agent of a running tenant may take to answer, and the guest to let go of a disk.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether the guest has let go.
const GLANCE: Duration = Duration::from_millis(20);

/// Subcommands of `fief disk`.
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Give a tenant a disk; one that runs has it at once
    Add(AddArgs),
    /// Take a disk from a tenant; one that was made by its size is deleted
    Rm(RmArgs),
    /// List the disks of a tenant
    Ls(LsArgs),
}

/// Flags of `fief disk add`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "In the tenant the disk has its name as serial number: /dev/disk/by-id/virtio-NAME where there is udev, \
    /sys/block/*/serial everywhere. `fief disk ls` shows its device."
)]
pub struct AddArgs {
    /// Let the tenant only read it
    #[arg(long)]
    read_only: bool,
    /// Name of the disk, and its serial number [disk1, disk2 ...]
    #[arg(long = "name", value_name = "DISK")]
    disk: Option<DiskName>,
    /// The tenant
    name: TenantName,
    /// A disk image or block device, used where it is (on the emulated host: there); or the size of a new, empty disk
    #[arg(value_name = "FILE|SIZE")]
    source: String,
}

/// Flags of `fief disk rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Even if it is in use in the tenant, which then finds errors
    #[arg(long, short = 'f')]
    force: bool,
    /// The tenant
    name: TenantName,
    /// The disk
    disk: DiskName,
}

/// Flags of `fief disk ls`.
#[derive(Debug, clap::Args)]
pub struct LsArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The tenant
    name: TenantName,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    match args {
        Args::Add(args) => add(&store.tenant(&args.name)?, args)?,
        Args::Rm(args) => remove(&store.tenant(&args.name)?, args)?,
        Args::Ls(args) => list(&store.tenant(&args.name)?, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn add(tenant: &Tenant, args: &AddArgs) -> Result<()> {
    let source = source(&args.source)?;
    if let DiskSource::File(path) = &source {
        check_file(path, args.read_only)?;
    }
    let mut added = None;
    tenant.change_spec(|spec| -> Result<()> {
        if spec.isolation == Isolation::Container {
            return Err(Error::new(format!(
                "tenant '{}' is a container, and this machine's kernel mounts no disk that somebody else may write; copy files \
                 with `fief cp`",
                tenant.name
            )));
        }
        let name = args.disk.clone();
        let name = name.unwrap_or_else(|| DiskName::unused(&spec.disks));
        if spec.disks.iter().any(|disk| disk.name == name) {
            return Err(Error::new(format!(
                "tenant '{}' has a disk '{name}' already; choose another name",
                tenant.name
            )));
        }
        if spec.disks.len() >= MAX_DISKS {
            return Err(Error::new(format!(
                "tenant '{}' has {MAX_DISKS} disks already; remove one first",
                tenant.name
            )));
        }
        let disk = Disk {
            name,
            source,
            read_only: args.read_only,
        };
        if let DiskSource::Own(size) = disk.source {
            make(&tenant.extra_disk(&disk.name), size)?;
        }
        // Before it is written down: what the tenant cannot have is not to be in its next start's way.
        if let Err(error) = plug(tenant, &disk) {
            discard(tenant, &disk);
            return Err(error);
        }
        spec.disks.push(disk.clone());
        added = Some(disk);
        Ok(())
    })?;
    if let Some(disk) = added {
        if tenant.runs()
            && let Err(error) = device(tenant, &disk.name)
        {
            say(&format!(
                "fief: {}: it has not noticed the disk yet, which needs a kernel with ACPI PCI hot-plug; its next start \
                 finds it ({})",
                tenant.name,
                error.text()
            ));
        }
        output(&format!("{}\n", disk.name))?;
    }
    Ok(())
}

/// Gives the disk to the tenant's machine, if it runs.
fn plug(tenant: &Tenant, disk: &Disk) -> Result<()> {
    if !tenant.runs() {
        return Ok(());
    }
    let (_directory, api) = vm::api(tenant)?;
    Ok(api
        .with_timeout(PATIENCE)
        .put_drive(&vm::extra_drive(tenant, disk))?)
}

/// A size, or the path of a file: what has a slash in it, or is there.
fn source(text: &str) -> Result<DiskSource> {
    let is_path = text.contains('/') || Path::new(text).exists();
    match text.parse::<Bytes>() {
        Ok(size) if !text.contains('/') => Ok(DiskSource::Own(size)),
        Err(error) if !is_path => Err(Error::new(format!("{error}; or give the path of a file"))),
        _ => {
            let path =
                std::fs::canonicalize(text).map_err(|error| unusable(Path::new(text), &error))?;
            Ok(DiskSource::File(path))
        }
    }
}

fn unusable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    let path = path.display();
    Error::new(format!(
        "the disk {path} cannot be used: {why}; give the path of a raw image or a block device"
    ))
}

/// A glance; the monitor looks closer.
fn check_file(path: &Path, read_only: bool) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|error| unusable(path, &error))?;
    let data = file.metadata().map_err(|error| unusable(path, &error))?;
    if !(data.is_file() || data.file_type().is_block_device()) {
        return Err(unusable(path, &"it is neither a file nor a block device"));
    }
    Ok(())
}

/// Makes an empty disk that takes what is used.
fn make(path: &Path, size: Bytes) -> Result<()> {
    if size.0 < 512 {
        return Err(Error::new(format!(
            "{size} is less than a sector; give a larger size, such as 10G"
        )));
    }
    let made = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|file: File| file.set_len(size.0));
    made.map_err(|error| {
        let _ = std::fs::remove_file(path);
        Error::new(format!(
            "cannot make a disk of {size}: {error}; give a smaller size, or make room"
        ))
    })
}

/// Deletes a disk that was made by its size.
fn discard(tenant: &Tenant, disk: &Disk) {
    if let DiskSource::Own(_) = disk.source {
        let path = tenant.extra_disk(&disk.name);
        if let Err(error) = std::fs::remove_file(&path) {
            say(&format!("fief: cannot delete {}: {error}", path.display()));
        }
    }
}

fn remove(tenant: &Tenant, args: &RmArgs) -> Result<()> {
    let name = &args.disk;
    let missing = || {
        let tenant = &tenant.name;
        Error::new(format!(
            "tenant '{tenant}' has no disk '{name}'; `fief disk ls {tenant}` lists its disks"
        ))
    };
    let mut removed = None;
    tenant.change_spec(|spec| -> Result<()> {
        let place = spec.disks.iter().position(|disk| disk.name == *name);
        let place = place.ok_or_else(missing)?;
        if tenant.runs() {
            unplug(tenant, name, args.force)?;
        }
        removed = Some(spec.disks.remove(place));
        Ok(())
    })?;
    if let Some(disk) = removed {
        discard(tenant, &disk);
        output(&format!("{name}\n"))?;
    }
    Ok(())
}

/// Asks the guest to let go of a disk, and waits until it has.
fn unplug(tenant: &Tenant, name: &DiskName, force: bool) -> Result<()> {
    if !force
        && let Ok(device) = device(tenant, name)
        && device.used
    {
        return Err(Error::new(format!(
            "the disk '{name}' is in use in tenant '{0}' as {1}; unmount it there, or take it away with \
             `fief disk rm -f {0} {name}`",
            tenant.name, device.path
        )));
    }
    let (_directory, api) = vm::api(tenant)?;
    let api = api.with_timeout(PATIENCE);
    let is_there = || -> Result<bool> {
        let drives = api.vm_config()?.drives;
        Ok(drives.iter().any(|drive| drive.drive_id == name.as_str()))
    };
    if !is_there()? {
        return Ok(());
    }
    api.delete_drive(name.as_str())?;
    if is_gone(PATIENCE, is_there)? {
        return Ok(());
    }
    Err(Error::new(format!(
        "tenant '{0}' was asked for the disk '{name}' and has not let go of it; try again, or `fief stop {0}` and then \
         remove it",
        tenant.name
    )))
}

/// Waits until the guest has let go of what it was asked for; false if it has not within `patience`.
pub fn is_gone(patience: Duration, is_there: impl Fn() -> Result<bool>) -> Result<bool> {
    let deadline = Instant::now() + patience;
    while is_there()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(GLANCE);
    }
    Ok(true)
}

/// A disk as a running tenant has it.
struct Device {
    path: String,
    /// Mounted, or in use otherwise.
    used: bool,
}

/// Asks the agent where a disk is; it waits for one that is on its way.
fn device(tenant: &Tenant, name: &DiskName) -> Result<Device> {
    let deadline = Instant::now() + PATIENCE;
    let told = exec::own_program(tenant, &["--drive", name.as_str()], deadline)?;
    let (path, used) = told.trim().split_once(' ').unwrap_or((told.trim(), ""));
    Ok(Device {
        path: path.to_owned(),
        used: used == "used",
    })
}

/// A disk, as listed.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    read_only: bool,
    /// The file behind it.
    file: PathBuf,
    /// Made by its size, and deleted with it.
    own: bool,
    /// In the running tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used: Option<bool>,
}

impl Entry {
    fn of(tenant: &Tenant, disk: &Disk) -> Self {
        let found = tenant.runs().then(|| device(tenant, &disk.name).ok());
        let found = found.flatten();
        let file = vm::extra_file(tenant, disk);
        Self {
            name: disk.name.to_string(),
            size_bytes: std::fs::metadata(&file).ok().map(|data| data.len()),
            read_only: disk.read_only,
            own: matches!(disk.source, DiskSource::Own(_)),
            used: found.as_ref().map(|device| device.used),
            device: found.map(|device| device.path),
            file,
        }
    }

    fn row(&self) -> Vec<String> {
        let size = self.size_bytes.filter(|size| *size > 0);
        vec![
            self.name.clone(),
            size.map(|size| Bytes(size).to_string()).unwrap_or_default(),
            if self.read_only {
                "read-only"
            } else {
                "read-write"
            }
            .to_owned(),
            self.device.clone().unwrap_or_default(),
            match self.used {
                Some(true) => "in use".to_owned(),
                Some(false) => "free".to_owned(),
                None => String::new(),
            },
            if self.own {
                String::new()
            } else {
                self.file.display().to_string()
            },
        ]
    }
}

fn list(tenant: &Tenant, args: &LsArgs) -> Result<()> {
    let disks = tenant.spec()?.disks;
    let entries: Vec<Entry> = disks.iter().map(|disk| Entry::of(tenant, disk)).collect();
    let text = if args.json {
        serde_json::to_string_pretty(&entries)? + "\n"
    } else {
        let header = ["NAME", "SIZE", "MODE", "DEVICE", "USE", "FILE"];
        table(&header, entries.iter().map(Entry::row))
    };
    Ok(output(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_size_is_a_file_and_a_file_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("10G");
        std::fs::write(&file, [0; 512]).unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(source("10G").unwrap(), DiskSource::Own(Bytes(10 << 30)));
        let found = source(path).unwrap();
        assert_eq!(
            found,
            DiskSource::File(std::fs::canonicalize(path).unwrap())
        );
        for (bad, word) in [
            ("ten", "no size"),
            ("/no/such/disk", "/no/such/disk"),
            ("", "no size"),
        ] {
            let error = source(bad).unwrap_err().text();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for bad in [
            directory.path(),
            Path::new("/dev/null"),
            Path::new("/no/disk"),
        ] {
            assert!(check_file(bad, true).is_err(), "{}", bad.display());
        }
        let file = directory.path().join("file");
        std::fs::write(&file, [0; 512]).unwrap();
        check_file(&file, false).unwrap();
        assert!(make(&directory.path().join("small"), Bytes(511)).is_err());
        let disk = directory.path().join("disk");
        make(&disk, Bytes(1 << 30)).unwrap();
        assert_eq!(std::fs::metadata(&disk).unwrap().len(), 1 << 30);
        assert_eq!(fief_images::disk::used(&disk).unwrap(), 0, "it is sparse");
    }
}
