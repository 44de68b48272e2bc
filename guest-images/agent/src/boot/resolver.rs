//! `/etc/resolv.conf`: fief's if nobody else wrote one.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Component, Path, PathBuf};

use crate::text;

/// The first line of what is fief's.
const MARK: &str = "# Made by fief at every start. Without this line the file is yours.";

/// Names the servers to ask. A file that is not empty and lacks the mark is somebody's and stays.
///
/// An image with systemd-resolved has a link into `/run` there, which is empty at boot. Then the file that it leads to is
/// made, for programs before resolved starts or where it never does, and resolved itself is told.
///
/// # Errors
/// The file system's.
pub fn set_up(servers: &[IpAddr], root: &Path) -> io::Result<()> {
    let path = root.join("etc/resolv.conf");
    if servers.is_empty() {
        return Ok(());
    }
    match fs::read_link(&path) {
        Ok(target) => match below_run(&target) {
            Some(target) => {
                write(&root.join(target), &text(servers))?;
                let words: Vec<_> = servers.iter().map(IpAddr::to_string).collect();
                let settings = format!("{MARK}\n[Resolve]\nDNS={}\n", words.join(" "));
                write(
                    &root.join("run/systemd/resolved.conf.d/fief.conf"),
                    &settings,
                )
            }
            // Somebody's own arrangement.
            None => Ok(()),
        },
        Err(_) => match text::read(&path) {
            Ok(found) if found.trim().is_empty() || found.lines().next() == Some(MARK) => {
                write(&path, &text(servers))
            }
            _ => Ok(()),
        },
    }
}

fn text(servers: &[IpAddr]) -> String {
    let lines: Vec<_> = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    format!("{MARK}\n{}", lines.concat())
}

/// What a link in `/etc` leads to, relative to the root, if that is below `/run`.
fn below_run(target: &Path) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for part in Path::new("/etc").join(target).components() {
        match part {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(part) => path.push(part),
            _ => {}
        }
    }
    path.starts_with("run").then_some(path)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    text::write(path, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        root
    }

    fn servers() -> [IpAddr; 2] {
        ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]
    }

    #[test]
    fn an_empty_or_missing_file_and_ones_own_are_written() {
        let root = root();
        let path = root.path().join("etc/resolv.conf");
        for before in [
            None,
            Some(String::new()),
            Some(text(&[]) + "nameserver 9.9.9.9\n"),
        ] {
            if let Some(before) = before {
                fs::write(&path, before).unwrap();
            }
            set_up(&servers(), root.path()).unwrap();
            let found = fs::read_to_string(&path).unwrap();
            assert_eq!(
                found,
                format!("{MARK}\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n")
            );
        }
    }

    #[test]
    fn what_somebody_wrote_or_arranged_stays() {
        let root = root();
        let path = root.path().join("etc/resolv.conf");
        let own = format!("nameserver 9.9.9.9\n{MARK}\n");
        fs::write(&path, &own).unwrap();
        set_up(&servers(), root.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("own.conf", &path).unwrap();
        set_up(&servers(), root.path()).unwrap();
        assert!(!root.path().join("etc/own.conf").exists());
        fs::remove_file(&path).unwrap();
        let mode = nix::sys::stat::Mode::S_IRWXU;
        nix::unistd::mkfifo(&path, mode).unwrap();
        set_up(&servers(), root.path()).unwrap();
        // Without servers there is nothing to say.
        fs::remove_file(&path).unwrap();
        set_up(&[], root.path()).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_link_to_systemd_resolved_leads_to_the_servers() {
        for target in [
            "../run/systemd/resolve/stub-resolv.conf",
            "/run/systemd/resolve/stub-resolv.conf",
        ] {
            let root = root();
            std::os::unix::fs::symlink(target, root.path().join("etc/resolv.conf")).unwrap();
            set_up(&servers(), root.path()).unwrap();
            let read = |path| fs::read_to_string(root.path().join(path)).unwrap();
            assert!(
                read("run/systemd/resolve/stub-resolv.conf").contains("nameserver 192.0.2.1\n")
            );
            let told = read("run/systemd/resolved.conf.d/fief.conf");
            assert!(
                told.ends_with("[Resolve]\nDNS=192.0.2.1 2001:db8::1\n"),
                "{told}"
            );
        }
    }
}
