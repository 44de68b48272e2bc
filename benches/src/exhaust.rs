//! Taking all there is of what a kernel has for everybody, and the same thing asked for once by a neighbour.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use nix::mount::{MsFlags, mount};
use nix::sys::inotify::{InitFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, Uid, fork, pause, setgroups, setuid};

use crate::error::{Result, failed};
use crate::net;

/// As much of anything as is ever taken: the kernels' own bounds are below, or memory ends before.
const MOST: u64 = 1 << 20;
/// Of what takes long, somewhat more than a tenant or a measured host lets one have.
const MOST_DEAR: u64 = 6000;
/// The same of open files, of which a machine with the memory of a measurement has 50000.
const MOST_FILES: u64 = 60_000;
/// So many failures in a row say that nothing more is to be had: connections that ended a while ago are forgotten meanwhile.
const FAILURES: u32 = 8;
/// How many try to get what is given back, so that hardly anybody else does.
const GRASPING: usize = 8;
/// Who asks for one as an ordinary program: the kernel has something in reserve for root.
const NOBODY: u32 = 65534;
/// Bytes of a key: the most that one of the type `user` holds (keyrings(7)).
const KEY: usize = 32767;

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(20);
/// Bytes of stack of a thread that does nothing.
const STACK: usize = 16 << 10;

/// What a kernel has only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// inotify instances (fs.inotify.max_user_instances)
    Inotify,
    /// Processes and threads (kernel.pid_max, threads-max)
    Pids,
    /// Open files (fs.file-max)
    Files,
    /// Mounts (fs.mount-max)
    Mounts,
    /// Memory
    Memory,
    /// Connections that a kernel tracks (net.netfilter.nf_conntrack_max)
    Conntrack,
    /// Keys, of their user's room for them (kernel.keys.maxbytes, root_maxbytes)
    Keys,
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
    allow_most_files();
    if args.what == What::Files {
        setgroups(&[])
            .and_then(|()| setuid(Uid::from_raw(NOBODY)))
            .map_err(|errno| failed("become an ordinary user")(errno.into()))?;
    }
    if args.one {
        let taken = kept.take(args.what, 0);
        return taken.map_err(failed(format!("have one more ({:?})", args.what)));
    }
    let (most, failures) = match args.what {
        What::Mounts | What::Pids => (MOST_DEAR, 1),
        What::Files => (MOST_FILES, 1),
        What::Conntrack => (MOST, FAILURES),
        _ => (MOST, 1),
    };
    let (mut taken, mut failed) = (0, 0);
    while taken < most && failed < failures {
        match kept.take(args.what, taken) {
            Ok(()) => (taken, failed) = (taken + 1, 0),
            Err(_) => failed += 1,
        }
    }
    println!("{taken}");
    if args.what == What::Conntrack {
        for _ in 0..GRASPING {
            // Not by `Kept`, which forks where files run out: a process with one thread may.
            thread::spawn(|| {
                let mut flows = Vec::new();
                loop {
                    match net::flow() {
                        Ok(flow) => flows.push(flow),
                        // One that is refused at once is not asked for all the time.
                        Err(_) => thread::sleep(AGAIN),
                    }
                }
            });
        }
    }
    loop {
        pause();
    }
}

/// Lets this process have as many open files as it may have at all: the host's root, more than it was given.
pub fn allow_most_files() {
    let set = |most| setrlimit(Resource::RLIMIT_NOFILE, most, most);
    let _ = set(MOST).or_else(|_| set(getrlimit(Resource::RLIMIT_NOFILE)?.1));
}

/// What was taken, until this goes.
#[derive(Debug, Default)]
pub struct Kept {
    inotify: Vec<Inotify>,
    files: Vec<OwnedFd>,
    memory: Vec<Vec<u8>>,
    flows: Vec<TcpStream>,
}

impl Kept {
    /// A process may have only so many files, and a program so many processes: a child goes on, and this one keeps its own.
    fn hand_on(&mut self) -> io::Result<()> {
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Child => {
                self.files.clear();
                self.flows.clear();
            }
            ForkResult::Parent { .. } => loop {
                pause();
            },
        }
        Ok(())
    }

    /// What needs a file, in a process that may have one more.
    fn with_files<T>(&mut self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        open().or_else(|error| {
            if error.raw_os_error() != Some(libc::EMFILE) {
                return Err(error);
            }
            self.hand_on()?;
            open()
        })
    }

    /// Takes one more.
    ///
    /// # Errors
    /// There is none, or no permission.
    pub fn take(&mut self, what: What, number: u64) -> io::Result<()> {
        match what {
            What::Inotify => self.inotify.push(Inotify::init(InitFlags::empty())?),
            What::Files => {
                let opened = self.with_files(|| File::open("/"))?;
                self.files.push(opened.into());
            }
            What::Pids => {
                // The kernel counts it as it does a process, which would take memory besides.
                let waiting = thread::Builder::new().stack_size(STACK);
                waiting.spawn(|| {
                    loop {
                        pause();
                    }
                })?;
            }
            What::Mounts => {
                let place = Path::new("/var/tmp/exhaust");
                fs::create_dir_all(place)?;
                let none = None::<&str>;
                mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none)?;
            }
            What::Memory => self.memory.push(vec![1; 1 << 20]),
            What::Conntrack => {
                let flow = self.with_files(net::flow)?;
                self.flows.push(flow);
            }
            What::Keys => add_key(number)?,
        }
        Ok(())
    }
}

/// A key as large as one may be, that lasts as long as this process (add_key(2)).
fn add_key(number: u64) -> io::Result<()> {
    let name = CString::new(format!("fief-bench-{number}"))?;
    let payload = [1u8; KEY];
    // SAFETY: both names end in a zero, and the kernel reads `payload` up to its length.
    let id = unsafe {
        libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            libc::KEY_SPEC_PROCESS_KEYRING,
        )
    };
    if id < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_that_needs_no_permission_is_to_be_had() {
        let mut kept = Kept::default();
        for what in [What::Inotify, What::Files, What::Memory, What::Pids] {
            kept.take(what, 0).unwrap();
        }
        assert_eq!(
            (kept.inotify.len(), kept.files.len(), kept.memory.len()),
            (1, 1, 1)
        );
    }
}
