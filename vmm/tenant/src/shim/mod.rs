//! The shim: one small process per running tenant. It starts the backend, keeps its output, writes down its end and
//! cleans up; it holds the tenant's lock for as long as it lives, which is what "running" means.

mod again;
mod channel;
mod command;
mod log;
mod start;
mod watch;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use nix::sys::signalfd::SignalFd;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use crate::backend::container::{Container, ContainerError};
use crate::backend::vm::Vm;
use crate::backend::{Backend, BackendError, Files};
use crate::cgroup::{Group, Origin, Settings};
use crate::failure::chain;
use crate::network::{self, NetworkError};
use crate::process::identify;
use crate::provide;
use crate::spec::{Bytes, Isolation, LogBounds, Spec};
use crate::store::{Exit, FileError, Held, Locked, Phase, Reason, State, StoreError, Tenant, now};

use again::Pauses;
pub use channel::{Channel, Order, Report, Request};
pub use log::{identity, older, parts};
pub use start::{Attached, StartError, start};
use watch::{Ended, Watched};

/// Word that makes the `fief` binary a shim.
pub const WORD: &str = "shim";
/// How much of the monitor's own messages is kept.
const MESSAGES: LogBounds = LogBounds {
    size: Bytes(128 << 10),
    files: 2,
};

/// Why a shim gave up.
#[derive(Debug, thiserror::Error)]
enum ShimError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(
        "this machine cannot enforce all limits of a container ({0}); run fief as root on a kernel with the cgroup controllers \
         cpu, memory, io and pids, use `--isolation vm`, or accept it with --allow-unenforced"
    )]
    Unenforced(String),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ShimError {
    move |source| ShimError::Io { what, source }
}

/// The whole life of a shim. Standard input is the tenant's lock, standard output the socket to the `fief` that started
/// it.
pub fn main() -> ExitCode {
    match daemonise() {
        Ok((lock, channel)) => serve(lock, channel),
        Err(error) => {
            eprintln!("fief shim: {error}; it is started by fief itself");
            ExitCode::FAILURE
        }
    }
}

/// Leaves the terminal, the session and the directory of whoever started this process. (Not by daemon(3), whose fork is one
/// more process to make and to end: the starter does not wait for this one.)
fn daemonise() -> io::Result<(OwnedFd, Channel)> {
    let lock = io::stdin().as_fd().try_clone_to_owned()?;
    let channel = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    // Not a socket: somebody called it by hand.
    channel.peer_addr()?;
    setsid()?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    std::env::set_current_dir("/")?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok((lock, Channel::new(channel)))
}

fn serve(lock: OwnedFd, mut channel: Channel) -> ExitCode {
    let lock = Held::adopt(lock);
    // Without an order there is nothing to do: the starter died first, and the lock goes with us.
    let Ok(Some(order)) = channel.receive::<Order>() else {
        return ExitCode::FAILURE;
    };
    let tenant = Tenant::open(Path::new(&order.directory), order.name.clone());
    let locked = Locked::adopt(tenant, lock);
    let Err(error) = live(&locked, &order, &mut channel) else {
        return finish(locked, channel);
    };
    let exit = Exit::now(Reason::Failed, Some(chain(&error)));
    let _ = locked.end_run(&exit);
    let _ = channel.send(&Report::Failed(chain(&error)));
    // The starter removes what it made. It may share the lock: it is let go, not freed.
    locked.let_go();
    ExitCode::FAILURE
}

/// The tenant ran and ended, and the end is written down.
fn finish(locked: Locked, channel: Channel) -> ExitCode {
    if let Ok(Some(exit)) = locked.tenant.exit() {
        // The starter may be gone: nobody needs to know then.
        let _ = channel.send(&Report::Ended(exit));
    }
    // Before the channel closes: when the starter sees its end, everything is done.
    if locked.tenant.spec().is_ok_and(|spec| spec.remove) {
        let _ = locked.remove();
    } else {
        locked.let_go();
    }
    drop(channel);
    ExitCode::SUCCESS
}

/// Runs the tenant until it has ended and is not to be started again.
fn live(locked: &Locked, order: &Order, channel: &mut Channel) -> Result<(), ShimError> {
    let signals = again::signals().map_err(failed("cannot receive signals"))?;
    let group = Group::of(&locked.tenant);
    let mut life = Life {
        locked,
        order,
        signals: &signals,
        group: &group,
        origin: None,
        restarts: 0,
        reboots: 0,
    };
    let ended = life.whole(channel);
    // A group with a process in it, this one, could not be removed.
    if let Some(origin) = life.origin.take() {
        origin.go_back();
    }
    // Also where the end cannot be written down, the tenant's directory being gone, say.
    group.end_processes();
    let _ = group.remove();
    Ok(locked.end_run(&ended?)?)
}

/// A tenant's runs, one after the other.
struct Life<'a> {
    locked: &'a Locked,
    order: &'a Order,
    signals: &'a SignalFd,
    group: &'a Group,
    /// Where this shim was before it entered the group.
    origin: Option<Origin>,
    restarts: u64,
    /// Those after which a backend's process is started anew.
    reboots: u64,
}

