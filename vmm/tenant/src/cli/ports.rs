//! `fief ports`: what tenants publish, for the keeper of an emulated host.

use std::process::ExitCode;

use fief_host::emulated::ports::{Port, Transport};

use super::{Context, Result};
use crate::network::{Protocol, Publish};
use crate::table::table;
use crate::terminal::output;

/// Flags of `fief ports`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// The port of this machine.
pub fn port(publish: &Publish) -> Port {
    Port {
        protocol: match publish.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
        },
        address: publish.address,
        port: publish.port,
    }
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let mut published = Vec::new();
    for tenant in context.store()?.tenants()? {
        // One that is just being removed, or is damaged, publishes nothing.
        let Ok(spec) = tenant.spec() else { continue };
        let ports = spec.publish.iter();
        published.extend(ports.map(|publish| (tenant.name.clone(), *publish)));
    }
    let text = if args.json {
        let ports: Vec<Port> = published.iter().map(|(_, publish)| port(publish)).collect();
        serde_json::to_string(&ports)? + "\n"
    } else {
        let rows = published.iter();
        table(
            &["TENANT", "PORT", "TO"],
            rows.map(|(name, publish)| {
                vec![
                    name.to_string(),
                    port(publish).to_string(),
                    publish.to.to_string(),
                ]
            }),
        )
    };
    output(&text)?;
    Ok(ExitCode::SUCCESS)
}
