//! Taking all there is of what a kernel has for everybody, and the same thing asked for once by a neighbour.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use clap::ValueEnum;
use nix::mount::{MsFlags, mount};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, Uid, fork, pause, setgroups, setuid};

use crate::error::{Result, failed};

/// As much of anything as is ever taken: the kernels' own bounds are below, or memory ends before.
const MOST: u64 = 1 << 20;
/// Of what becomes dearer the more there is, somewhat more than a tenant or a measured host lets one have.
const MOST_DEAR: u64 = 6000;
/// Who asks for one as an ordinary program: the kernel has something in reserve for root.
const NOBODY: u32 = 65534;

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
        if args.what == What::Files {
            setgroups(&[])
                .and_then(|()| setuid(Uid::from_raw(NOBODY)))
                .map_err(|errno| failed("become an ordinary user")(errno.into()))?;
        }
        let taken = kept.take(args.what);
        return taken.map_err(failed(format!("have one more ({:?})", args.what)));
    }
    // As many open files as this process may have at all.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let most = match args.what {
        What::Mounts | What::Pids => MOST_DEAR,
        _ => MOST,
    };
    let taken = (0..most).take_while(|_| kept.take(args.what).is_ok());
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
    /// A process may have only so many files, and a program so many processes: a child goes on, and this one keeps its own.
    fn hand_on(&mut self) -> io::Result<()> {
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Child => self.files.clear(),
            ForkResult::Parent { .. } => loop {
                pause();
            },
        }
        Ok(())
    }

    fn take(&mut self, what: What) -> io::Result<()> {
        match what {
            What::Inotify => self.inotify.push(Inotify::init(InitFlags::empty())?),
            What::Files => match File::open("/") {
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
                    self.hand_on()?;
                    self.files.push(File::open("/")?.into());
                }
                opened => self.files.push(opened?.into()),
            },
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
            kept.take(what).unwrap();
        }
        assert_eq!(
            (kept.inotify.len(), kept.files.len(), kept.memory.len()),
            (1, 1, 1)
        );
    }
}
