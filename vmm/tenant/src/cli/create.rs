//! `fief create`, and what `fief run` shares with it: flags that become a spec, and the making of a tenant.

use std::process::ExitCode;

use fief_images::Images;

use super::devices::DeviceArgs;
use super::environment::{self, Variable};
use super::network::NetArgs;
use super::policy::PolicyArgs;
use super::prepare;
use super::ssh_key;
use super::{Context, Error, Result};
use crate::backend::container::{cdi, runtime::portable};
use crate::carry::Needs;
use crate::devices::Registry;
use crate::network;
use crate::progress::Shown;
use crate::spec::{
    Bytes, DEFAULT_DISK, DEFAULT_MEMORY, Init, Isolation, KernelFormat, Limits, LogBounds, Net,
    RestartPolicy, Spec, TenantName, VERSION,
};
use crate::store::{Locked, Store};
use crate::terminal::output;

/// Free space that a new tenant needs at least; its disk grows as it is used.
const ROOM: u64 = 64 << 20;
/// How often a generated name may turn out to be taken.
const TRIES: u32 = 20;

/// What a tenant is made of.
#[derive(Debug, clap::Args)]
pub struct TenantArgs {
    /// Image to start from: debian, busybox, an imported one, or a directory, tar or image file
    #[arg(long, value_name = "IMAGE", default_value = "debian")]
    image: String,
    /// Processors
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        allow_negative_numbers = true
    )]
    cpus: u64,
    /// Memory
    #[arg(long, value_name = "SIZE", default_value = DEFAULT_MEMORY)]
    memory: Bytes,
    /// Largest size of the tenant's disk; it takes what is used
    #[arg(long, value_name = "SIZE", default_value = DEFAULT_DISK)]
    disk: Bytes,
    /// Process 1: fief's agent (starts at once) or the image's own init (systemd)
    #[arg(long, value_enum, default_value_t = Init::Agent)]
    init: Init,
    /// What keeps it apart: a virtual machine with a kernel of its own, or a container on this machine's kernel
    #[arg(long, value_enum, default_value_t = Isolation::Vm)]
    isolation: Isolation,
    /// OCI runtime of a container: runc, crun, or the path of one [the first of crun and runc that is installed]
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<String>,
    /// Run a container though this machine cannot enforce all of its limits
    #[arg(long)]
    allow_unenforced: bool,
    /// Kernel of a virtual machine: debian, debian-full (with drivers of all hardware), tuned, micro, or a kernel file with everything built in
    #[arg(long, value_name = "KERNEL", default_value = "debian")]
    kernel: String,
    /// Form of the kernel that is booted
    #[arg(long, value_enum, default_value_t = KernelFormat::Elf)]
    kernel_format: KernelFormat,
    /// Host name inside [the tenant's name]
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Let the holder of a key log in by ssh, as the account that is named as the tenant: a public key's file, or the key
    /// itself; may be given several times
    #[arg(long = "ssh-key", value_name = "FILE")]
    ssh_keys: Vec<String>,
    /// Who commands run as unless they say: name, name:group, uid or uid:gid [root]
    #[arg(long, short = 'u', value_name = "USER")]
    user: Option<String>,
    #[command(flatten)]
    network: NetArgs,
    #[command(flatten)]
    devices: DeviceArgs,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// Flags of `fief create`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the tenant
    name: TenantName,
    #[command(flatten)]
    tenant: TenantArgs,
    /// Set a variable for all of its commands; NAME alone passes this shell's value on
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<Variable>,
}

impl Args {
    pub fn needs(&self) -> Needs {
        Needs {
            env: environment::inherited(&self.env),
            ..self.tenant.needs()
        }
    }
}

impl TenantArgs {
    /// What a host needs to make such a tenant.
    pub fn needs(&self) -> Needs {
        Needs {
            image: Some(self.image.clone()),
            kernel: Some(self.kernel.clone()),
            ssh_keys: self.ssh_keys.clone(),
            publish: self.network.ports(),
            changes_ports: true,
            ..Needs::default()
        }
    }

    /// The spec, checked. Makes no image.
    pub fn spec(&self, name: &TenantName, remove: bool, env: &[Variable]) -> Result<Spec> {
        let mut spec = Spec {
            version: VERSION,
            image: self.image.clone(),
            artifact: None,
            kernel: prepare::kernel_choice(&self.kernel)?,
            kernel_format: self.kernel_format,
            // What does not fit is out of bounds all the same.
            cpus: u8::try_from(self.cpus).map_err(|_| crate::spec::SpecError::Cpus(self.cpus))?,
            memory: self.memory,
            disk: self.disk,
            disks: Vec::new(),
            init: self.init,
            isolation: self.isolation,
            // The shim, which starts it, has another working directory.
            runtime: self.runtime.as_deref().map(portable).transpose()?,
            allow_unenforced: self.allow_unenforced,
            gpus: Vec::new(),
            devices: Vec::new(),
            pin_memory: false,
            hostname: self.hostname.clone().unwrap_or_else(|| name.hostname()),
            ssh_keys: ssh_key::read_all(&self.ssh_keys)?,
            keyless_account: false,
            user: self.user.clone(),
            remove,
            net: Net::default(),
            publish: Vec::new(),
            dns: Vec::new(),
            env: environment::over(&[], environment::resolve(env)),
            restart: RestartPolicy::No,
            autostart: false,
            limits: Limits::default(),
            log: LogBounds::default(),
        };
        self.network.apply(&mut spec);
        self.policy.apply(&mut spec);
        self.devices.apply(&mut spec)?;
        spec.check(prepare::total_memory()?)?;
        cdi::resolve(&spec.gpus)?;
        // Before anything is made: images take minutes.
        if spec.net != Net::None {
            network::require()?;
        }
        Ok(spec)
    }
}

/// The name asked for, or one that is free.
pub fn choose_name(store: &Store, asked: Option<&TenantName>) -> Result<TenantName> {
    if let Some(name) = asked {
        return match store.tenant(name) {
            Ok(_) => Err(crate::store::StoreError::Taken(name.to_string()).into()),
            Err(_) => Ok(name.clone()),
        };
    }
    for _ in 0..TRIES {
        let name = TenantName::generate()?;
        if store.tenant(&name).is_err() {
            return Ok(name);
        }
    }
    Err(Error::new(
        "no generated name is free; give one with --name",
    ))
}

/// Makes the tenant with its disk. It is there whole or not at all.
pub fn make(store: &Store, name: &TenantName, spec: &Spec) -> Result<Locked> {
    fief_images::space::require(store.root(), "a tenant", ROOM)?;
    // Until the tenant is there: nobody else is given its devices meanwhile.
    let registry = (!spec.devices.is_empty())
        .then(Registry::open)
        .transpose()?;
    if let Some(registry) = &registry {
        registry.check(store, name.as_str(), &spec.devices)?;
    }
    let draft = store.draft(name, spec)?;
    fief_images::disk::make(&draft.disk(spec.isolation), spec.disk.0).map_err(Error::from)?;
    draft.make_network(spec)?;
    Ok(draft.publish()?)
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    let name = choose_name(&store, Some(&args.name))?;
    let mut spec = args.tenant.spec(&name, false, &args.env)?;
    let images: Images = context.images()?;
    prepare::resolve(&images, &mut spec, &Shown::default())?;
    make(&store, &name, &spec)?;
    output(&format!("{name}\n"))?;
    Ok(ExitCode::SUCCESS)
}
