//! Settings of the kernel's network, as files below /proc/sys/net: those of the namespace of the thread that looks.

use std::fs;
use std::io;
use std::path::Path;

use super::error::{Result, failed};

const ROOT: &str = "/proc/sys/net";
/// Remembers, until the machine restarts, that it was fief who made it forward packets: one file for each family.
const MARKS: [(&str, &str); 2] = [
    ("ipv4/conf/all/forwarding", "/run/fief/forwards4"),
    ("ipv6/conf/all/forwarding", "/run/fief/forwards6"),
];

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Writes a setting.
pub fn set(name: &str, value: &str) -> Result<()> {
    let path = Path::new(ROOT).join(name);
    fs::write(&path, value).map_err(failed(format!("write {value} to {}", path.display())))
}

fn get(name: &str) -> io::Result<String> {
    Ok(fs::read_to_string(Path::new(ROOT).join(name))?
        .trim()
        .to_owned())
}

/// Whether this kernel speaks IPv6 at all.
pub fn has_ipv6() -> bool {
    get("ipv6/conf/all/disable_ipv6").is_ok_and(|value| value == "0")
}

/// Notes that fief is about to make this machine forward packets of the family, if it does not so far. Before the rules
/// are set, which read it ([`forwarding_is_ours`]).
pub fn claim_forwarding(family: Family) -> Result<()> {
    let (name, mark) = MARKS[family as usize];
    if get(name).map_err(failed(format!("read {ROOT}/{name}")))? == "0" {
        fs::write(mark, "").map_err(failed(format!("write {mark}")))?;
    }
    Ok(())
}

/// Whether it was fief that made this machine forward packets.
pub fn forwarding_is_ours(family: Family) -> bool {
    Path::new(MARKS[family as usize].1).exists()
}

/// Makes the machine forward packets.
pub fn forward(family: Family) -> Result<()> {
    let (name, _) = MARKS[family as usize];
    if get(name).is_ok_and(|value| value != "0") {
        return Ok(());
    }
    if family == Family::V6 {
        keep_router_advertisements()?;
    }
    set(name, "1")
}

/// A machine that forwards IPv6 takes no router advertisements unless told twice (ip-sysctl, accept_ra): one that got its
/// own default route by them would lose it.
fn keep_router_advertisements() -> Result<()> {
    let directory = Path::new(ROOT).join("ipv6/conf");
    let entries = fs::read_dir(&directory);
    for entry in entries
        .map_err(failed(format!("read {}", directory.display())))?
        .flatten()
    {
        let file = entry.path().join("accept_ra");
        if entry.file_name() != "all" && fs::read_to_string(&file).is_ok_and(|v| v.trim() == "1") {
            fs::write(&file, "2").map_err(failed(format!("write {}", file.display())))?;
        }
    }
    Ok(())
}
