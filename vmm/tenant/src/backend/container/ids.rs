//! Ranges of user and group ids: what a container's ids are on the host, no two tenants' alike.
//!
//! A tenant's range is written down in its directory at its first start, and kept. Whose it is now is written down for the
//! whole machine, as state directories share it: `/run/fief/ids/<number>` holds the path of the tenant's directory, and
//! counts while that is there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::store::{FileError, Held, MACHINE, Tenant, failed, read_json, write_json};

/// Ids of a tenant: as many as the first 16 bits count, which programs expect to have.
pub const COUNT: u32 = 1 << 16;
/// Beyond the ids that useradd, systemd and other container managers give away (systemd.io, "Users, Groups, UIDs and GIDs on
/// systemd Systems"), and below those that some programs take for negative numbers.
const FIRST: u32 = 0x7000_0000;
const RANGES: u32 = 0x0fff;
/// Settings of containers, in the state directory: `{"first_id": 1879048192, "ranges": 4095}`.
const SETTINGS: &str = "containers.json";

/// Ids of this machine that stand for a tenant's own from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdRange {
    pub first: u32,
    pub count: u32,
}

/// The range after those that tenants have without settings of their own, for containers that are no tenant's. One whose
/// settings reach it is not harmed: equal ids meet no file, and the processes are in namespaces of their own.
pub const NOBODYS: IdRange = IdRange {
    first: FIRST + RANGES * COUNT,
    count: COUNT,
};

/// Why a tenant has no range.
#[derive(Debug, thiserror::Error)]
pub enum IdsError {
    #[error(
        "all {ranges} ranges of user ids for containers are taken; remove tenants, or raise \"ranges\" in {}", file.display()
    )]
    Exhausted { ranges: u32, file: PathBuf },
    #[error(
        "{} has ids beyond what there is: \"first_id\" at least 65536, and \"first_id\" + 65536 * \"ranges\" below 4294967295", .0.display()
    )]
    Settings(PathBuf),
    #[error(
        "{} holds no range of ids; remove it, and the tenant gets another one (its disk stays as it is)", .0.display()
    )]
    Record(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    first_id: u32,
    ranges: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            first_id: FIRST,
            ranges: RANGES,
        }
    }
}

impl Settings {
    fn range(self, number: u32) -> IdRange {
        IdRange {
            first: self.first_id + number * COUNT,
            count: COUNT,
        }
    }

    fn fits(self) -> bool {
        let last = u64::from(self.first_id) + u64::from(self.ranges) * u64::from(COUNT);
        self.first_id >= COUNT && last < u64::from(u32::MAX)
    }
}

impl IdRange {
    /// Whether it can be a tenant's: as long as all are, and none of the host's own first ids.
    fn is_whole(self) -> bool {
        let end = self.first.checked_add(self.count);
        self.count == COUNT && self.first >= COUNT && end.is_some()
    }

    fn overlaps(self, first: u32) -> bool {
        self.first.abs_diff(first) < self.count
    }

    /// As in /proc/PID/uid_map (user_namespaces(7)): inside, outside, how many.
    pub fn map(self) -> String {
        format!("0 {} {}\n", self.first, self.count)
    }
}

/// The range of `tenant`, from now on nobody else's: the one that it had, unless another state directory's tenant took it
/// while this one's machine was down.
///
/// # Errors
/// See [`IdsError`].
pub fn claim(tenant: &Tenant) -> Result<IdRange, IdsError> {
    let _alone = Held::take_machines("ids.lock")?;
    let taken = Path::new(MACHINE).join("ids");
    fs::create_dir_all(&taken).map_err(failed("make", &taken))?;
    claim_from(tenant, &taken)
}

