//! `fief stop` and `fief kill`: the end of a tenant, politely or not.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use fief_agent_proto::{Connection, Shutdown, ShutdownAction};
use rustix::process::Signal;

use super::{Context, Error, OWN_FAILURE, Result};
use crate::agent;
use crate::backend::{container, vm};
use crate::process::Process;
use crate::spec::{Isolation, TenantName};
use crate::store::{Phase, State, StoppedBy, Store, Tenant};
use crate::terminal::{output, say};

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
    /// All that run
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Because the host shuts down: what was to keep running is started again by `fief start --all`
    #[arg(long)]
    for_shutdown: bool,
    /// Tenants to stop
    #[arg(required_unless_present = "all", value_name = "NAME")]
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
pub enum How {
    /// It was about to be started again by its policy.
    Between,
    /// Its agent shut it down.
    Agent,
    /// Its power button was pressed.
    PowerButton,
    /// It ended while it was to be asked.
    ByItself,
    /// Its monitor was killed.
    Force,
}

impl How {
    fn words(self) -> &'static str {
        match self {
            How::Between => "stopped (it was to be started again)",
            How::Agent => "stopped",
            How::PowerButton => "stopped by its power button (its agent did not answer)",
            How::ByItself => "stopped (it had ended by itself)",
            How::Force => "ended by force (it did not shut down in time)",
        }
    }
}

pub fn stop(context: &Context, args: &StopArgs) -> Result<ExitCode> {
    let store = context.store()?;
    let patience = Duration::from_secs(args.time.into());
    let by = if args.for_shutdown {
        StoppedBy::Shutdown
    } else {
        StoppedBy::User
    };
    if args.all {
        return stop_all(&store, patience, by);
    }
    for name in &args.names {
        let (tenant, state) = store.running(name)?;
        tenant.mark_stopped(by)?;
        let how = shut_down(&store, &tenant, &state, patience)?;
        output(&format!("{name}: {}\n", how.words()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops all that run, at once: a host that shuts down does not wait for one after the other.
fn stop_all(store: &Store, patience: Duration, by: StoppedBy) -> Result<ExitCode> {
    let mut running = Vec::new();
    for tenant in store.tenants()? {
        if let Ok(Some(state)) = tenant.state() {
            tenant.mark_stopped(by)?;
            running.push((tenant, state));
        }
    }
    let ended: Vec<_> = std::thread::scope(|scope| {
        let stop = |(tenant, state): &(Tenant, State)| shut_down(store, tenant, state, patience);
        let threads: Vec<_> = running
            .iter()
            .map(|one| scope.spawn(move || stop(one)))
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut failed = false;
    for ((tenant, _), ended) in running.iter().zip(ended) {
        match ended {
            Ok(Ok(how)) => output(&format!("{}: {}\n", tenant.name, how.words()))?,
            Ok(Err(error)) => {
                failed = true;
                say(&error.text());
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(if failed {
        ExitCode::from(OWN_FAILURE)
    } else {
        ExitCode::SUCCESS
    })
}

pub fn kill(context: &Context, args: &KillArgs) -> Result<ExitCode> {
    let store = context.store()?;
    for name in &args.names {
        let (tenant, state) = store.running(name)?;
        tenant.mark_stopped(StoppedBy::User)?;
        force(&store, &tenant, &state)?;
        output(&format!("{name}: killed\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks a running tenant to end, and makes it end when `patience` is over.
///
/// # Errors
/// See [`force`].
pub fn shut_down(store: &Store, tenant: &Tenant, state: &State, patience: Duration) -> Result<How> {
    if state.phase == Phase::Restarting {
        // Nothing runs: its shim is told not to start it again.
        force(store, tenant, state)?;
        return Ok(How::Between);
    }
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
    // It may have ended meanwhile, and wait for its next start.
    let how = match tenant.state()? {
        None => How::ByItself,
        Some(now) if now.phase == Phase::Restarting => How::Between,
        Some(_) => How::Force,
    };
    force(store, tenant, state)?;
    Ok(how)
}

fn connect(tenant: &Tenant, patience: Duration) -> Option<Connection> {
    agent::try_connect(tenant, Instant::now() + patience).ok()
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
    let Ok(spec) = tenant.spec() else {
        return false;
    };
    match spec.isolation {
        Isolation::Vm => {
            let pressed = vm::api(tenant)
                .map(|(_directory, api)| api.with_timeout(patience).press_power_button());
            matches!(pressed, Ok(Ok(())))
        }
        Isolation::Container => container::press_power_button(tenant, spec.init).is_ok(),
    }
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
