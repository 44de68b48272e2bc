//! The work that is measured in tenants: one kind of system call, over and over. The same static program runs in a machine, a
//! container and on the plain host.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::ValueEnum;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{ForkResult, Pid, fork, pipe};

use crate::error::{Error, Result, failed};
use crate::net;

/// A file of every image.
const FILE: &str = "/etc/passwd";
/// A program of every image that does nothing.
pub const PROGRAM: &str = "/bin/true";
/// Mapped at a time, in pages of 4 KiB.
const PAGES: usize = 4096;
const PAGE: usize = 4096;

/// What is done over and over (after lmbench: McVoy and Staelin, USENIX 1996).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// The shortest system call.
    Getpid,
    /// Open and close a file.
    Open,
    /// Make a process that becomes another program and ends.
    Fork,
    /// Touch a fresh page of memory.
    Fault,
    /// A byte into a pipe and out again, in one process.
    Pipe,
    /// A byte to another process on the same processor and back: two switches.
    Switch,
    /// A byte over TCP to outside and back.
    Tcp,
    /// An ICMP echo request to outside and its answer.
    Ping,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    work: Work,
    /// How often
    count: u64,
}

/// Does it, and prints how long it took: nanoseconds by the clock of whoever's kernel this is.
///
/// # Errors
/// A system call failed.
pub fn main(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let done = match args.work {
        Work::Getpid => getpid(args.count),
        Work::Open => open(args.count),
        Work::Fork => processes(args.count),
        Work::Fault => faults(args.count),
        Work::Pipe => bytes(args.count),
        Work::Switch => switches(args.count),
        Work::Tcp => net::round_trips(args.count),
        Work::Ping => net::pings(args.count),
    };
    done.map_err(failed(format!("do {:?}", args.work)))?;
    println!("{}", begun.elapsed().as_nanos());
    Ok(())
}

/// A program whose time is to be taken.
#[derive(Debug, clap::Args)]
pub struct Timed {
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

/// Runs a program to its end, and prints how long it took as [`main`] does. What it prints itself goes to standard error.
///
/// # Errors
/// It fails.
pub fn time(args: &Timed) -> Result<()> {
    let (program, words) = args.words.split_first().unzip();
    let program = program.map_or("", String::as_str);
    let errors = std::io::stderr().as_fd().try_clone_to_owned();
    let mut command = Command::new(program);
    command.args(words.unwrap_or_default()).stdin(Stdio::null());
    command.stdout(errors.map_err(failed("use standard error twice"))?);
    let begun = Instant::now();
    let status = command.status().map_err(failed(format!("run {program}")))?;
    let took = begun.elapsed();
    if !status.success() {
        return Err(Error::Other(format!("{program} failed ({status})")));
    }
    println!("{}", took.as_nanos());
    Ok(())
}

fn getpid(count: u64) -> io::Result<()> {
    for _ in 0..count {
        // SAFETY: takes nothing, and cannot fail. (libc's own function might remember the answer.)
        unsafe { libc::syscall(libc::SYS_getpid) };
    }
    Ok(())
}

fn open(count: u64) -> io::Result<()> {
    (0..count).try_for_each(|_| File::open(FILE).map(drop))
}

fn processes(count: u64) -> io::Result<()> {
    for _ in 0..count {
        let status = Command::new(PROGRAM).stdin(Stdio::null()).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("{PROGRAM}: {status}")));
        }
    }
    Ok(())
}

fn faults(count: u64) -> io::Result<()> {
    let mut left = usize::try_from(count).unwrap_or(usize::MAX);
    while left > 0 {
        let pages = left.min(PAGES);
        left -= pages;
        // SAFETY: asks for fresh memory, wherever the kernel has room for it.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                pages * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `memory` is `pages` pages long and nobody else's; they are touched by their first bytes, then given back. A
        // huge page would be touched once for many.
        unsafe {
            libc::madvise(memory, pages * PAGE, libc::MADV_NOHUGEPAGE);
            for page in 0..pages {
                memory.cast::<u8>().add(page * PAGE).write_volatile(1);
            }
            libc::munmap(memory, pages * PAGE);
        }
    }
    Ok(())
}

fn bytes(count: u64) -> io::Result<()> {
    let (out, into) = pipe()?;
    let (mut out, mut into) = (File::from(out), File::from(into));
    let mut byte = [1];
    (0..count).try_for_each(|_| {
        into.write_all(&byte)?;
        out.read_exact(&mut byte)
    })
}

fn switches(count: u64) -> io::Result<()> {
    let mut first = CpuSet::new();
    first.set(0)?;
    // Where that is not this process's, it stays where it may be.
    let _ = sched_setaffinity(Pid::from_raw(0), &first);
    let ((there, to), (back, from)) = (pipe()?, pipe()?);
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop((to, back));
            let answered = answer(File::from(there), File::from(from));
            // SAFETY: a forked child leaves without its parent's exit handlers.
            unsafe { libc::_exit(i32::from(answered.is_err())) }
        }
        ForkResult::Parent { child } => {
            drop((there, from));
            let (mut to, mut back) = (File::from(to), File::from(back));
            let mut byte = [1];
            for _ in 0..count {
                to.write_all(&byte)?;
                back.read_exact(&mut byte)?;
            }
            drop(to);
            nix::sys::wait::waitpid(child, None)?;
            Ok(())
        }
    }
}

/// Sends back each byte until there are no more.
fn answer(mut from: File, mut to: File) -> io::Result<()> {
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        to.write_all(&byte)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_work_is_done() {
        getpid(10).unwrap();
        open(10).unwrap();
        processes(2).unwrap();
        faults(PAGES as u64 + 10).unwrap();
        bytes(10).unwrap();
        // `switches` forks, which a test's threads forbid: the end-to-end test does it.
    }
}
