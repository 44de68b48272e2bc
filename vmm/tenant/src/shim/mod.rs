//! The shim: one small process per running tenant. It starts the backend, keeps its output, writes down its end and
//! cleans up; it holds the tenant's lock for as long as it lives, which is what "running" means.

mod channel;
mod command;
mod log;
mod start;
mod watch;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use nix::sys::stat::{Mode, umask};

use crate::backend::vm::Vm;
use crate::backend::{Backend, BackendError};
use crate::failure::chain;
use crate::network::{self, NetworkError};
use crate::process::identify;
use crate::spec::{Isolation, Spec};
use crate::store::{Exit, FileError, Held, Locked, Phase, Reason, State, StoreError, Tenant, now};

pub use channel::{Channel, Order, Report, Request};
pub use log::older;
pub use start::{Attached, StartError, start};

/// Word that makes the `fief` binary a shim.
pub const WORD: &str = "shim";
/// Largest size of each of the two files of the console's log, in bytes.
const CONSOLE_LIMIT: u64 = 1 << 20;
/// Largest size of each of the two files of the monitor's log, in bytes.
const MESSAGES_LIMIT: u64 = 128 << 10;

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

/// Leaves the terminal, the session and the directory of whoever started this process.
fn daemonise() -> io::Result<(OwnedFd, Channel)> {
    let lock = io::stdin().as_fd().try_clone_to_owned()?;
    let channel = UnixStream::from(io::stdout().as_fd().try_clone_to_owned()?);
    // Not a socket: somebody called it by hand.
    channel.peer_addr()?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    // No other thread exists yet: the fork in it is safe.
    nix::unistd::daemon(false, false)?;
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

fn live(locked: &Locked, order: &Order, channel: &mut Channel) -> Result<(), ShimError> {
    let spec = locked.tenant.spec()?;
    let mut state = State {
        phase: Phase::Starting,
        shim_pid: std::process::id().cast_signed(),
        monitor: None,
        started: now(),
        reboots: 0,
    };
    locked.begin_run(&state)?;
    let network = network::ensure(locked.tenant.directory(), &spec)?;
    let mut backend = backend_of(locked.tenant.clone(), &spec, order, network)?;
    let mut spawned = backend.spawn()?;
    state.monitor = identify(spawned.child.id());
    let booted = locked
        .write_state(&state)
        .map_err(ShimError::from)
        .and_then(|()| {
            backend.boot(&mut spawned.child)?;
            state.phase = Phase::Running;
            Ok(locked.write_state(&state)?)
        });
    if let Err(error) = booted {
        return Err(watch::give_up(&locked.tenant, spawned, error));
    }
    // A starter that is gone already is noticed by the watch, if it matters.
    let _ = channel.send(&Report::Running);
    let exit = watch::watch(
        locked,
        backend.as_ref(),
        spawned,
        state,
        &spec,
        order,
        channel,
    )?;
    Ok(locked.end_run(&exit)?)
}

fn backend_of(
    tenant: Tenant,
    spec: &Spec,
    order: &Order,
    network: Option<network::Record>,
) -> Result<Box<dyn Backend>, ShimError> {
    Ok(match spec.isolation {
        Isolation::Vm => Box::new(Vm::new(tenant, spec.clone(), order.files.clone(), network)?),
    })
}
