//! What a tenant's group uses.

use std::fs;
use std::path::Path;

use super::Group;
use super::mounts::{Controller, Version};

/// What is counted in a group; none where it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processor time of all its processes so far, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Bytes of memory, without the page cache that can be dropped at once.
    pub memory: Option<u64>,
    /// The most it may use.
    pub memory_limit: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
}

impl Usage {
    pub(super) fn of(group: &Group) -> Self {
        let memory = group.part(Controller::Memory);
        let memory_file = |v2: &str, v1: &str| {
            let part = memory?;
            number(&part.path.join(match part.hierarchy.version {
                Version::V2 => v2,
                Version::V1 => v1,
            }))
        };
        let droppable = memory.and_then(|part| {
            let key = match part.hierarchy.version {
                Version::V2 => "inactive_file",
                Version::V1 => "total_inactive_file",
            };
            keyed(&part.path.join("memory.stat"), key)
        });
        let used = memory_file("memory.current", "memory.usage_in_bytes");
        Self {
            cpu_ns: cpu(group),
            memory: used.map(|used| used.saturating_sub(droppable.unwrap_or(0))),
            memory_limit: memory_file("memory.max", "memory.limit_in_bytes"),
            threads: group
                .part(Controller::Pids)
                .and_then(|part| number(&part.path.join("pids.current"))),
        }
    }
}

fn cpu(group: &Group) -> Option<u64> {
    let part = group
        .parts
        .iter()
        .find(|part| part.hierarchy.accounts_cpu)?;
    match part.hierarchy.version {
        Version::V1 => number(&part.path.join("cpuacct.usage")),
        Version::V2 => Some(keyed(&part.path.join("cpu.stat"), "usage_usec")?.saturating_mul(1000)),
    }
}

/// A file that holds one number. ("max" is none.)
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number behind a word at the beginning of a line.
pub(super) fn keyed(file: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok())?
    })
}
