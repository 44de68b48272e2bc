//! Device nodes whose opening loads a module: tun, fuse, loop-control. systemd makes them through kmod; without it they
//! are the agent's.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::{log, text};

/// What every user may use, by udev's default rules; the rest is root's.
const OPEN_TO_ALL: [&str; 2] = ["fuse", "net/tun"];

/// One line of `modules.devname`: module, name below `/dev`, kind and number.
#[derive(Debug, PartialEq, Eq)]
struct Node<'a> {
    name: &'a str,
    kind: SFlag,
    major: u64,
    minor: u64,
}

/// Makes the nodes that the running kernel's modules ask for and that are not there, and opens to all users what is theirs.
pub fn make() {
    // A kernel without modules has no list, and made its nodes itself.
    let list = nix::sys::utsname::uname().map(|system| {
        Path::new("/lib/modules")
            .join(system.release())
            .join("modules.devname")
    });
    let text = list
        .ok()
        .and_then(|list| text::read(&list).ok())
        .unwrap_or_default();
    for node in text.lines().filter_map(parse) {
        let path = PathBuf::from("/dev").join(node.name);
        if path.exists() {
            continue;
        }
        if let Some(directory) = path.parent() {
            let _ = fs::create_dir_all(directory);
        }
        let device = makedev(node.major, node.minor);
        if let Err(error) = mknod(&path, node.kind, Mode::S_IRUSR | Mode::S_IWUSR, device) {
            log::error(format!("cannot make {}: {error}", path.display()));
        }
    }
    // Whoever made them: the kernel leaves this to udev too.
    for name in OPEN_TO_ALL {
        let path = Path::new("/dev").join(name);
        match fs::set_permissions(&path, fs::Permissions::from_mode(0o666)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::error(format!("cannot open {} to all: {error}", path.display()));
            }
            _ => {}
        }
    }
}

fn parse(line: &str) -> Option<Node<'_>> {
    let mut words = line.split_whitespace();
    let (_module, name, number) = (words.next()?, words.next()?, words.next()?);
    let (kind, number) = match number.split_at_checked(1)? {
        ("c", number) => (SFlag::S_IFCHR, number),
        ("b", number) => (SFlag::S_IFBLK, number),
        _ => return None,
    };
    let (major, minor) = number.split_once(':')?;
    let safe =
        !name.starts_with('/') && name.split('/').all(|part| !part.is_empty() && part != "..");
    safe.then_some(Node {
        name,
        kind,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_node_and_comments_and_nonsense_do_not() {
        let node = Node {
            name: "net/tun",
            kind: SFlag::S_IFCHR,
            major: 10,
            minor: 200,
        };
        assert_eq!(parse("tun net/tun c10:200"), Some(node));
        assert_eq!(
            parse("# Device nodes to trigger on-demand module loading."),
            None
        );
        for bad in [
            "tun ../tun c1:2",
            "tun /tun c1:2",
            "tun tun x1:2",
            "tun tun c1",
            "tun",
            "",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
