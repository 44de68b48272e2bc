//! `fief inspect`.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use serde::Serialize;

use super::{Context, Result, ps};
use crate::network::Record;
use crate::spec::{Spec, TenantName};
use crate::terminal::output;

/// Flags of `fief inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The tenant
    name: TenantName,
}

#[derive(Debug, Serialize)]
struct Everything {
    #[serde(flatten)]
    entry: ps::Entry,
    #[serde(skip_serializing_if = "Option::is_none")]
    reboots: Option<u64>,
    directory: String,
    console_log: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Network>,
    /// The account for ssh.
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<String>,
    spec: Spec,
}

#[derive(Debug, Serialize)]
struct Network {
    mac: String,
    gateway: Ipv4Addr,
    #[serde(flatten)]
    record: Record,
}

impl From<Record> for Network {
    fn from(record: Record) -> Self {
        Self {
            mac: record.mac().to_string(),
            gateway: record.gateway(),
            record,
        }
    }
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    let tenant = store.tenant(&args.name)?;
    let spec = tenant.spec()?;
    let everything = Everything {
        login: (!spec.ssh_keys.is_empty()).then(|| args.name.login()),
        spec,
        entry: ps::Entry::of(&tenant),
        reboots: tenant.state()?.map(|state| state.reboots),
        directory: tenant.directory().display().to_string(),
        console_log: tenant.console().display().to_string(),
        network: Record::read(tenant.directory())?.map(Network::from),
    };
    output(&(serde_json::to_string_pretty(&everything)? + "\n"))?;
    Ok(ExitCode::SUCCESS)
}