/// The same, alone, with the machine's record in `taken`.
fn claim_from(tenant: &Tenant, taken: &Path) -> Result<IdRange, IdsError> {
    let directory = tenant.directory();
    let root = directory.parent().and_then(Path::parent);
    let file = root.unwrap_or(directory).join(SETTINGS);
    let settings: Settings = read_json(&file)?.unwrap_or_default();
    if !settings.fits() {
        return Err(IdsError::Settings(file));
    }
    let mut others = marks_of_others(taken, directory)?;
    let is_free = |range: IdRange, others: &[u32]| !others.iter().any(|&one| range.overlaps(one));
    let had = range_in(directory)?;
    if let Some(range) = had.filter(|range| is_free(*range, &others)) {
        mark(taken, range, directory)?;
        return Ok(range);
    }
    others.extend(ranges_of_others(directory)?);
    let ours = record(directory);
    let range = (0..settings.ranges)
        .map(|number| settings.range(number))
        .find(|range| is_free(*range, &others))
        .ok_or(IdsError::Exhausted {
            ranges: settings.ranges,
            file,
        })?;
    write_json(&ours, &range)?;
    mark(taken, range, directory)?;
    Ok(range)
}

fn record(directory: &Path) -> PathBuf {
    directory.join("ids.json")
}

fn range_in(directory: &Path) -> Result<Option<IdRange>, IdsError> {
    let file = record(directory);
    match read_json::<IdRange>(&file)? {
        Some(range) if !range.is_whole() => Err(IdsError::Record(file)),
        range => Ok(range),
    }
}

/// The first ids of the ranges that were given, on this machine, to tenants other than that of `directory` which are still
/// there. Their state directories may have settings of their own: ranges can overlap, and not only be the same.
fn marks_of_others(taken: &Path, directory: &Path) -> Result<Vec<u32>, IdsError> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(taken).map_err(failed("read", taken))? {
        let path = entry.map_err(failed("read", taken))?.path();
        let name = path.file_name().and_then(OsStr::to_str);
        let Some(first) = name.and_then(|name| name.parse().ok()) else {
            continue;
        };
        let owner = fs::read(&path).map_err(failed("read", &path))?;
        let owner = Path::new(OsStr::from_bytes(&owner));
        // What cannot be looked at may be there.
        if owner != directory && record(owner).try_exists().unwrap_or(true) {
            firsts.push(first);
        }
    }
    Ok(firsts)
}

fn mark(taken: &Path, range: IdRange, directory: &Path) -> Result<(), IdsError> {
    let file = taken.join(range.first.to_string());
    let text = directory.as_os_str().as_encoded_bytes();
    Ok(fs::write(&file, text).map_err(failed("write", &file))?)
}

