//! A tenant, driven by `fief` on the command line as a user does.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use fief::cgroup::Group;
use fief::spec::Bytes;
use fief::store::{State, Store};

use super::{Backend, Crowd, Network, PROBE, Subject};
use crate::error::{Error, Result, failed, other};
use crate::machine::{Begun, begin, fief, said};
use crate::measure::{Spent, available, spend};
use crate::runner::Order;

/// The group of those who start and stop tenants.
const CLIENT: &str = "fief-bench-client";

#[derive(Debug)]
pub struct Tenant {
    backend: Backend,
    name: String,
    state: PathBuf,
    /// Flags of `fief create`.
    flags: Vec<String>,
}

/// Tenants that are removed when this goes.
struct Removed(Vec<String>);

impl Drop for Removed {
    fn drop(&mut self) {
        for name in &self.0 {
            remove(name);
        }
    }
}

impl Tenant {
    /// # Errors
    /// `fief create` fails.
    pub fn make(backend: Backend, order: &Order, network: Network) -> Result<Self> {
        let mut flags = vec!["--isolation", backend.name()];
        flags.extend(["--image", &order.image, "--memory", &order.memory]);
        flags.extend(["--cpus", "1", "--disk", "2G", "--net"]);
        flags.push(match network {
            Network::None => "none",
            Network::Outside => "nat",
        });
        match backend {
            Backend::Vm => flags.extend(["--kernel", &order.kernel]),
            _ => flags.extend(order.runtime.iter().flat_map(|one| ["--runtime", one])),
        }
        let made = Self {
            name: super::name(&backend),
            state: order.state.clone(),
            flags: flags.into_iter().map(str::to_owned).collect(),
            backend,
        };
        // Nobody who starts tenants needs so much.
        super::group(CLIENT, u8::MAX, Bytes(1 << 40))?;
        made.furnish()?;
        made.stop()?;
        Ok(made)
    }

    /// Makes the tenant anew and starts it, with the work in its files.
    fn furnish(&self) -> Result<()> {
        remove(&self.name);
        self.create(&self.name)?;
        self.start()?;
        let own = std::env::current_exe().unwrap_or_default();
        let to = format!("{}:{PROBE}", self.name);
        said(fief(["cp"]).arg(&own).arg(to)).map(drop)
    }

    fn create(&self, name: &str) -> Result<()> {
        said(fief(["create", name]).args(&self.flags)).map(drop)
    }

    fn running(&self) -> Result<(fief::store::Tenant, State)> {
        let store = Store::open(&self.state).map_err(other)?;
        let name = self.name.parse().map_err(other)?;
        store.running(&name).map_err(other)
    }

    /// A command of `fief` whose own work is counted with the tenant's.
    fn counted(words: &[&str]) -> Result<Spent> {
        spend(
            || used(&Group::all()),
            || said(&mut client(words)).map(drop),
        )
    }
}

/// A command of `fief` in the clients' group.
fn client(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap_or_default());
    command.args(["enter", "--group", CLIENT, "--"]);
    command.arg(crate::machine::program()).args(words);
    command
}

/// Processor time of a group.
pub fn used(group: &Group) -> Result<u64> {
    let none = || {
        Error::Other(
            "this kernel does not count the processor time of groups (cgroups); run as root, with the controller cpu".to_owned(),
        )
    };
    group.usage().cpu_ns.ok_or_else(none)
}

/// Ends a tenant; one that has ended by itself needs none.
pub fn kill(name: &str) {
    let _ = said(&mut fief(["kill", name]));
}

/// A tenant of that name is gone afterwards, if the machine allows it.
pub fn remove(name: &str) {
    let _ = said(&mut fief(["rm", "-f", name]));
}

impl Subject for Tenant {
    fn backend(&self) -> Backend {
        self.backend.clone()
    }

    fn start(&self) -> Result<Spent> {
        Self::counted(&["start", &self.name])
    }

    fn stop(&self) -> Result<Spent> {
        Self::counted(&["stop", &self.name])
    }

    fn crowd(&self, size: usize) -> Result<Crowd> {
        let names: Vec<String> = (0..size)
            .map(|one| format!("{}-{one}", self.name))
            .collect();
        let crowd = Removed(names);
        for name in &crowd.0 {
            remove(name);
            self.create(name)?;
        }
        let before = available()?;
        let spent = spend(
            || used(&Group::all()),
            || {
                let start = |name: &String| client(&["start", name]).stdout(Stdio::null()).spawn();
                let started: Vec<_> = crowd.0.iter().map(start).collect();
                // All are waited for, also where one cannot be started.
                let ends = started
                    .into_iter()
                    .map(|one| one.and_then(|mut one| one.wait()));
                let ends: Vec<_> = ends.collect();
                for end in ends {
                    let end = end.map_err(failed("start a tenant"))?;
                    if !end.success() {
                        return Err(Error::Other(format!(
                            "one of {size} tenants did not start ({end})"
                        )));
                    }
                }
                Ok(())
            },
        )?;
        let memory = before - available()?;
        Ok(Crowd { spent, memory })
    }

    fn neighbour(&self) -> Result<Box<dyn Subject>> {
        let neighbour = Self {
            name: super::neighbour_of(&self.name),
            state: self.state.clone(),
            flags: self.flags.clone(),
            backend: self.backend.clone(),
        };
        neighbour.furnish()?;
        Ok(Box::new(neighbour))
    }

    fn kill(&self) {
        kill(&self.name);
    }

    fn begin(&self, words: &[&str]) -> Result<Begun> {
        begin(fief(["exec", &self.name, "--"]).args(words))
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        said(fief(["exec", &self.name, "--"]).args(words))
    }

    fn last_words(&self) -> String {
        let log = |words: &[&str]| said(fief(["logs", "--tail", "5", &self.name]).args(words));
        let logs = [log(&[]), log(&["--monitor"])];
        logs.into_iter().flatten().collect()
    }

    fn charged(&self) -> Result<u64> {
        let (tenant, _) = self.running()?;
        used(&Group::of(&tenant))
    }

    fn monitor(&self) -> Result<Option<i32>> {
        let monitor = self.running()?.1.monitor.map(|monitor| monitor.pid);
        Ok(monitor.filter(|_| self.backend == Backend::Vm))
    }

    fn processes(&self) -> Result<Vec<i32>> {
        let (tenant, state) = self.running()?;
        let mut pids = Group::of(&tenant).processes();
        if pids.is_empty() {
            // Without groups, those that are known.
            pids = vec![state.shim_pid];
            pids.extend(state.monitor.map(|monitor| monitor.pid));
        }
        Ok(pids)
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        remove(&self.name);
        // Empty, as all who were in it have ended.
        let _ = Group::named(CLIENT).remove();
    }
}
