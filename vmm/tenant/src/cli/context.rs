//! What every command needs to know: where things are and which host runs tenants.

use std::env;
use std::path::{Path, PathBuf};

use fief_host::{Decision, HostChoice, HostKind};
use fief_images::Images;
use nix::unistd::geteuid;

use super::access::SYSTEM_STATE;
use super::{Error, Result};
use crate::store::Store;

/// Where things are.
#[derive(Debug)]
pub struct Context {
    choice: HostChoice,
    state: PathBuf,
    monitor: PathBuf,
    agent: PathBuf,
}

impl Context {
    pub fn new(choice: HostChoice, state: Option<PathBuf>) -> Result<Self> {
        let state = state.map_or_else(default_state, Ok)?;
        let state = std::path::absolute(state)?;
        Ok(Self {
            choice,
            state,
            monitor: binary("fief-vmm", "FIEF_VMM")?,
            agent: binary("fief-agent", "FIEF_AGENT")?,
        })
    }

    /// The state directory, cleaned up.
    pub fn store(&self) -> Result<Store> {
        Ok(Store::open(&self.state)?)
    }

    pub fn images(&self) -> Result<Images> {
        Ok(Images::open(&self.state.join("images"))?)
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    pub fn choice(&self) -> HostChoice {
        self.choice
    }

    /// The `fief-vmm` binary.
    pub fn monitor(&self) -> &Path {
        &self.monitor
    }

    /// The `fief-agent` binary.
    pub fn agent(&self) -> &Path {
        &self.agent
    }

    /// Which host runs tenants, and why.
    pub fn decide(&self) -> Decision {
        let remembered = self.state.join("probe.json");
        fief_host::choose(self.choice, &self.monitor, Some(&remembered))
    }

    pub fn is_emulated(&self) -> bool {
        self.decide().kind == HostKind::Emulated
    }
}

/// /var/lib/fief for root; for others where the XDG base directory specification puts data of programs.
pub fn default_state() -> Result<PathBuf> {
    if geteuid().is_root() {
        return Ok(PathBuf::from(SYSTEM_STATE));
    }
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let data = data.ok_or_else(|| {
        Error::new("no home directory is known to keep tenants in; set HOME, or give --state-dir")
    })?;
    Ok(data.join("fief"))
}

/// A binary of ours: beside this one, unless a variable says where.
pub(super) fn binary(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Ok(std::path::absolute(path)?);
    }
    Ok(env::current_exe()?.with_file_name(name))
}
