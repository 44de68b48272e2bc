//! The plain host: its own kernel and this user, with the image's files and the tenants' limits.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fief::cgroup::Group;
use fief::spec::Bytes;
use fief_images::Images;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

use super::tenant::used;
use super::{Backend, Crowd, PROBE, Subject};
use crate::error::{Result, failed, on, other};
use crate::machine::{Begun, begin, said};
use crate::measure::{Spent, available, spend};
use crate::runner::Order;

/// As much as tenants have.
pub const DISK: u64 = 2 << 30;

/// Files of the image with an ext4 over them, as a container's, and a group with its limits.
#[derive(Debug)]
pub struct Plain {
    directory: TempDir,
    /// The group's name.
    id: String,
    group: Group,
    order: Order,
}

impl Plain {
    /// # Errors
    /// The image cannot be mounted, or this machine has no groups.
    pub fn make(order: &Order) -> Result<Self> {
        Self::named(&super::name(&Backend::Host), order)
    }

    /// The same, in a group of that name; processes that a killed measurement left in it are ended.
    ///
    /// # Errors
    /// Those of [`Self::make`].
    pub fn named(id: &str, order: &Order) -> Result<Self> {
        let images = Images::open(&order.state.join("images")).map_err(other)?;
        let image = images.rootfs(&order.image).map_err(other)?;
        let memory: Bytes = order.memory.parse().map_err(other)?;
        let directory = tempfile::tempdir().map_err(failed("make a directory"))?;
        Group::named(id).end_processes();
        let made = Self {
            directory,
            id: id.to_owned(),
            group: super::group(id, 1, memory)?,
            order: order.clone(),
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
        made.map_err(other)?;
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

    /// A command in the group, with these files; in a network namespace if one is named.
    pub fn command(&self, namespace: Option<&str>, words: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap_or_default());
        command.args(["enter", "--group", &self.id]);
        command.args(namespace.iter().flat_map(|name| ["--netns", name]));
        command.arg("--root");
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
            || said(&mut self.command(None, &["/bin/true"])).map(drop),
        )
    }

    /// Nothing runs.
    fn stop(&self) -> Result<Spent> {
        Ok(Spent::default())
    }

    /// Processes that wait.
    fn crowd(&self, size: usize) -> Result<Crowd> {
        let mut waiting = Vec::new();
        let before = available()?;
        let spent = spend(
            || self.charged(),
            || {
                for _ in 0..size {
                    // Ready when it has said so.
                    let mut one = self.command(None, &["sh", "-c", "echo; exec sleep 86400"]);
                    let mut one = one.stdout(Stdio::piped()).spawn();
                    let said = one.as_mut().map(|one| one.stdout.take());
                    if let Ok(Some(mut said)) = said {
                        let _ = said.read(&mut [0]);
                    }
                    waiting.push(one.map_err(failed("start a process"))?);
                }
                Ok(())
            },
        );
        let after = available();
        for mut one in waiting {
            let _ = one.kill();
            let _ = one.wait();
        }
        Ok(Crowd {
            spent: spent?,
            memory: before - after?,
        })
    }

    fn neighbour(&self) -> Result<Box<dyn Subject>> {
        let id = super::neighbour_of(&self.id);
        Ok(Box::new(Self::named(&id, &self.order)?))
    }

    fn kill(&self) {
        self.group.end_processes();
    }

    fn begin(&self, words: &[&str]) -> Result<Begun> {
        begin(&mut self.command(None, words))
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        said(&mut self.command(None, words))
    }

    fn charged(&self) -> Result<u64> {
        used(&self.group)
    }

    fn processes(&self) -> Result<Vec<i32>> {
        Ok(self.group.processes())
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
