//! Users and groups, read by hand: a static glibc has no name service switch.

use std::io::Read;
use std::path::Path;

use fief_agent_proto::{ErrorKind, RemoteError};

use crate::text;

/// Whom a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// None if the user has no entry in `/etc/passwd`.
    pub name: Option<String>,
    pub home: Option<String>,
    pub shell: Option<String>,
}

/// Looks up `name`, `name:group`, `uid` or `uid:gid` in the databases below `etc`. A number needs no entry.
pub fn look_up(wanted: &str, etc: &Path) -> Result<Account, RemoteError> {
    let (user, group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let passwd = read(&etc.join("passwd"));
    let groups = read(&etc.join("group"));
    let number = user.parse::<u32>().ok();
    let entry = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| match fields[..] {
            [name, _, uid, _, ..] => {
                name == user || (number.is_some() && uid.parse().ok() == number)
            }
            _ => false,
        });
    let field = |index: usize| entry.as_ref().and_then(|fields| fields.get(index)).copied();
    let uid = match (field(2).and_then(|uid| uid.parse().ok()), number) {
        (Some(uid), _) | (None, Some(uid)) => uid,
        (None, None) => return Err(missing("user", user, "/etc/passwd")),
    };
    let gid = match group {
        Some(group) => {
            group_id(group, &groups).ok_or_else(|| missing("group", group, "/etc/group"))?
        }
        // docker's rule for a number without an entry
        None => field(3).and_then(|gid| gid.parse().ok()).unwrap_or(0),
    };
    let name = field(0).map(str::to_owned);
    let supplementary = match (&name, group) {
        (Some(name), None) => member_of(name, gid, &groups),
        _ => vec![gid],
    };
    let non_empty = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    Ok(Account {
        uid,
        gid,
        groups: supplementary,
        name,
        home: field(5).and_then(non_empty),
        shell: field(6).and_then(non_empty),
    })
}

fn missing(what: &str, name: &str, file: &str) -> RemoteError {
    let message =
        format!("no {what} '{name}' in the tenant's {file}; name another or give a number");
    RemoteError {
        kind: ErrorKind::NoSuchUser,
        message,
    }
}

fn group_id(wanted: &str, groups: &str) -> Option<u32> {
    wanted.parse().ok().or_else(|| {
        groups.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(wanted)).then(|| fields.nth(1)?.parse().ok())?
        })
    })
}

/// The primary group and every group that names the user.
fn member_of(name: &str, primary: u32, groups: &str) -> Vec<u32> {
    let mut ids = vec![primary];
    for line in groups.lines() {
        if let [_, _, gid, members, ..] = line.split(':').collect::<Vec<_>>()[..]
            && members.split(',').any(|member| member == name)
            && let Ok(gid) = gid.parse()
            && !ids.contains(&gid)
        {
            ids.push(gid);
        }
    }
    ids
}

/// The text of a database, as far as it is read. A missing one is empty: a minimal image has none.
pub fn read(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = text::open(path, 0) {
        let _ = file.take(text::LONGEST).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:100:Ann:/home/ann:/bin/zsh\nbob:x:1001:101::\n";
        std::fs::write(dir.path().join("passwd"), passwd).unwrap();
        let group = "root:x:0:\nusers:x:100:\nsudo:x:27:bob,ann\nbad:x:NaN:ann\nstaff:x:50:annabel\nkvm:x:28:ann\n";
        std::fs::write(dir.path().join("group"), group).unwrap();
        dir
    }

    #[test]
    fn a_name_brings_home_shell_and_the_groups_that_name_it() {
        let etc = etc();
        let ann = look_up("ann", etc.path()).unwrap();
        assert_eq!(
            (ann.uid, ann.gid, ann.groups),
            (1000, 100, vec![100, 27, 28])
        );
        assert_eq!(
            (ann.home.as_deref(), ann.shell.as_deref()),
            (Some("/home/ann"), Some("/bin/zsh"))
        );
    }

    #[test]
    fn numbers_need_no_entry_but_find_one() {
        let etc = etc();
        assert_eq!(
            look_up("1000", etc.path()).unwrap().name.as_deref(),
            Some("ann")
        );
        let stranger = look_up("4242:77", etc.path()).unwrap();
        assert_eq!(
            (stranger.uid, stranger.gid, stranger.groups, stranger.name),
            (4242, 77, vec![77], None)
        );
        assert_eq!(look_up("4242", etc.path()).unwrap().gid, 0);
    }

    #[test]
    fn an_explicit_group_replaces_all_others() {
        let etc = etc();
        let ann = look_up("ann:staff", etc.path()).unwrap();
        assert_eq!((ann.gid, ann.groups), (50, vec![50]));
    }

    #[test]
    fn databases_that_are_fifos_are_empty_ones_and_hold_up_nobody() {
        let etc = tempfile::tempdir().unwrap();
        for file in ["passwd", "group"] {
            let mode = nix::sys::stat::Mode::S_IRWXU;
            nix::unistd::mkfifo(&etc.path().join(file), mode).unwrap();
        }
        assert_eq!(look_up("0", etc.path()).unwrap().home, None);
        let error = look_up("ann", etc.path()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSuchUser);
    }

    #[test]
    fn empty_fields_and_missing_names_are_told_apart() {
        let etc = etc();
        assert_eq!(look_up("bob", etc.path()).unwrap().home, None);
        assert_eq!(
            look_up("eve", etc.path()).unwrap_err().kind,
            ErrorKind::NoSuchUser
        );
        assert_eq!(
            look_up("ann:nobody", etc.path()).unwrap_err().kind,
            ErrorKind::NoSuchUser
        );
        assert_eq!(
            look_up("root", Path::new("/nonexistent")).unwrap_err().kind,
            ErrorKind::NoSuchUser
        );
    }
}
