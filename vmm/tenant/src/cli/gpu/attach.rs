//! `fief gpu attach` and `fief gpu detach`: devices of a tenant, while it runs and while it does not.

use std::time::Duration;

use fief_api::{ClientError, PciAddress};
use fief_host::pci::{Pci, Places};

use crate::backend::vm;
use crate::cli::devices::{one_function, whole_device};
use crate::cli::disk::is_gone;
use crate::cli::{Context, Error, Result, prepare};
use crate::devices::Registry;
use crate::spec::{Device, Spec, TenantName};
use crate::store::{Store, Tenant};
use crate::terminal::{output, say};

/// How long the monitor may take to answer, and the guest to let go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Flags of `fief gpu attach`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A tenant that runs has the device at once, if it was made or started with --pin-memory or with a device: the \
    device reaches all of its memory, which then cannot be given back to this machine."
)]
pub struct AttachArgs {
    /// The one function alone, not the others of its device
    #[arg(long)]
    alone: bool,
    /// Even if the device cannot be reset and another tenant had it before
    #[arg(long)]
    allow_no_reset: bool,
    /// The tenant
    name: TenantName,
    /// PCI address, as in 0000:01:00.0 or 01:00.0
    address: PciAddress,
}

/// Flags of `fief gpu detach`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A tenant that runs is asked to let go of the device. One that it was started with stays until it stops."
)]
pub struct DetachArgs {
    /// The tenant
    name: TenantName,
    /// PCI address, as in 0000:01:00.0 or 01:00.0
    address: PciAddress,
}

pub fn attach(context: &Context, args: &AttachArgs) -> Result<()> {
    let store = context.store()?;
    let tenant = store.tenant(&args.name)?;
    let pci = Pci::read(&Places::default());
    let device = match args.alone {
        true => one_function(&pci, args.address, args.allow_no_reset)?,
        false => whole_device(&pci, args.address, args.allow_no_reset)?,
    };
    // Until it is written down whose it is.
    let registry = Registry::open()?;
    tenant.change_spec(|spec| add(&store, &registry, &tenant, spec, device.clone()))?;
    drop(registry);
    output(&format!("{}\n", args.address))?;
    Ok(())
}

fn add(
    store: &Store,
    registry: &Registry,
    tenant: &Tenant,
    spec: &mut Spec,
    device: Device,
) -> Result<()> {
    spec.devices.push(device.clone());
    spec.check(prepare::total_memory()?)?;
    registry.check(store, tenant.name.as_str(), &spec.devices)?;
    if tenant.runs() {
        let (_directory, api) = vm::api(tenant)?;
        let client = api.with_timeout(vm::PINNING);
        // What it was started with counts, not what its spec says by now.
        if client.vm_config()?.balloon.is_some() {
            return Err(Error::new(format!(
                "tenant '{0}' gives unused memory back to this machine while it runs, which a device must not meet; \
                 `fief set {0} --pin-memory`, then `fief restart {0}`, and attach the device (or stop it, attach, and start it)",
                tenant.name
            )));
        }
        vm::give_device(&client, registry, tenant, &device)?;
    }
    Ok(())
}

pub fn detach(context: &Context, args: &DetachArgs) -> Result<()> {
    let tenant = context.store()?.tenant(&args.name)?;
    tenant.change_spec(|spec| -> Result<()> {
        let has = |device: &Device| device.functions().any(|f| f == args.address);
        let place = spec.devices.iter().position(has).ok_or_else(|| {
            Error::new(format!(
                "tenant '{0}' does not have {1}; `fief inspect {0}` lists its devices",
                tenant.name, args.address
            ))
        })?;
        let device = spec.devices.remove(place);
        if tenant.runs() {
            // A tenant that was started with it has it on the bus that stays as it is.
            take_away(&tenant, &device)?;
        }
        Ok(())
    })?;
    output(&format!("{}\n", args.address))?;
    Ok(())
}

/// Asks the guest to let go of a device, and waits until it has.
fn take_away(tenant: &Tenant, device: &Device) -> Result<()> {
    let (_directory, api) = vm::api(tenant)?;
    let api = api.with_timeout(PATIENCE);
    let id = device.id();
    let is_there = || -> Result<bool> {
        let devices = api.vm_config()?.device_passthrough;
        Ok(devices.iter().any(|there| there.id == id))
    };
    if !is_there()? {
        return Ok(());
    }
    match api.delete_device(&id) {
        Ok(()) => {}
        // One that it was started with.
        Err(error @ ClientError::Refused { .. }) => {
            say(&format!(
                "fief: tenant '{0}' keeps {1} until it stops: {error}",
                tenant.name, device.address
            ));
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    if is_gone(PATIENCE, is_there)? {
        return Ok(());
    }
    Err(Error::new(format!(
        "tenant '{0}' was asked for {1} and has not let go of it; try again, or `fief stop {0}` and then detach it",
        tenant.name, device.address
    )))
}
