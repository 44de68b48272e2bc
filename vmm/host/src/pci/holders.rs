//! Which processes have a device node open. A driver that is taken from a device waits for them, with some drivers for ever.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::function::Function;
use super::places::{Places, entries, lines, name, text};

/// Open device nodes, and who has them: `Xorg (process 812)`.
#[derive(Debug, Default)]
pub(super) struct Holders {
    open: BTreeSet<(PathBuf, String)>,
}

impl Holders {
    /// Looks at all processes that this user may look at.
    pub(super) fn read(places: &Places) -> Self {
        let mut open = BTreeSet::new();
        for process in entries(&places.proc) {
            let Some(id) = name(&process).filter(|name| name.parse::<u32>().is_ok()) else {
                continue;
            };
            for file in entries(&process.join("fd")) {
                if let Ok(node) = fs::read_link(file)
                    && node.components().any(|part| part.as_os_str() == "dev")
                {
                    let program = text(&process.join("comm")).unwrap_or_default();
                    open.insert((node, format!("{program} (process {id})")));
                }
            }
        }
        Self { open }
    }

    /// Who has any of these nodes, which are named as beneath `/dev`. (A process in a mount namespace of its own may have
    /// that elsewhere.)
    pub(super) fn of(&self, nodes: &[PathBuf]) -> Vec<String> {
        let open = self.open.iter();
        let held = open.filter(|(path, _)| nodes.iter().any(|node| path.ends_with(node)));
        let all: BTreeSet<_> = held.map(|(_, holder)| holder.clone()).collect();
        all.into_iter().collect()
    }
}

/// Device nodes by which programs use a function: of its graphics, its sound, its serial lines, of what is plugged into it;
/// and of its disks, which a machine may have whole.
pub(super) fn nodes(function: &Function, places: &Places) -> Vec<PathBuf> {
    ["dev/char", "dev/block"]
        .iter()
        .flat_map(|kind| entries(&places.sys.join(kind)))
        .filter_map(|link| fs::canonicalize(link).ok())
        .filter(|path| function.has(path))
        .filter_map(|path| {
            let event = lines(&path.join("uevent"));
            let node = event
                .lines()
                .find_map(|line| line.strip_prefix("DEVNAME="))?;
            Some(PathBuf::from(node))
        })
        .chain(nvidia(function, places))
        .collect()
}

/// NVIDIA's own driver makes nodes that sysfs does not know: it tells their number in procfs.
fn nvidia(function: &Function, places: &Places) -> Option<PathBuf> {
    let file = format!("driver/nvidia/gpus/{}/information", function.address);
    let text = lines(&places.proc.join(file));
    let minor = text
        .lines()
        .find_map(|line| line.strip_prefix("Device Minor:"))?;
    let minor: u32 = minor.trim().parse().ok()?;
    Some(format!("nvidia{minor}").into())
}

/// Device nodes by which monitors use a function.
pub(super) fn vfio(function: &Function) -> Vec<PathBuf> {
    let directory = Path::new("vfio");
    let group = function.group.map(|group| group.to_string());
    let device = function.vfio.as_ref().map(|name| format!("devices/{name}"));
    let all = group.into_iter().chain(device);
    all.map(|name| directory.join(name)).collect()
}
