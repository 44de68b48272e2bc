//! Who may use the tenants of a machine: root, and, where root said so with `fief setup --group`, the members of a group,
//! whose `fief` becomes root's by way of sudo. The state directory is root's alone in any case.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Gid, Group, getegid, geteuid, getgroups};

use super::{Error, Result};

/// Where root's tenants are.
pub const SYSTEM_STATE: &str = "/var/lib/fief";
/// Where sudo looks for who may do what.
const SUDOERS: &str = "/etc/sudoers.d";

/// How a user who is not root gets at tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// In a state directory of their own.
    Own,
    /// As root.
    Sudo,
    /// Not: there are tenants of root, and this user is in no group that may use them.
    Refused,
}

/// `system` is the group of root's state directory, if there is one.
fn decide(own_is_there: bool, system: Option<Gid>, groups: &[Gid]) -> Access {
    match system {
        Some(group) if group.as_raw() != 0 && groups.contains(&group) => Access::Sudo,
        Some(_) if !own_is_there => Access::Refused,
        _ => Access::Own,
    }
}

/// Lets a user who gave no state directory on to the tenants they may use: `own` is where theirs are or would be. Does
/// not return if they are root's.
pub fn pass(own: &Path) -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    let system = fs::metadata(SYSTEM_STATE).ok();
    let system = system.filter(|data| data.is_dir() && data.uid() == 0);
    let system = system.map(|data| Gid::from_raw(data.gid()));
    let mut groups = getgroups()?;
    groups.push(getegid());
    match decide(own.exists(), system, &groups) {
        Access::Own => Ok(()),
        Access::Sudo => Err(become_root()),
        Access::Refused => {
            let group = system.filter(|group| group.as_raw() != 0);
            let group = group.and_then(|group| Group::from_gid(group).ok().flatten());
            let how = match group {
                Some(group) => format!("ask root to put you in the group '{}'", group.name),
                None => {
                    "ask root for `fief setup --group NAME` with a group that you are in".to_owned()
                }
            };
            Err(Error::new(format!(
                "the tenants of this machine are root's, in {SYSTEM_STATE}; {how}, or give --state-dir for tenants of your \
                 own, without network and limits"
            )))
        }
    }
}

/// The same command line as root; returns only what keeps it from running.
fn become_root() -> Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error.into(),
    };
    // -n: a question for a password would be one for something that the group already has.
    let error = Command::new("sudo")
        .args(["-n", "-E", "--"])
        .arg(program)
        .args(std::env::args_os().skip(1).collect::<Vec<OsString>>())
        .exec();
    Error::new(format!(
        "your group may use fief by way of sudo, which cannot be run: {error}; have the package sudo installed"
    ))
}

/// Lets the members of a group use fief as root.
pub fn permit(name: &str, state: &Path) -> Result<()> {
    let refuse = |why: String| {
        Err(Error::new(format!(
            "the group '{name}' is not let in: {why}"
        )))
    };
    if !geteuid().is_root() {
        return refuse("only root may do that; run it with sudo".to_owned());
    }
    if state != Path::new(SYSTEM_STATE) {
        return refuse(format!(
            "that is for tenants in {SYSTEM_STATE}; leave --state-dir and FIEF_STATE_DIR out"
        ));
    }
    // It becomes a line of a file whose words have meanings.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let group = match Group::from_name(name)? {
        Some(group) if name.bytes().all(plain) => group,
        _ => {
            return refuse(format!(
                "there is no such group; make it with `groupadd {name}`"
            ));
        }
    };
    if group.gid.as_raw() == 0 {
        return refuse("that is root's own; take another".to_owned());
    }
    let program = std::env::current_exe()?;
    if let Some(path) = changed_by_others(&program)? {
        return refuse(format!(
            "others than root may change {}, and would be root by that; install fief in /usr/local/bin",
            path.display()
        ));
    }
    if !Path::new(SUDOERS).is_dir() {
        return refuse(format!("there is no {SUDOERS}; install the package sudo"));
    }
    let mut directory = fs::DirBuilder::new();
    directory.recursive(true).mode(0o700).create(state)?;
    fs::set_permissions(state, fs::Permissions::from_mode(0o700))?;
    write_rule(name, &program)?;
    Ok(std::os::unix::fs::chown(
        state,
        None,
        Some(group.gid.as_raw()),
    )?)
}

/// The first of a program and the directories it is in that somebody else than root may change.
fn changed_by_others(program: &Path) -> Result<Option<PathBuf>> {
    for path in program.ancestors() {
        let data = fs::metadata(path)?;
        let sticky = data.is_dir() && data.mode() & 0o1000 != 0;
        if data.uid() != 0 || (data.mode() & 0o022 != 0 && !sticky) {
            return Ok(Some(path.to_owned()));
        }
    }
    Ok(None)
}

fn write_rule(group: &str, program: &Path) -> Result<()> {
    let program = program.display().to_string();
    if program.contains(|c: char| c.is_whitespace() || ",:=\\".contains(c)) {
        return Err(Error::new(format!(
            "the path {program} cannot be told to sudo; install fief in /usr/local/bin"
        )));
    }
    let rule = format!(
        "# Written by `fief setup --group {group}`: who is in that group is as mighty as root.\n\
         %{group} ALL=(root) NOPASSWD:SETENV: {program}\n"
    );
    let mut file = tempfile::Builder::new()
        .prefix(".fief-")
        .permissions(fs::Permissions::from_mode(0o440))
        .tempfile_in(SUDOERS)?;
    std::io::Write::write_all(&mut file, rule.as_bytes())?;
    file.persist(Path::new(SUDOERS).join("fief"))
        .map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_uses_their_own_tenants_or_roots_if_they_may() {
        let (mine, other) = (Gid::from_raw(1000), Gid::from_raw(7));
        for (own, system, expected) in [
            (false, None, Access::Own),
            (true, None, Access::Own),
            (false, Some(mine), Access::Sudo),
            (true, Some(mine), Access::Sudo),
            (false, Some(other), Access::Refused),
            (true, Some(other), Access::Own),
            // Root's own group lets nobody in, whoever is in it.
            (false, Some(Gid::from_raw(0)), Access::Refused),
        ] {
            let groups = [mine, Gid::from_raw(0)];
            assert_eq!(decide(own, system, &groups), expected, "{own} {system:?}");
        }
    }

    #[test]
    fn a_program_that_others_may_change_is_none_to_become_root_with() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("fief");
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(changed_by_others(&program).unwrap(), Some(program));
    }
}
