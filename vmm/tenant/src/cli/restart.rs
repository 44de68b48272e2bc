//! `fief restart`: stop and start.

use std::process::ExitCode;
use std::time::Duration;

use super::start::Starter;
use super::{Context, Error, Result, stop};
use crate::spec::TenantName;
use crate::store::StoppedBy;
use crate::terminal::output;

/// Flags of `fief restart`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seconds to wait before a tenant is ended by force
    #[arg(long, short = 't', value_name = "SECONDS", default_value_t = 30)]
    time: u32,
    /// Tenants to restart; one that is stopped is started
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TenantName>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let starter = Starter::new(context)?;
    let patience = Duration::from_secs(args.time.into());
    for name in &args.names {
        restart(&starter, name, patience)?;
        output(&format!("{name}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn restart(starter: &Starter<'_>, name: &TenantName, patience: Duration) -> Result<()> {
    let tenant = starter.store.tenant(name)?;
    if let Some(state) = tenant.state()? {
        if tenant.spec()?.remove {
            return Err(Error::new(format!(
                "tenant '{name}' cannot be restarted: it is removed when it ends, as --rm asked for; make it again \
                 without that"
            )));
        }
        tenant.mark_stopped(StoppedBy::User)?;
        stop::shut_down(&starter.store, &tenant, &state, patience)?;
    }
    starter.start(name)
}
