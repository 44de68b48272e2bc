//! A limit of this machine's kernel, lowered while an experiment is run, so that all there is can be taken in a short time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result, on};

/// Connections that were reset are forgotten only after 10 s (nf_conntrack_tcp_timeout_close): they would leave room for more.
const FORGOTTEN: Duration = Duration::from_secs(15);

/// What the kernel is to have of something, at most.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// The setting below /proc/sys of that name is this number.
    To(&'static str, u64),
    /// So many more connections can be tracked than are by now.
    Connections(u64),
}

/// A limit in force; it is as before when this goes.
#[derive(Debug)]
pub struct Lowered {
    file: PathBuf,
    before: u64,
}

impl Bound {
    /// # Errors
    /// This kernel has no such limit, or no permission.
    pub fn lower(self) -> Result<Lowered> {
        let (name, limit) = match self {
            Bound::To(name, limit) => (name, limit),
            Bound::Connections(room) => {
                std::thread::sleep(FORGOTTEN);
                let used = number(&file("net/netfilter/nf_conntrack_count"))?;
                ("net/netfilter/nf_conntrack_max", used + room)
            }
        };
        let file = file(name);
        let before = number(&file)?;
        set(&file, limit.min(before))?;
        Ok(Lowered { file, before })
    }
}

impl Drop for Lowered {
    fn drop(&mut self) {
        if let Err(error) = set(&self.file, self.before) {
            eprintln!("fief bench: {error}; it was {}", self.before);
        }
    }
}

fn file(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).map_err(on("read", path))?;
    let none = |_| Error::Other(format!("{} holds no number", path.display()));
    text.trim().parse().map_err(none)
}

fn set(path: &Path, limit: u64) -> Result<()> {
    fs::write(path, limit.to_string()).map_err(on("write to", path))
}
