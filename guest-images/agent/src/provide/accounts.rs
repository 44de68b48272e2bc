//! An account made by hand: images have useradd, adduser or neither, and an agent cannot wait for them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::Path;

use nix::unistd::Uid;

use super::files::{self, Failure};
use crate::account::{self, Account, look_up};

/// Ids of people's accounts (login.defs(5), UID_MIN and UID_MAX).
const IDS: std::ops::RangeInclusive<u32> = 1000..=59_999;
/// Subordinate ids for containers of the user's own, as useradd gives the first one.
const SUBORDINATE: &str = "100000:65536";
/// Day of the last change of a password that there is not; 0 would mean "must be changed".
const DAY: u32 = 20_000;

/// The account of that name; made with a home if there is none. The caller holds the [`lock`](files::lock).
///
/// # Errors
/// The name is that of an account nobody can log in to, or a file cannot be written.
pub fn ensure(name: &str, root: &Path) -> Result<Account, Failure> {
    let etc = root.join("etc");
    if let Ok(account) = look_up(name, &etc) {
        let closed = |shell: &str| shell.ends_with("/nologin") || shell.ends_with("/false");
        return match account.shell.as_deref() {
            Some(shell) if closed(shell) => Err(Failure::new(format!(
                "the image's own account '{name}' is not for logging in ({shell}); call the tenant something else"
            ))),
            _ => Ok(account),
        };
    }
    make(name, root, &etc)?;
    look_up(name, &etc).map_err(|error| Failure::new(error.message))
}

fn make(name: &str, root: &Path, etc: &Path) -> Result<(), Failure> {
    let read = |file: &str| account::read(&etc.join(file));
    let (passwd, group) = (read("passwd"), read("group"));
    let taken = |id: u32| has(&passwd, 2, &id.to_string()) || has(&group, 2, &id.to_string());
    let id = IDS
        .into_iter()
        .find(|id| !taken(*id))
        .ok_or_else(|| Failure::new("no user id is free in the tenant"))?;
    let home = format!("/home/{name}");
    make_home(&root.join("home").join(name), id, root)?;
    // The entry in passwd comes last: with it the account is complete.
    let shadowed = etc.join("shadow").exists();
    add(etc, "group", 0o644, name, &format!("{name}:x:{id}:"))?;
    if etc.join("gshadow").exists() {
        add(etc, "gshadow", 0o640, name, &format!("{name}:!::"))?;
    }
    if shadowed {
        // `*`: no password opens it. `!` would be "locked", for keys too.
        let line = format!("{name}:*:{DAY}:0:99999:7:::");
        add(etc, "shadow", 0o640, name, &line)?;
    }
    for file in ["subuid", "subgid"] {
        if etc.join(file).exists() && !read(file).contains(SUBORDINATE) {
            add(etc, file, 0o644, name, &format!("{name}:{SUBORDINATE}"))?;
        }
    }
    // A group of that name may have been there, with another number.
    let groups = read("group");
    let gid = field(&groups, name, 2).and_then(|gid| gid.parse().ok());
    let shell = ["/bin/bash", "/bin/sh"]
        .into_iter()
        .find(|shell| root.join(shell.trim_start_matches('/')).exists())
        .unwrap_or("/bin/sh");
    let password = if shadowed { "x" } else { "*" };
    let gid: u32 = gid.unwrap_or(id);
    let line = format!("{name}:{password}:{id}:{gid}:{name}:{home}:{shell}");
    add(etc, "passwd", 0o644, name, &line)
}

/// Adds a line to a database that has none of that name.
fn add(etc: &Path, file: &str, mode: u32, name: &str, line: &str) -> Result<(), Failure> {
    files::update(&etc.join(file), mode, |text| {
        let gap = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        if has(text, 0, name) {
            text.to_owned()
        } else {
            format!("{text}{gap}{line}\n")
        }
    })
}

fn has(database: &str, index: usize, value: &str) -> bool {
    database
        .lines()
        .any(|line| line.split(':').nth(index) == Some(value))
}

fn field<'a>(database: &'a str, name: &str, index: usize) -> Option<&'a str> {
    let line = database
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    line.split(':').nth(index)
}

/// Makes a home with the skeleton's files. One that is there is somebody's, and stays as it is.
fn make_home(home: &Path, id: u32, root: &Path) -> Result<(), Failure> {
    let failed = Failure::at(home);
    let above = home.parent().unwrap_or(root);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(above)
        .map_err(&failed)?;
    match DirBuilder::new().mode(0o755).create(home) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.map_err(&failed)?,
    }
    // Root's until it is filled: nobody else can put anything into it meanwhile.
    let skeleton = fs::read_dir(root.join("etc/skel"));
    for entry in skeleton.into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let copy = home.join(entry.file_name());
            fs::copy(entry.path(), &copy)
                .and_then(|_| give(&copy, id))
                .map_err(Failure::at(&copy))?;
        }
    }
    give(home, id).map_err(failed)
}

/// Only root can give; others have what they make.
fn give(path: &Path, id: u32) -> io::Result<()> {
    if Uid::effective().is_root() {
        chown(path, Some(id), Some(id))?;
    }
    Ok(())
}
