//! `fief wait`: the end of a tenant, awaited.

use std::process::ExitCode;
use std::time::Duration;

use super::{Context, Error, Result};
use crate::process::Process;
use crate::spec::TenantName;
use crate::store::{Store, StoreError, Tenant};
use crate::terminal::output;

/// How long the shim's last writing and cleaning may take once it has ended, or was killed.
const CLEANUP: Duration = Duration::from_secs(20);

/// Flags of `fief wait`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tenants to wait for
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TenantName>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    let tenants = args.names.iter().map(|name| store.tenant(name));
    // All of them first: a name that is none is told at once.
    for tenant in tenants.collect::<std::result::Result<Vec<_>, _>>()? {
        let code = end_of(&store, &tenant)?;
        output(&format!("{code}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the tenant has ended, if it runs; the exit code of its last run.
fn end_of(store: &Store, tenant: &Tenant) -> Result<i32> {
    let removed_at_its_end = tenant.spec()?.remove;
    if let Some(state) = tenant.state()?
        && let Some(shim) = Process::open(state.shim_pid)
        // Looked at after it was opened: if this shim still has the tenant, the process is that shim.
        && tenant
            .state()?
            .is_some_and(|now| now.shim_pid == state.shim_pid)
    {
        while !shim.wait(Duration::MAX) {}
    }
    store.wait_idle(tenant, CLEANUP)?;
    match tenant.exit()? {
        Some(exit) => Ok(exit.code),
        None if removed_at_its_end => Err(Error::new(format!(
            "tenant '{}' has ended, and its exit code was removed with it; leave --rm out to keep that",
            tenant.name
        ))),
        None if tenant.state()?.is_some() => Err(Error::new(format!(
            "tenant '{0}' ended and was started again meanwhile; wait again with `fief wait {0}`",
            tenant.name
        ))),
        None => Err(StoreError::NotRunning(tenant.name.to_string()).into()),
    }
}
