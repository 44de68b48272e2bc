//! What is compared: the same image, limits and commands in a virtual machine, in a container, and on the plain host.

pub mod monitor;
mod outside;
pub mod peer;
mod plain;
mod tenant;

use clap::ValueEnum;
use fief::cgroup::{Group, Settings};
use fief::spec::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::machine::Begun;
use crate::measure::{self, Spent};
use crate::runner::Order;

pub use monitor::Monitor;
pub use outside::Outside;
pub use peer::Peer;
pub use plain::Plain;
pub use tenant::Tenant;

/// Names of tenants and groups of a measurement begin so.
pub const PREFIX: &str = "fief-bench";
/// Where the work of [`crate::probe`] is in every subject's files.
pub const PROBE: &str = "/fief-bench";

/// A group for what is compared with tenants, or works for them, with their limits.
///
/// # Errors
/// This machine counts nothing.
fn group(id: &str, cpus: u8, memory: Bytes) -> Result<Group> {
    let group = Group::named(id);
    let settings = Settings {
        cpus,
        memory,
        cpu_weight: None,
        io_weight: None,
        pids: PROCESSES,
    };
    let missing = group.make(&settings);
    if missing.is_empty() {
        return Ok(group);
    }
    Err(Error::Other(format!(
        "this machine cannot count and limit what is compared ({}); run as root, on a kernel with the cgroup controllers cpu, memory, \
         io and pids",
        missing.join("; ")
    )))
}

/// Processes and threads: those of a container with its shim.
const PROCESSES: u64 = 5120;

/// What runs a subject.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Backend {
    /// A virtual machine
    Vm,
    /// A container
    Container,
    /// No isolation: the host's kernel and this user, with the same limits and files
    Host,
    /// Another monitor, by its name
    #[value(skip)]
    Peer(String),
}

impl Backend {
    pub fn name(&self) -> &str {
        match self {
            Backend::Vm => "vm",
            Backend::Container => "container",
            Backend::Host => "host",
            Backend::Peer(name) => name,
        }
    }

    /// Whether it has a kernel of its own, which leaves it for KVM.
    pub fn is_machine(&self) -> bool {
        matches!(self, Backend::Vm | Backend::Peer(_))
    }
}

impl From<Backend> for String {
    fn from(backend: Backend) -> Self {
        backend.name().to_owned()
    }
}

impl TryFrom<String> for Backend {
    type Error = peer::BadPeer;

    fn try_from(name: String) -> std::result::Result<Self, Self::Error> {
        match Backend::from_str(&name, false) {
            Ok(backend) => Ok(backend),
            Err(_) if peer::is_name(&name) => Ok(Backend::Peer(name)),
            Err(_) => Err(peer::BadPeer::Name(name)),
        }
    }
}

/// What a subject is connected to. One with a network takes more to start, so that those without are measured without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    None,
    /// fief's default network, which leads to [`Outside`].
    Outside,
}

/// What several took together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Crowd {
    /// Until the last one was there.
    pub spent: Spent,
    /// Bytes by which the host's available memory fell.
    pub memory: f64,
}

/// One of the compared.
pub trait Subject {
    fn backend(&self) -> Backend;

    /// Starts it, until a first command could run in it; what that took, by all who worked for it.
    ///
    /// # Errors
    /// It does not come up.
    fn start(&self) -> Result<Spent>;

    /// Shuts it down as a user does; what that took.
    ///
    /// # Errors
    /// It does not end.
    fn stop(&self) -> Result<Spent>;

    /// Starts several like it at once, and removes them again.
    ///
    /// # Errors
    /// One of them does not come up.
    fn crowd(&self, size: usize) -> Result<Crowd>;

    /// Another one like it, running, as new.
    ///
    /// # Errors
    /// It cannot be made.
    fn neighbour(&self) -> Result<Box<dyn Subject>>;

    /// Ends it at once.
    fn kill(&self);

    /// Begins a command in it, whose output can be read, and which is ended when what is returned goes.
    ///
    /// # Errors
    /// It cannot be started.
    fn begin(&self, words: &[&str]) -> Result<Begun>;

    /// What it and its monitor logged last, if anything: for whoever looks into a failure.
    fn last_words(&self) -> String {
        String::new()
    }

    /// Runs a command in it; what it printed.
    ///
    /// # Errors
    /// It fails.
    fn run(&self, words: &[&str]) -> Result<String>;

    /// Nanoseconds of processor time that it took since it was started, user and system together, its monitor's and shim's among
    /// them.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn charged(&self) -> Result<u64>;

    /// The monitor of its virtual machine; none of what is no machine.
    ///
    /// # Errors
    /// It does not run.
    fn monitor(&self) -> Result<Option<i32>> {
        Ok(None)
    }

    /// All processes of this machine that are its own or work for it, its monitor and shim among them.
    ///
    /// # Errors
    /// It does not run.
    fn processes(&self) -> Result<Vec<i32>>;

    /// Exits of its virtual machine so far; 0 of what is none.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn exits(&self) -> Result<u64> {
        self.monitor()?.map_or(Ok(0), measure::exits)
    }

    /// Bytes of memory that its processes take, its monitor and shim among them: proportional set size.
    ///
    /// # Errors
    /// It does not run.
    fn memory(&self) -> Result<u64> {
        Ok(measure::proportional(self.processes()?))
    }
}

/// The name of a backend's subject: of its tenant, or of its group.
fn name(backend: &Backend) -> String {
    match backend {
        Backend::Peer(name) => format!("{PREFIX}-peer-{name}"),
        own => format!("{PREFIX}-{}", own.name()),
    }
}

/// The name of its neighbour.
fn neighbour_of(name: &str) -> String {
    format!("{name}-neighbour")
}

/// Ends at once what runs of a backend's subject and its neighbour, whoever waits for them: these then fail.
pub fn break_off(backend: &Backend) {
    let name = name(backend);
    for name in [neighbour_of(&name), name] {
        match backend {
            Backend::Vm | Backend::Container => tenant::kill(&name),
            Backend::Host | Backend::Peer(_) => Group::named(&name).end_processes(),
        }
    }
}

/// Makes a subject, stopped, with [`PROBE`] in its files.
///
/// # Errors
/// The backend does not work here.
pub fn make(backend: &Backend, order: &Order, network: Network) -> Result<Box<dyn Subject>> {
    Ok(match backend {
        Backend::Vm | Backend::Container => {
            Box::new(Tenant::make(backend.clone(), order, network)?)
        }
        Backend::Host => Box::new(Plain::make(order)?),
        Backend::Peer(_) if network == Network::Outside => {
            let none = "the machines of other monitors are given no network";
            return Err(Error::Other(none.to_owned()));
        }
        Backend::Peer(name) => Box::new(Monitor::make(name, order)?),
    })
}
