//! `--background`: the probe goes on in a child, and the caller returns once that child is ready, so that no test needs to
//! guess when a server listens.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use nix::fcntl::OFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe2, setsid};

use crate::options::Options;
use crate::{Failure, Result, misuse, probe};

/// The way to tell a waiting parent, and where to print afterwards.
static READY: Mutex<Option<(OwnedFd, File)>> = Mutex::new(None);

/// Runs the probe here, or in a child that was told to go on.
///
/// # Errors
/// As the probe's.
pub fn run(words: &[&str], options: &Options) -> Result<()> {
    if !options.background {
        return probe(words, options);
    }
    let log = options.log.as_deref().unwrap_or("/dev/null");
    let log = OpenOptions::new().create(true).append(true).open(log);
    let log = log.map_err(misuse("cannot open the log"))?;
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).map_err(misuse("cannot make a pipe"))?;
    // SAFETY: no other thread was started yet.
    match unsafe { fork() }.map_err(misuse("cannot start a child"))? {
        ForkResult::Child => {
            drop(told);
            if let Ok(mut ready) = READY.lock() {
                *ready = Some((tell, log));
            }
            probe(words, options)
        }
        ForkResult::Parent { child } => {
            drop(tell);
            let mut byte = [0];
            if matches!(File::from(told).read(&mut byte), Ok(1)) {
                return Ok(());
            }
            // It has said why on this process's standard error.
            let why = "it ended before it was ready".to_owned();
            match waitpid(child, None) {
                Ok(WaitStatus::Exited(_, 2)) => Err(Failure::Misuse(why)),
                _ => Err(Failure::Refused(why)),
            }
        }
    }
}

/// Says that from now on nothing is missed: by a line, or to the parent of a probe in the background.
pub fn ready() {
    println!("ready");
    let _ = std::io::stdout().flush();
    let Some((tell, log)) = READY.lock().ok().and_then(|mut ready| ready.take()) else {
        return;
    };
    let _ = setsid();
    let null = File::open("/dev/null").ok();
    for (number, file) in [(0, null.as_ref()), (1, Some(&log)), (2, Some(&log))] {
        if let Some(file) = file {
            // SAFETY: only replaces the standard descriptors, which nothing in this process owns.
            unsafe { libc::dup2(file.as_raw_fd(), number) };
        }
    }
    let _ = nix::unistd::write(&tell, b"r");
}
