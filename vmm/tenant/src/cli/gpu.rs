//! `fief gpu`: the PCI functions of the machine that tenants can have, GPUs before all.

use std::collections::BTreeMap;
use std::process::ExitCode;

use fief_api::PciAddress;
use fief_host::pci::bind::{BindError, Change, Running, bind, unbind};
use fief_host::pci::{Function, Kind, Obstacle, Passable, Pci, Places};
use nix::unistd::geteuid;
use serde::Serialize;

use super::{Context, Error, Result};
use crate::spec::{Device, TenantName};
use crate::table::table;
use crate::terminal::{output, say};

mod attach;
mod columns;

/// Subcommands of `fief gpu`.
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// List GPUs, and other PCI devices that a tenant can have
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Take devices from the host for tenants: bind them to vfio-pci
    Bind(AddressArgs),
    /// Give devices back to the host: to the drivers that they had
    Unbind(AddressArgs),
    /// Give a device to a tenant; one that runs has it at once
    Attach(attach::AttachArgs),
    /// Take a device from a tenant
    Detach(attach::DetachArgs),
}

/// Flags of `fief gpu list`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "PASSABLE says whether a tenant can have it: ready, bind (once `fief gpu bind` took it from the host), or no; why \
    is told below the table. RESET is how it is reset between tenants, BARS are its memory regions."
)]
pub struct ListArgs {
    /// Every PCI function, also those that stay with the host
    #[arg(long)]
    all: bool,
    /// As JSON, with all that is known
    #[arg(long)]
    json: bool,
}

/// Flags of `fief gpu bind` and `fief gpu unbind`.
#[derive(Debug, clap::Args)]
pub struct AddressArgs {
    /// PCI addresses, as in 0000:01:00.0 or 01:00.0; the other functions of the same device and IOMMU group go along
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<PciAddress>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    match args {
        Args::List(args) => list(context, args)?,
        Args::Bind(args) => {
            as_root("bind")?;
            let done = bind(
                &Running,
                &Places::default(),
                context.state(),
                &args.addresses,
            );
            told(&args.addresses, done)?;
        }
        Args::Unbind(args) => {
            as_root("unbind")?;
            let done = unbind(
                &Running,
                &Places::default(),
                context.state(),
                &args.addresses,
            );
            told(&args.addresses, done)?;
        }
        Args::Attach(args) => attach::attach(context, args)?,
        Args::Detach(args) => attach::detach(context, args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn as_root(what: &str) -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(format!(
        "only root may change the drivers of devices; run `sudo fief gpu {what} ...`"
    )))
}

/// What became of each function, and what is still in a tenant's way.
fn told(addresses: &[PciAddress], done: std::result::Result<Vec<Change>, BindError>) -> Result<()> {
    for change in done? {
        let driver = |name: Option<String>| name.unwrap_or_else(|| "no driver".to_owned());
        let (from, to) = (driver(change.from), driver(change.to));
        let address = change.address;
        output(&if from == to {
            format!("{address}: {to}, as before\n")
        } else {
            format!("{address}: {from} -> {to}\n")
        })?;
    }
    let pci = Pci::read(&Places::default());
    for &address in addresses {
        let function = pci.function(address)?;
        if function.is_bound() {
            for obstacle in pci.obstacles(function) {
                say(&format!("fief: {address}: {obstacle}"));
            }
        }
    }
    Ok(())
}

/// One function as `--json` has it.
#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    function: &'a Function,
    name: String,
    /// The others of its IOMMU group.
    group_with: Vec<PciAddress>,
    passable: Passable,
    obstacles: Vec<Told>,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<TenantName>,
}

/// A reason, for programs and in words.
#[derive(Serialize)]
struct Told {
    #[serde(flatten)]
    obstacle: Obstacle,
    message: String,
}

impl<'a> Entry<'a> {
    fn new(pci: &'a Pci, function: &'a Function, owners: &Owners) -> Self {
        let told = |obstacle: Obstacle| Told {
            message: obstacle.to_string(),
            obstacle,
        };
        Self {
            function,
            name: function.name(),
            group_with: pci.mates(function).map(|mate| mate.address).collect(),
            passable: pci.passable(function),
            obstacles: pci.obstacles(function).into_iter().map(told).collect(),
            tenant: owners.get(&function.address).cloned(),
        }
    }

    /// Says whose it is.
    fn owned(&self) -> Option<String> {
        let tenant = self.tenant.as_ref()?;
        let address = self.function.address;
        Some(format!("{address}: belongs to tenant '{tenant}'\n"))
    }

    /// Of interest to those who look for what to give.
    fn is_candidate(&self) -> bool {
        self.function.kind == Kind::Gpu || self.passable != Passable::No || self.function.is_bound()
    }
}

/// The tenants that have functions.
type Owners = BTreeMap<PciAddress, TenantName>;

fn owners(context: &Context) -> Result<Owners> {
    let mut owners = Owners::new();
    for tenant in context.store()?.tenants()? {
        // One whose spec cannot be read has nothing.
        let devices = tenant
            .spec()
            .map_or_else(|_| Vec::new(), |spec| spec.devices);
        let functions = devices.iter().flat_map(Device::functions);
        owners.extend(functions.map(|function| (function, tenant.name.clone())));
    }
    Ok(owners)
}

fn list(context: &Context, args: &ListArgs) -> Result<()> {
    let places = Places::default();
    let pci = Pci::read(&places);
    let owners = owners(context)?;
    let all: Vec<_> = pci
        .functions()
        .map(|function| Entry::new(&pci, function, &owners))
        .filter(|entry| args.all || entry.is_candidate())
        .collect();
    if args.json {
        return Ok(output(&(serde_json::to_string_pretty(&all)? + "\n"))?);
    }
    let rows = all
        .iter()
        .map(|entry| columns::row(entry.function, entry.passable));
    output(&table(&columns::HEADER, rows))?;
    let owned: Vec<_> = all.iter().filter_map(Entry::owned).collect();
    if !owned.is_empty() {
        output(&format!("\n{}", owned.concat()))?;
    }
    let reasons = reasons(&all);
    if !reasons.is_empty() {
        output(&format!("\n{reasons}"))?;
    }
    if !pci.functions().any(|function| function.kind == Kind::Gpu) {
        say(&format!(
            "fief: no GPU: none of {} PCI functions in {} is a display controller (class 03)",
            pci.functions().count(),
            places.functions().display()
        ));
    }
    Ok(())
}

/// Why functions cannot be passed, each reason once with all whose it is.
fn reasons(all: &[Entry<'_>]) -> String {
    let mut told: Vec<(&str, Vec<PciAddress>)> = Vec::new();
    let each = all.iter().flat_map(|entry| {
        let messages = entry.obstacles.iter().map(|told| told.message.as_str());
        messages.map(|message| (entry.function.address, message))
    });
    for (address, message) in each {
        match told.iter_mut().find(|(known, _)| *known == message) {
            Some((_, addresses)) => addresses.push(address),
            None => told.push((message, vec![address])),
        }
    }
    let line = |(message, addresses): (&str, Vec<PciAddress>)| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        format!("{}: {message}\n", addresses.join(", "))
    };
    told.into_iter().map(line).collect()
}