/// The first ids of what other tenants of the state directory have, also those that do not run.
fn ranges_of_others(directory: &Path) -> Result<Vec<u32>, IdsError> {
    let all = directory.parent().unwrap_or(directory);
    let mut firsts = Vec::new();
    for entry in fs::read_dir(all).map_err(failed("read", all))? {
        let path = entry.map_err(failed("read", all))?.path();
        if path != directory && path.is_dir() {
            firsts.extend(range_in(&path)?.map(|range| range.first));
        }
    }
    Ok(firsts)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(settings: &str) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            fs::create_dir(machine.0.path().join("ids")).unwrap();
            for state in ["one", "two"] {
                fs::create_dir_all(machine.0.path().join(state).join("tenants")).unwrap();
                fs::write(machine.0.path().join(state).join(SETTINGS), settings).unwrap();
            }
            machine
        }

        fn tenant(&self, state: &str, name: &str) -> Tenant {
            let directory = self.0.path().join(state).join("tenants").join(name);
            fs::create_dir_all(&directory).unwrap();
            Tenant::open(&directory, name.parse().unwrap())
        }

        fn claim(&self, state: &str, name: &str) -> Result<u32, IdsError> {
            let tenant = self.tenant(state, name);
            claim_from(&tenant, &self.0.path().join("ids")).map(|range| range.first)
        }

        fn restart(&self) {
            fs::remove_dir_all(self.0.path().join("ids")).unwrap();
            fs::create_dir(self.0.path().join("ids")).unwrap();
        }
    }

    #[test]
    fn every_tenant_has_its_own_and_keeps_it() {
        let machine = Machine::new("{}");
        let first = machine.claim("one", "a").unwrap();
        assert_eq!(first, FIRST);
        assert_eq!(machine.claim("two", "a").unwrap(), FIRST + COUNT);
        assert_eq!(machine.claim("one", "b").unwrap(), FIRST + 2 * COUNT);
        assert_eq!(machine.claim("one", "a").unwrap(), first);
        machine.restart();
        // Nobody of its own state directory takes what a tenant that does not run has.
        assert_eq!(machine.claim("one", "c").unwrap(), FIRST + COUNT);
        assert_eq!(machine.claim("one", "b").unwrap(), FIRST + 2 * COUNT);
        assert_eq!(machine.claim("one", "a").unwrap(), first);
    }

    #[test]
    fn trials_have_ids_that_no_tenant_has() {
        let settings = Settings::default();
        let last = settings.range(settings.ranges - 1);
        assert!(last.first + last.count <= NOBODYS.first);
        // Positive as programs see them, to the last.
        assert!(i32::try_from(NOBODYS.first + (NOBODYS.count - 1)).is_ok());
    }

    #[test]
    fn what_is_gone_is_free_and_what_was_taken_meanwhile_is_not() {
        let machine = Machine::new(r#"{"first_id": 100000, "ranges": 2}"#);
        assert_eq!(machine.claim("one", "a").unwrap(), 100_000);
        assert_eq!(machine.claim("one", "b").unwrap(), 165_536);
        let error = machine.claim("one", "c").unwrap_err();
        assert!(
            matches!(error, IdsError::Exhausted { ranges: 2, .. }),
            "{error}"
        );
        assert!(error.to_string().contains(SETTINGS));
        fs::remove_dir_all(machine.tenant("one", "a").directory()).unwrap();
        assert_eq!(machine.claim("one", "c").unwrap(), 100_000);
        machine.restart();
        assert_eq!(machine.claim("two", "x").unwrap(), 100_000);
        // Its range is another's now, and there is no other.
        machine.claim("one", "c").unwrap_err();
    }

    #[test]
    fn ranges_of_different_settings_do_not_overlap() {
        let machine = Machine::new(r#"{"first_id": 100000, "ranges": 2}"#);
        let other = r#"{"first_id": 150000, "ranges": 3}"#;
        fs::write(machine.0.path().join("two").join(SETTINGS), other).unwrap();
        assert_eq!(machine.claim("two", "x").unwrap(), 150_000);
        // 100,000 to 165,535 and the next are partly the other's.
        machine.claim("one", "a").unwrap_err();
        fs::remove_dir_all(machine.tenant("two", "x").directory()).unwrap();
        assert_eq!(machine.claim("one", "a").unwrap(), 100_000);
        assert_eq!(machine.claim("two", "x").unwrap(), 150_000 + COUNT);
    }

    #[test]
    fn a_record_that_cannot_be_is_told_and_gives_no_ids_of_the_hosts() {
        for bad in [
            r#"{"first": 0, "count": 65536}"#,
            r#"{"first": 100000, "count": 1}"#,
            r#"{"first": 4294901761, "count": 65536}"#,
        ] {
            let machine = Machine::new("{}");
            let tenant = machine.tenant("one", "a");
            fs::write(record(tenant.directory()), bad).unwrap();
            let error = machine.claim("one", "a").unwrap_err();
            assert!(matches!(error, IdsError::Record(_)), "{bad}: {error}");
            // Nobody knows what is free beside it.
            machine.claim("one", "b").unwrap_err();
            fs::remove_file(record(tenant.directory())).unwrap();
            assert_eq!(machine.claim("one", "a").unwrap(), FIRST);
        }
    }

    #[test]
    fn settings_that_cannot_be_are_told() {
        for bad in [
            r#"{"first_id": 1000}"#,
            r#"{"first_id": 4294900000}"#,
            r#"{"ranges": 4294967295}"#,
        ] {
            let machine = Machine::new(bad);
            let error = machine.claim("one", "a").unwrap_err();
            assert!(matches!(error, IdsError::Settings(_)), "{bad}: {error}");
        }
    }
}
