//! A tenant, driven by `fief` on the command line as a user does.

use std::path::{Path, PathBuf};
use std::process::Command;

use fief::cgroup::Group;
use fief::spec::Bytes;
use fief::store::{State, Store};

use super::{Backend, PREFIX, PROBE, Subject};
use crate::error::{Error, Result};
use crate::machine::{fief, said};
use crate::measure::{self, Spent, spend};
use crate::runner::Order;

/// The group of those who start and stop tenants.
const CLIENT: &str = "fief-bench-client";

#[derive(Debug)]
pub struct Tenant {
    backend: Backend,
    name: String,
    state: PathBuf,
}

impl Tenant {
    /// # Errors
    /// `fief create` fails.
    pub fn make(backend: Backend, order: &Order) -> Result<Self> {
        let name = format!("{PREFIX}-{}", backend.name());
        let made = Self {
            backend,
            name,
            state: order.state.clone(),
        };
        remove(&made.name);
        // Nobody who starts tenants needs so much.
        super::group(CLIENT, u8::MAX, Bytes(1 << 40))?;
        let mut create = fief(["create", &made.name, "--isolation", backend.name()]);
        create.args(["--image", &order.image, "--memory", &order.memory]);
        create.args(["--cpus", "1", "--disk", "2G", "--net", "none"]);
        match backend {
            Backend::Vm => create.args(["--kernel", &order.kernel]),
            _ => create.args(order.runtime.iter().flat_map(|one| ["--runtime", one])),
        };
        said(&mut create)?;
        // What is in its files stays there.
        made.start()?;
        let own = std::env::current_exe().unwrap_or_default();
        let to = format!("{}:{PROBE}", made.name);
        said(fief(["cp"]).arg(&own).arg(to))?;
        made.stop()?;
        Ok(made)
    }

    fn running(&self) -> Result<(fief::store::Tenant, State)> {
        let of = |error: &dyn std::fmt::Display| Error::Other(error.to_string());
        let store = Store::open(&self.state).map_err(|error| of(&error))?;
        let name = self.name.parse().map_err(|error| of(&error))?;
        store.running(&name).map_err(|error| of(&error))
    }

    /// A command of `fief` whose own work is counted with the tenant's.
    fn counted(words: [&str; 2]) -> Result<Spent> {
        let all = || used(&Group::all());
        let own = std::env::current_exe().unwrap_or_default();
        spend(all, || {
            let mut command = Command::new(own);
            command.args(["enter", "--group", CLIENT, "--"]);
            command.arg(fief_program()).args(words);
            said(&mut command).map(drop)
        })
    }
}

fn fief_program() -> &'static Path {
    crate::machine::program()
}

/// Processor time of a group.
fn used(group: &Group) -> Result<u64> {
    let none = || {
        Error::Other(
            "this kernel does not count the processor time of groups (cgroups); run as root, with the controller cpu".to_owned(),
        )
    };
    group.usage().cpu_ns.ok_or_else(none)
}

/// A tenant of that name is gone afterwards, if the machine allows it.
pub fn remove(name: &str) {
    let _ = said(&mut fief(["rm", "-f", name]));
}

impl Subject for Tenant {
    fn backend(&self) -> Backend {
        self.backend
    }

    fn start(&self) -> Result<Spent> {
        Self::counted(["start", &self.name])
    }

    fn stop(&self) -> Result<Spent> {
        Self::counted(["stop", &self.name])
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        said(fief(["exec", &self.name, "--"]).args(words))
    }

    fn charged(&self) -> Result<u64> {
        let (tenant, _) = self.running()?;
        used(&Group::of(&tenant))
    }

    fn exits(&self) -> Result<u64> {
        match (self.backend, self.running()?.1.monitor) {
            (Backend::Vm, Some(monitor)) => measure::exits(monitor.pid),
            _ => Ok(0),
        }
    }

    fn memory(&self) -> Result<u64> {
        let (tenant, state) = self.running()?;
        let mut pids = Group::of(&tenant).processes();
        if pids.is_empty() {
            // Without groups, those that are known.
            pids = vec![state.shim_pid];
            pids.extend(state.monitor.map(|monitor| monitor.pid));
        }
        Ok(measure::proportional(pids))
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        remove(&self.name);
        // Empty, as all who were in it have ended.
        let _ = Group::named(CLIENT).remove();
    }
}
