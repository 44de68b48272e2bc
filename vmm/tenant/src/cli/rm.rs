//! `fief rm`.

use std::process::ExitCode;

use super::{Context, Result, stop};
use crate::spec::TenantName;
use crate::store::StoreError;
use crate::terminal::output;

/// Flags of `fief rm`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also tenants that run: they are ended at once
    #[arg(long, short = 'f')]
    force: bool,
    /// Tenants to remove
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TenantName>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    for name in &args.names {
        let tenant = store.tenant(name)?;
        if args.force
            && let Some(state) = tenant.state().ok().flatten()
        {
            stop::force(&store, &tenant, &state)?;
        }
        match store.lock(name) {
            Ok(locked) => locked.remove()?,
            // It was to be removed when it ended, and was.
            Err(StoreError::NoTenant(_)) if args.force => {}
            Err(error) => return Err(error.into()),
        }
        output(&format!("{name}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
