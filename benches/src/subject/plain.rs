//! The plain host: its own kernel and this user, with the image's files and the tenants' limits.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fief::cgroup::Group;
use fief::spec::Bytes;
use fief_images::Images;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::{Backend, PROBE, Subject};
use crate::error::{Error, Result, failed, on};
use crate::machine::said;
use crate::measure::{self, Spent, spend};
use crate::runner::Order;

const GROUP: &str = "fief-bench-host";
/// As much as tenants have.
const DISK: u64 = 2 << 30;

/// Files of the image with an ext4 over them, as a container's, and a group with its limits.
#[derive(Debug)]
pub struct Plain {
    directory: TempDir,
    group: Group,
}

impl Plain {
    /// # Errors
    /// The image cannot be mounted, or this machine has no groups.
    pub fn make(order: &Order) -> Result<Self> {
        let of = |error: &dyn std::fmt::Display| Error::Other(error.to_string());
        let images = Images::open(&order.state.join("images")).map_err(|error| of(&error))?;
        let image = images.rootfs(&order.image).map_err(|error| of(&error))?;
        let memory: Bytes = order.memory.parse().map_err(|error| of(&error))?;
        let directory = tempfile::tempdir().map_err(failed("make a directory"))?;
        let made = Self {
            directory,
            group: super::group(GROUP, 1, memory)?,
        };
        made.mount_all(&image.path, image.format.name())?;
        let own = std::env::current_exe().map_err(failed("find this program"))?;
        let probe = made.root().join(PROBE.trim_start_matches('/'));
        fs::copy(&own, &probe).map_err(on("copy the work to", &probe))?;
        Ok(made)
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn mount_all(&self, image: &Path, format: &str) -> Result<()> {
        let base = self.directory.path();
        let [lower, disk, root] = ["lower", "disk", "root"].map(|name| base.join(name));
        for path in [&lower, &disk, &root] {
            fs::create_dir(path).map_err(on("make", path))?;
        }
        let layer = base.join("layer.ext4");
        let made = fief_images::disk::make(&layer, DISK);
        made.map_err(|error| Error::Other(error.to_string()))?;
        let mount_file = |file: &Path, kind: &str, options: &str, at: &Path| {
            let mut command = Command::new("mount");
            command.args(["-t", kind, "-o", options]).args([file, at]);
            said(&mut command)
        };
        mount_file(image, format, "loop,ro", &lower)?;
        mount_file(&layer, "ext4", "loop", &disk)?;
        let (upper, work) = (disk.join("upper"), disk.join("work"));
        for path in [&upper, &work] {
            fs::create_dir(path).map_err(on("make", path))?;
        }
        let paths = [&lower, &upper, &work].map(|path| path.display().to_string());
        let [lower, upper, work] = &paths;
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let none = MsFlags::empty();
        let overlay = Some("overlay");
        mount(overlay, &root, overlay, none, Some(options.as_str()))
            .map_err(|errno| on("lay the disk over the image at", &root)(errno.into()))?;
        for name in ["proc", "dev", "sys"] {
            let (from, to) = (Path::new("/").join(name), root.join(name));
            let kind = None::<&str>;
            mount(Some(&from), &to, kind, MsFlags::MS_BIND, kind)
                .map_err(|errno| on("show the host's files at", &to)(errno.into()))?;
        }
        Ok(())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap_or_default());
        command.args(["enter", "--group", GROUP, "--root"]);
        command.arg(self.root()).arg("--").args(words);
        command
    }
}

impl Subject for Plain {
    fn backend(&self) -> Backend {
        Backend::Host
    }

    /// A process that is there and ends again: as much as there is to start.
    fn start(&self) -> Result<Spent> {
        spend(
            || self.charged(),
            || said(&mut self.command(&["/bin/true"])).map(drop),
        )
    }

    /// Nothing runs.
    fn stop(&self) -> Result<Spent> {
        Ok(Spent::default())
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        said(&mut self.command(words))
    }

    fn charged(&self) -> Result<u64> {
        let none =
            || Error::Other("this kernel does not count a group's processor time".to_owned());
        self.group.usage().cpu_ns.ok_or_else(none)
    }

    fn exits(&self) -> Result<u64> {
        Ok(0)
    }

    fn memory(&self) -> Result<u64> {
        Ok(measure::proportional(self.group.processes()))
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        self.group.end_processes();
        let root = self.root();
        let inside = ["proc", "dev", "sys"].map(|name| root.join(name));
        let below = ["lower", "disk"].map(|name| self.directory.path().join(name));
        for path in inside.iter().chain([&root]).chain(below.iter().rev()) {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
        let _ = self.group.remove();
    }
}
