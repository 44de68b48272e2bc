//! What every system has of a network: a name and a loopback.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::{log, text};

/// Brings `lo` up; its addresses come by themselves.
pub fn loopback_up() {
    let up = || -> nix::Result<()> {
        let control = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        // SAFETY: SIOCSIFFLAGS reads the ifreq, which lives until the call returns.
        Errno::result(unsafe {
            libc::ioctl(
                control.as_raw_fd(),
                libc::SIOCSIFFLAGS as _,
                &raw const request,
            )
        })?;
        Ok(())
    };
    match up() {
        // A kernel without network is a choice.
        Ok(()) | Err(Errno::EAFNOSUPPORT) => {}
        Err(error) => log::error(format!("cannot bring the loopback interface up: {error}")),
    }
}

/// Sets the host name, in the files too: the image's init reads `/etc/hostname`, and sudo wants to resolve the name.
///
/// # Errors
/// The kernel's, or the file system's.
pub fn set_name(name: &str) -> io::Result<()> {
    // A container's runtime may have set it, and be the only one that may.
    if nix::unistd::gethostname()? != *name {
        nix::unistd::sethostname(name)?;
    }
    fs::create_dir_all("/etc")?;
    let file = Path::new("/etc/hostname");
    if text::read(file).unwrap_or_default().trim() != name {
        text::write(file, &format!("{name}\n")).map_err(at(file))?;
    }
    let file = Path::new("/etc/hosts");
    if let Some(hosts) = with_name(&text::read(file).map_err(at(file))?, name) {
        text::write(file, &hosts).map_err(at(file))?;
    }
    Ok(())
}

fn at(file: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::other(format!("{}: {error}", file.display()))
}

/// The hosts file with what is missing in it; None if nothing is.
fn with_name(hosts: &str, name: &str) -> Option<String> {
    let knows = |name: &str| {
        let words = |line: &str| {
            line.split('#')
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .skip(1)
                .any(|word| word == name)
        };
        hosts.lines().any(words)
    };
    let mut more = String::new();
    if !knows("localhost") {
        more += "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
    }
    if !knows(name) {
        more += &format!("127.0.1.1\t{name}\n");
    }
    let gap = if hosts.is_empty() || hosts.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    (!more.is_empty()).then(|| format!("{hosts}{gap}{more}"))
}

#[cfg(test)]
mod tests {
    use super::with_name;

    #[test]
    fn only_what_is_missing_is_added_to_the_hosts_file() {
        let fresh = with_name("", "alice").unwrap();
        assert!(fresh.contains("127.0.0.1\tlocalhost\n") && fresh.ends_with("127.0.1.1\talice\n"));
        assert_eq!(with_name(&fresh, "alice"), None);
        assert_eq!(
            with_name("127.0.0.1 localhost # alice", "alice")
                .unwrap()
                .lines()
                .count(),
            2
        );
    }
}
