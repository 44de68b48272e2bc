//! Taking all there is of what a kernel has for everybody, and the same thing asked for once by a neighbour.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use clap::ValueEnum;
use nix::mount::{MsFlags, mount};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, fork, pause};

use crate::error::{Result, failed};

/// As much of anything as is ever taken: the kernels' own bounds are below, or memory ends before.
const MOST: u64 = 1 << 20;
/// Of mounts, which become dearer the more there are: more than any program has.
const MOUNTS: u64 = 5000;

/// What a kernel has only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// inotify instances (fs.inotify.max_user_instances)
    Inotify,
    /// Processes (kernel.pid_max, threads-max)
    Pids,
    /// Open files (fs.file-max)
    Files,
    /// Mounts (fs.mount-max)
    Mounts,
    /// Memory
    Memory,
    /// Written, and not yet on a disk (vm.dirty_ratio)
    Dirty,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    what: What,
    /// Ask for one, instead of taking all
    #[arg(long)]
    one: bool,
}

/// Takes one, or all that is to be had; then prints how many, and keeps them for ever.
///
/// # Errors
/// Not even one is to be had.
pub fn main(args: &Args) -> Result<()> {
    let mut kept = Kept::default();
    if args.one {
        let taken = kept.take(args.what, 0);
        return taken.map_err(failed(format!("have one more ({:?})", args.what)));
    }
    // As many open files as this process may have at all.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let most = if args.what == What::Mounts {
        MOUNTS
    } else {
        MOST
    };
    let taken = (0..most).take_while(|number| kept.take(args.what, *number).is_ok());
    println!("{}", taken.count());
    loop {
        pause();
    }
}

#[derive(Debug, Default)]
struct Kept {
    inotify: Vec<Inotify>,
    files: Vec<OwnedFd>,
    memory: Vec<Vec<u8>>,
}

impl Kept {
    fn take(&mut self, what: What, number: u64) -> io::Result<()> {
        match what {
            What::Inotify => self.inotify.push(Inotify::init(InitFlags::empty())?),
            What::Files => self.files.push(File::open("/")?.into()),
            What::Pids => {
                // SAFETY: this process has one thread.
                if matches!(unsafe { fork() }?, ForkResult::Child) {
                    loop {
                        pause();
                    }
                }
            }
            What::Mounts => {
                let place = Path::new("/var/tmp/exhaust");
                fs::create_dir_all(place)?;
                let none = None::<&str>;
                mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none)?;
            }
            What::Memory => self.memory.push(vec![1; 1 << 20]),
            What::Dirty => {
                let path = format!("/var/tmp/dirty{}", number % 8);
                File::create(path)?.write_all(&vec![1; 8 << 20])?;
                if number > 64 {
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_that_needs_no_permission_is_to_be_had() {
        let mut kept = Kept::default();
        for what in [What::Inotify, What::Files, What::Memory] {
            kept.take(what, 0).unwrap();
        }
        assert_eq!(
            (kept.inotify.len(), kept.files.len(), kept.memory.len()),
            (1, 1, 1)
        );
    }
}
