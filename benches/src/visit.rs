//! A small work that touches what most programs touch, the same in every subject: what of the host's kernel does it reach?

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::error::{Result, failed};
use crate::probe::PROGRAM;

/// Where it has its files.
const PLACE: &str = "/var/tmp/fief-bench-visit";
/// Written into a file, sent, and touched in memory.
const BYTES: usize = 256 << 10;
/// Between two rounds, so that who looks on sees the last one's end before the next begins.
const PAUSE: Duration = Duration::from_millis(200);
/// Nobody looks on so long.
const MOST: u32 = 10_000;

/// Does it over and over, with a line after each round, until nobody reads those.
///
/// # Errors
/// A part of it fails.
pub fn main() -> Result<()> {
    for _ in 0..MOST {
        round().map_err(failed("do the work that is traced"))?;
        if writeln!(io::stdout()).is_err() {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn round() -> io::Result<()> {
    files()?;
    network()?;
    let status = Command::new(PROGRAM).status()?;
    if !status.success() {
        return Err(io::Error::other(format!("{PROGRAM} failed ({status})")));
    }
    // As much is a mapping of its own.
    std::hint::black_box(vec![1u8; BYTES * 16]);
    Ok(())
}

fn files() -> io::Result<()> {
    let place = Path::new(PLACE);
    let _ = fs::remove_dir_all(place);
    fs::create_dir_all(place)?;
    let [one, other, link] = ["one", "other", "link"].map(|name| place.join(name));
    let mut file = File::create(&one)?;
    file.write_all(&vec![1; BYTES])?;
    file.sync_all()?;
    file.set_len(BYTES as u64 / 2)?;
    fs::set_permissions(&one, fs::Permissions::from_mode(0o600))?;
    fs::rename(&one, &other)?;
    symlink(&other, &link)?;
    let read = fs::read(&link)?;
    let (length, names) = (fs::metadata(&other)?.len(), fs::read_dir(place)?.count());
    if (read.len() as u64, names) != (length, 2) {
        return Err(io::Error::other("files are not what was written"));
    }
    fs::remove_file(&link)?;
    fs::remove_dir_all(place)
}

fn network() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut there = TcpStream::connect(listener.local_addr()?)?;
    let (mut here, _) = listener.accept()?;
    // Less than what waits in a socket.
    let mut bytes = vec![1; BYTES / 32];
    there.write_all(&bytes)?;
    here.read_exact(&mut bytes)?;
    let [one, other] = [0, 1].map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
    let (one, other) = (one?, other?);
    one.send_to(&[1], other.local_addr()?)?;
    other.recv_from(&mut bytes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_leaves_nothing_behind() {
        round().unwrap();
        assert!(!Path::new(PLACE).exists());
    }
}