impl Life<'_> {
    /// All runs; how the last one ended.
    fn whole(&mut self, channel: &mut Channel) -> Result<Exit, ShimError> {
        let mut pauses = Pauses::default();
        let mut begun = false;
        loop {
            let since = Instant::now();
            let run = self.run(channel, &mut begun);
            let (mut exit, asked) = match run {
                Ok(Ended { exit, asked }) => (exit, asked),
                Err(error) if !begun => return Err(error),
                Err(ShimError::Backend(BackendError::Container(ContainerError::GivenUp))) => {
                    let told = "it was told to stop before it had started again";
                    (Exit::now(Reason::Killed, Some(told.to_owned())), true)
                }
                // It was started before: its policy decides about this failure as about any other.
                Err(error) => (Exit::now(Reason::Failed, Some(chain(&error))), false),
            };
            exit.restarts = self.restarts;
            let stopped = asked || !matches!(self.locked.tenant.stopped_by(), Ok(None));
            let policy = self.order.of(self.locked.tenant.spec()?).restart;
            if stopped {
                return Ok(exit);
            } else if exit.reason == Reason::Reboot {
                // Its own wish, which no policy is asked about; the pause keeps it from doing nothing else.
                self.reboots += 1;
            } else if policy.again(exit.code, self.restarts) {
                self.restarts += 1;
            } else {
                return Ok(exit);
            }
            let state = self.state(Phase::Restarting);
            self.locked.pause_run(&exit, &state)?;
            let pause = pauses.after(since.elapsed());
            let attached = self.order.attached.then_some(&*channel);
            let asked =
                again::wait(self.signals, attached, pause).map_err(failed("cannot wait"))?;
            if asked || !matches!(self.locked.tenant.stopped_by(), Ok(None)) {
                return Ok(exit);
            }
        }
    }

    fn state(&self, phase: Phase) -> State {
        State {
            phase,
            shim_pid: std::process::id().cast_signed(),
            monitor: None,
            started: now(),
            reboots: self.reboots,
            restarts: self.restarts,
        }
    }

    /// One run. `begun` becomes true when the machine runs.
    fn run(&mut self, channel: &mut Channel, begun: &mut bool) -> Result<Ended, ShimError> {
        let locked = self.locked;
        let spec = self.order.of(locked.tenant.spec()?);
        let mut state = self.state(Phase::Starting);
        locked.begin_run(&state)?;
        // Before this process enters the tenant's cgroup.
        let network = network::ensure(locked.tenant.directory(), &spec)?;
        if network.is_some() && !*begun {
            network::guard(locked.tenant.directory());
        }
        let settings = Settings::of(&spec);
        let mut unlimited = self.group.make(&settings);
        if self.origin.is_none() {
            match self.group.enter(spec.isolation) {
                Ok(origin) => self.origin = Some(origin),
                Err(error) => unlimited.push(error.to_string()),
            }
        }
        if spec.isolation == Isolation::Container && !spec.allow_unenforced {
            let disk = spec.limits.of_disk();
            if !disk.is_empty() && !self.group.has_io() {
                unlimited.push(format!("so {} cannot hold", disk.join(" and ")));
            }
            refuse_unenforced(&unlimited)?;
        }
        let killed_before = self.group.out_of_memory();
        let mut backend = self.backend(&spec, network)?;
        let mut spawned = backend.spawn()?;
        unlimited.append(&mut spawned.unlimited);
        // Not written down before it has booted: if this process dies meanwhile, the kernel ends its child.
        state.monitor = identify(spawned.child.id());
        state.phase = Phase::Running;
        let booted = backend
            .boot(&mut spawned.child)
            .map_err(ShimError::from)
            .and_then(|()| Ok(locked.write_state(&state)?));
        if let Err(error) = booted {
            let error = watch::give_up(locked, &spec, spawned, error);
            backend.clear();
            return Err(error);
        }
        if !std::mem::replace(begun, true) {
            // A starter that is gone already is noticed by the watch, if it matters.
            let _ = channel.send(&Report::Running { unlimited });
        }
        if self.order.quiet.is_none() {
            provide::give_beside(&locked.tenant);
        }
        let ended = watch::watch(
            Watched {
                locked,
                backend: backend.as_ref(),
                signals: self.signals,
                spec: &spec,
                order: self.order,
            },
            spawned,
            state,
            channel,
        );
        let out_of_memory = self.group.out_of_memory() > killed_before;
        backend.clear();
        ended.map(|ended| with_cause(ended, backend.process(), out_of_memory))
    }

    fn backend(
        &self,
        spec: &Spec,
        network: Option<network::Record>,
    ) -> Result<Box<dyn Backend>, ShimError> {
        let (tenant, spec) = (self.locked.tenant.clone(), spec.clone());
        Ok(match self.order.files.clone() {
            Files::Vm(files) => Box::new(Vm::new(tenant, spec, files, network)?),
            Files::Container(files) => {
                let signals = self.signals.as_fd().try_clone_to_owned();
                let signals = signals.map_err(failed("cannot receive signals"))?;
                let group = self.group.clone();
                Box::new(Container::new(
                    tenant, spec, files, network, group, signals,
                )?)
            }
        })
    }
}

/// Says so if it was the kernel that ended the backend's process for want of memory.
fn with_cause(mut ended: Ended, process: &str, out_of_memory: bool) -> Ended {
    if ended.exit.reason == Reason::Killed && !ended.asked && out_of_memory {
        ended.exit.detail = Some(format!(
            "{process} was killed by the kernel, as its memory limit was reached; give it more with `fief set --memory`"
        ));
    }
    ended
}

/// A container shares its kernel with everybody: without a limit, it could take all.
fn refuse_unenforced(unlimited: &[String]) -> Result<(), ShimError> {
    if unlimited.is_empty() {
        Ok(())
    } else {
        Err(ShimError::Unenforced(unlimited.join("; ")))
    }
}
