//! `fief stop` and `fief kill`: the end of a tenant, politely or not.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use fief_agent_proto::{AGENT_PORT, Connection, Shutdown, ShutdownAction, connect_vsock_unix};
use rustix::process::Signal;

use super::{Context, Error, Result};
use crate::backend::vm;
use crate::process::Process;
use crate::spec::TenantName;
use crate::store::{State, Store, Tenant};
use crate::terminal::output;

/// How long an agent may take to answer. One that is up answers at once.
const ANSWER: Duration = Duration::from_secs(3);
/// How long the shim may take to be done once the monitor is killed.
const CLEANUP: Duration = Duration::from_secs(20);

/// Flags of `fief stop`.
#[derive(Debug, clap::Args)]
pub struct StopArgs {
    /// Seconds to wait before a tenant is ended by force
    #[arg(long, short = 't', value_name = "SECONDS", default_value_t = 30)]
    time: u32,
    /// Tenants to stop
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TenantName>,
}

/// Flags of `fief kill`.
#[derive(Debug, clap::Args)]
pub struct KillArgs {
    /// Tenants to end
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TenantName>,
}

/// What made a tenant end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// Its agent shut it down.
    Agent,
    /// Its power button was pressed.
    PowerButton,
    /// Its monitor was killed.
    Force,
}

impl How {
    fn words(self) -> &'static str {
        match self {
            How::Agent => "stopped",
            How::PowerButton => "stopped by its power button (its agent did not answer)",
            How::Force => "ended by force (it did not shut down in time)",
        }
    }
}

pub fn stop(context: &Context, args: &StopArgs) -> Result<ExitCode> {
    let store = context.store()?;
    for name in &args.names {
        let (tenant, state) = store.running(name)?;
        let how = shut_down(
            &store,
            &tenant,
            &state,
            Duration::from_secs(args.time.into()),
        )?;
        output(&format!("{name}: {}\n", how.words()))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub fn kill(context: &Context, args: &KillArgs) -> Result<ExitCode> {
    let store = context.store()?;
    for name in &args.names {
        let (tenant, state) = store.running(name)?;
        force(&store, &tenant, &state)?;
        output(&format!("{name}: killed\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn shut_down(store: &Store, tenant: &Tenant, state: &State, patience: Duration) -> Result<How> {
    let deadline = Instant::now() + patience;
    let left = || deadline.saturating_duration_since(Instant::now());
    let by_agent = !patience.is_zero()
        && connect(tenant, left().min(ANSWER)).is_some_and(|agent| ask(&agent).is_ok());
    if by_agent && store.wait_idle(tenant, left())? {
        return Ok(How::Agent);
    }
    let by_button = !by_agent && !patience.is_zero() && press_power_button(tenant, left());
    if by_button && store.wait_idle(tenant, left())? {
        return Ok(How::PowerButton);
    }
    force(store, tenant, state)?;
    Ok(How::Force)
}

fn connect(tenant: &Tenant, patience: Duration) -> Option<Connection> {
    let deadline = Instant::now() + patience;
    let (_directory, path) = vm::socket(tenant, vm::VSOCK_SOCKET).ok()?;
    let stream = connect_vsock_unix(&path, AGENT_PORT, deadline).ok()?;
    Connection::open(stream, deadline).ok()
}

/// Asks the agent to shut the tenant down.
///
/// # Errors
/// It cannot.
pub fn ask(agent: &Connection) -> std::result::Result<(), fief_agent_proto::Error> {
    match agent.shutdown(Shutdown {
        action: ShutdownAction::Poweroff,
        force: false,
    }) {
        // It went down faster than the answer came.
        Err(fief_agent_proto::Error::Lost(_)) => Ok(()),
        other => other,
    }
}

fn press_power_button(tenant: &Tenant, patience: Duration) -> bool {
    let pressed =
        vm::api(tenant).map(|(_directory, api)| api.with_timeout(patience).press_power_button());
    matches!(pressed, Ok(Ok(())))
}

/// Ends a running tenant without asking it.
///
/// # Errors
/// It belongs to somebody else, or cannot be cleaned up.
pub fn force(store: &Store, tenant: &Tenant, state: &State) -> Result<()> {
    let Some(shim) = Process::open(state.shim_pid) else {
        store.wait_idle(tenant, CLEANUP)?;
        return Ok(());
    };
    // Looked at after it was opened: if this shim still has the tenant, the process is that shim.
    if tenant
        .state()?
        .is_none_or(|now| now.shim_pid != state.shim_pid)
    {
        return Ok(());
    }
    shim.signal(Signal::TERM)?;
    if store.wait_idle(tenant, CLEANUP)? {
        return Ok(());
    }
    // A shim that does not listen: the kernel takes its monitor along, the next look cleans up.
    shim.signal(Signal::KILL)?;
    if store.wait_idle(tenant, CLEANUP)? {
        return Ok(());
    }
    Err(Error::new(format!(
        "tenant '{}' cannot be ended; its shim is process {}",
        tenant.name, state.shim_pid
    )))
}
