//! `fief grant`, `fief revoke`, `fief grants`.

use std::process::ExitCode;

use super::{Context, Result};
use crate::network::{self, Grant, Protocol, grants};
use crate::provide;
use crate::spec::TenantName;
use crate::store::Store;
use crate::table::table;
use crate::terminal::{output, say};

/// Flags of `fief grant` and `fief revoke`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The tenant whose port it is
    name: TenantName,
    /// The tenant that may reach it, by the name NAME.fief
    #[arg(long, value_name = "TENANT")]
    to: TenantName,
    /// The port
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Its protocol
    #[arg(long = "proto", value_enum, default_value_t = Protocol::Tcp)]
    protocol: Protocol,
}

impl Args {
    fn grant(&self) -> Grant {
        Grant {
            tenant: self.name.clone(),
            to: self.to.clone(),
            port: self.port,
            protocol: self.protocol,
        }
    }
}

/// Flags of `fief grants`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn grant(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    let grant = args.grant();
    for name in [&grant.tenant, &grant.to] {
        store.tenant(name)?;
    }
    network::grant(&store, &grant)?;
    renew(&store, &grant);
    output(&format!("{grant}\n"))?;
    Ok(ExitCode::SUCCESS)
}

pub fn revoke(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    let grant = args.grant();
    network::revoke(&store, &grant)?;
    renew(&store, &grant);
    output(&format!("{grant}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Names the one tenant in the other, or no longer.
fn renew(store: &Store, grant: &Grant) {
    let told = store
        .tenant(&grant.to)
        .map(|tenant| provide::renew(&tenant));
    if let Ok(Err(error)) = told {
        let why = crate::failure::chain(&error);
        say(&format!(
            "fief: warning: tenant '{}' does not hear of it ({why}); the name {}.fief in it is right again when it boots",
            grant.to, grant.tenant
        ));
    }
}

pub fn list(context: &Context, args: &ListArgs) -> Result<ExitCode> {
    let store = context.store()?;
    let grants = grants::read(store.root())?;
    let text = if args.json {
        serde_json::to_string_pretty(&grants)? + "\n"
    } else {
        table(
            &["TENANT", "TO", "PORT", "PROTO"],
            grants.iter().map(|grant| {
                vec![
                    grant.tenant.to_string(),
                    grant.to.to_string(),
                    grant.port.to_string(),
                    grant.protocol.to_string(),
                ]
            }),
        )
    };
    output(&text)?;
    Ok(ExitCode::SUCCESS)
}
