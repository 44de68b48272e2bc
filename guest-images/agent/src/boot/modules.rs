//! Kernel modules of the initramfs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::unistd::{ForkResult, fork};

use crate::log;

/// Lists what to load, in order, one name or path below [`DIRECTORY`] a line; `#` begins a comment.
const LIST: &str = "/etc/fief/modules.load";
/// The same, of what the first command need not wait for.
const LATER: &str = "/etc/fief/modules.later";
const DIRECTORY: &str = "/lib/modules";
const NETWORK_DRIVER: &str = "virtio_net";

/// Loads the modules of the initramfs's list, then `more`.
pub fn load(more: &[String]) {
    let list = fs::read_to_string(LIST).unwrap_or_default();
    let names = wanted(&list).chain(more.iter().map(String::as_str));
    insert(found(names));
}

/// Loads modules, in order.
pub fn insert(modules: impl IntoIterator<Item = Module>) {
    modules.into_iter().for_each(Module::insert);
}

/// The modules that are to be loaded later, opened: the initramfs is emptied before that.
pub fn later() -> Vec<Module> {
    let list = fs::read_to_string(LATER).unwrap_or_default();
    found(wanted(&list)).collect()
}

/// Takes the network device's driver, and what is listed before it because it needs it, out of the modules for later.
pub fn take_network_driver(later: &mut Vec<Module>) -> Vec<Module> {
    let driver = later
        .iter()
        .position(|module| plain_name(&module.name) == NETWORK_DRIVER);
    later.drain(..driver.map_or(0, |at| at + 1)).collect()
}

/// Loads modules in a process of its own that takes only what CPU time others leave; like any child it is reaped. If
/// there can be no process, they are loaded here.
pub fn insert_beside(modules: Vec<Module>) {
    if modules.is_empty() {
        return;
    }
    // SAFETY: the agent has one thread, so the child may do what it likes.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { .. }) => {}
        Ok(ForkResult::Child) => {
            // SAFETY: a plain system call; 0 means the caller.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LEAST_PRIORITY) };
            insert(modules);
            // SAFETY: a forked child leaves without its parent's exit handlers.
            unsafe { libc::_exit(0) };
        }
        Err(_) => insert(modules),
    }
}

/// The highest nice value (setpriority(2)).
const LEAST_PRIORITY: i32 = 19;

/// A module's file, or why it could not be opened.
#[derive(Debug)]
pub struct Module {
    name: String,
    file: Result<File, Errno>,
}

impl Module {
    /// What cannot be loaded is reported and left out: a kernel may have it built in.
    fn insert(self) {
        let inserted = self
            .file
            .and_then(|file| finit_module(file, c"", ModuleInitFlags::empty()));
        match inserted {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => log::info(format!(
                "module {} is left out: {}",
                self.name,
                error.desc()
            )),
        }
    }
}

/// Opens modules by path or name, when it is their turn.
fn found<'a>(names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = Module> {
    let mut index = None;
    names.map(move |name| {
        let direct = [Path::new(DIRECTORY).join(name), Path::new("/").join(name)];
        let path = direct.into_iter().find(|path| path.is_file()).or_else(|| {
            let index = index.get_or_insert_with(|| index_below(Path::new(DIRECTORY)));
            index.get(&plain_name(name)).cloned()
        });
        let open = |path: PathBuf| {
            File::open(path)
                .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
        };
        Module {
            name: name.to_owned(),
            file: path.ok_or(Errno::ENOENT).and_then(open),
        }
    })
}

fn wanted(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|name| !name.is_empty())
}

/// The name as the kernel has it: without directory and extension, `-` and `_` alike.
fn plain_name(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.strip_suffix(".ko").unwrap_or(file).replace('-', "_")
}

/// Every module file by its name.
fn index_below(directory: &Path) -> HashMap<String, PathBuf> {
    let mut index = HashMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            // Links such as `build` lead out.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() && path.extension().is_some_and(|end| end == "ko") => {
                    index.insert(plain_name(&entry.file_name().to_string_lossy()), path);
                }
                _ => {}
            }
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_comments_and_empty_lines() {
        let names: Vec<_> = wanted("# first\nvirtio_blk\n\n  ext4 # file system\n").collect();
        assert_eq!(names, ["virtio_blk", "ext4"]);
    }

    #[test]
    fn the_network_driver_comes_with_all_that_is_listed_before_it() {
        let list = ["/x/failover.ko", "/x/virtio_net.ko", "/x/fuse.ko"];
        let mut later: Vec<_> = found(list.into_iter()).collect();
        let names = |modules: &[Module]| -> Vec<String> {
            modules.iter().map(|module| module.name.clone()).collect()
        };
        assert_eq!(names(&take_network_driver(&mut later)), list[..2]);
        assert_eq!(names(&later), list[2..]);
        // A kernel that has it built in has no such file.
        assert!(take_network_driver(&mut later).is_empty() && later.len() == 1);
    }

    #[test]
    fn a_module_is_found_below_any_directory_with_either_spelling() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("6.12/kernel/drivers/net");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("virtio-net.ko"), "").unwrap();
        fs::write(deep.join("other.ko.xz"), "").unwrap();
        let index = index_below(dir.path());
        assert_eq!(index.keys().collect::<Vec<_>>(), ["virtio_net"]);
        assert_eq!(
            index.get(&plain_name("kernel/x/virtio_net.ko")),
            Some(&deep.join("virtio-net.ko"))
        );
    }
}
