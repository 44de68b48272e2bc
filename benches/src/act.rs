//! A neighbour that does something of all that a kernel counts, and one that does nothing in the same way.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::pause;

use crate::error::{Result, failed};
use crate::exhaust::{Kept, What};
use crate::probe::PROGRAM;

/// How long it works. Then it keeps what it has until it is ended.
pub const WORK: Duration = Duration::from_millis(500);
/// Written at a time, in bytes.
const BLOCK: usize = 1 << 20;
/// Steps of a computation, at a time.
const STEPS: u64 = 1 << 20;
/// What it keeps, of each: mebibytes of memory, open files, keys.
const KEEPS: u64 = 64;
const FILE: &str = "/var/tmp/fief-bench-act";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do nothing for the same time
    #[arg(long)]
    quiet: bool,
}

/// Works, prints a line, and stays.
///
/// # Errors
/// Something cannot be done.
pub fn main(args: &Args) -> Result<()> {
    let _kept = if args.quiet {
        std::thread::sleep(WORK);
        None
    } else {
        Some(act().map_err(failed("do what a neighbour does"))?)
    };
    println!();
    loop {
        pause();
    }
}

fn act() -> io::Result<(Kept, Vec<Flock<File>>)> {
    let until = Instant::now() + WORK;
    let mut kept = Kept::default();
    let mut locks = Vec::new();
    for number in 0..KEEPS {
        kept.take(What::Memory, number)?;
        kept.take(What::Files, number)?;
        // Which a container may not have.
        let _ = kept.take(What::Keys, number);
        let file = unnamed(&format!("{FILE}-{number}"))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive);
        locks.push(lock.map_err(|(_, errno)| errno)?);
    }
    let block = vec![1; BLOCK];
    let mut file = unnamed(FILE)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let own = socket.local_addr()?;
    while Instant::now() < until {
        std::hint::black_box((0..STEPS).fold(0, |sum: u64, one| sum.rotate_left(5) ^ one));
        Command::new(PROGRAM).status()?;
        file.write_all(&block)?;
        file.sync_all()?;
        socket.send_to(&[1], own)?;
        socket.recv_from(&mut [0])?;
    }
    Ok((kept, locks))
}

/// A file that is gone when it is closed.
fn unnamed(path: &str) -> io::Result<File> {
    let file = File::create(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_locks_and_leaves_no_files() {
        let (_kept, locks) = act().unwrap();
        assert_eq!(locks.len() as u64, KEEPS);
        assert!(!fs::exists(FILE).unwrap() && !fs::exists(format!("{FILE}-0")).unwrap());
    }
}
