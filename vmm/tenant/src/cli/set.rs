//! `fief set`: what a tenant asks for, changed. What can take effect in a running tenant does so at once.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use fief_api::{PartialDrive, PartialNetworkInterface};

use super::environment::{self, Variable};
use super::policy::PolicyArgs;
use super::{Context, Error, Result, exec, isolation, prepare, remote, ssh_key, start};
use crate::backend::container::runtime::portable;
use crate::backend::{container, vm};
use crate::carry::Needs;
use crate::cgroup::{Group, Settings};
use crate::network;
use crate::provide;
use crate::spec::{Bytes, Isolation, Net, Spec, SpecError, TenantName};
use crate::store::{Phase, Tenant};
use crate::terminal::{output, say};

/// How long the monitor and the agent of a running tenant may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Flags of `fief set`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Variables, keys, policies, weights, rates and a larger disk take effect at once; processors and memory \
    when the tenant starts the next time. --isolation moves a stopped tenant with its files: owners, modes, times, attributes, \
    ACLs, capabilities, hard links and holes are kept; with device nodes or trusted.* attributes it is not moved."
)]
pub struct Args {
    /// Processors, from the next start on
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cpus: Option<u64>,
    /// Memory, from the next start on
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Largest size of the disk; it cannot shrink
    #[arg(long, value_name = "SIZE")]
    disk: Option<Bytes>,
    /// Move it, stopped, with its files: into a virtual machine (vm), or a container
    #[arg(long, value_enum)]
    isolation: Option<Isolation>,
    /// OCI runtime of a container, from the next start on: runc, crun, or the path of one
    #[arg(long, value_name = "RUNTIME")]
    runtime: Option<String>,
    /// Run a container though this machine cannot enforce all of its limits
    #[arg(long)]
    allow_unenforced: bool,
    /// Never give a machine's unused memory back, from the next start on, so that devices can be attached while it runs
    #[arg(long, overrides_with = "no_pin_memory")]
    pin_memory: bool,
    /// Do
    #[arg(long, overrides_with = "pin_memory", hide = true)]
    no_pin_memory: bool,
    /// Set a variable for all of its commands; NAME= drops it, NAME alone passes this shell's value on
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<Variable>,
    /// Let the holder of one more key log in by ssh: a public key's file, or the key itself; may be given several times
    #[arg(long = "ssh-key", value_name = "FILE")]
    ssh_keys: Vec<String>,
    /// Let the holder of a key log in no more; sessions that are open stay
    #[arg(long = "remove-ssh-key", value_name = "FILE")]
    remove_ssh_keys: Vec<String>,
    #[command(flatten)]
    policy: PolicyArgs,
    /// The tenant
    name: TenantName,
}

impl Args {
    pub fn needs(&self) -> Needs {
        Needs {
            env: environment::inherited(&self.env),
            ssh_keys: [&*self.ssh_keys, &*self.remove_ssh_keys].concat(),
            ..Needs::default()
        }
    }

    fn says_nothing(&self) -> bool {
        self.cpus.is_none()
            && self.memory.is_none()
            && self.disk.is_none()
            && self.isolation.is_none()
            && self.runtime.is_none()
            && !self.allow_unenforced
            && !self.pin_memory
            && !self.no_pin_memory
            && self.env.is_empty()
            && self.ssh_keys.is_empty()
            && self.remove_ssh_keys.is_empty()
            && self.policy == PolicyArgs::default()
    }

    fn apply(&self, spec: &mut Spec) -> Result<()> {
        if let Some(cpus) = self.cpus {
            spec.cpus = u8::try_from(cpus).map_err(|_| SpecError::Cpus(cpus))?;
        }
        spec.memory = self.memory.unwrap_or(spec.memory);
        spec.disk = self.disk.unwrap_or(spec.disk);
        spec.isolation = self.isolation.unwrap_or(spec.isolation);
        if let Some(runtime) = &self.runtime {
            spec.runtime = Some(portable(runtime)?);
        }
        spec.allow_unenforced |= self.allow_unenforced;
        if self.pin_memory || self.no_pin_memory {
            spec.pin_memory = self.pin_memory;
        }
        spec.env = environment::over(&spec.env, environment::resolve(&self.env));
        if !self.env.is_empty() {
            spec.env.retain(|(_, value)| !value.is_empty());
        }
        let more = ssh_key::read_all(&self.ssh_keys)?;
        let less = ssh_key::read_all(&self.remove_ssh_keys)?;
        let had_account = spec.has_account();
        spec.ssh_keys = ssh_key::change(&spec.ssh_keys, more, &less)?;
        spec.keyless_account = had_account && spec.ssh_keys.is_empty();
        self.policy.apply(spec);
        Ok(())
    }

    /// The same, checked.
    fn change(&self, spec: &mut Spec) -> Result<()> {
        let had = spec.disk;
        self.apply(spec)?;
        spec.check(prepare::total_memory()?)?;
        if spec.disk < had {
            return Err(Error::new(format!(
                "--disk {} is less than the {had} it has, and a disk cannot shrink; give at least that",
                spec.disk
            )));
        }
        Ok(())
    }
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    if args.says_nothing() {
        return Err(Error::new(
            "nothing to set; say what, as in `fief set alice --memory 2G` (`fief set --help` lists it)",
        ));
    }
    let store = context.store()?;
    let tenant = store.tenant(&args.name)?;
    let has = tenant.spec()?.isolation;
    if args.isolation.is_some_and(|wanted| wanted != has) {
        isolation::change(context, &store, &args.name, &|spec| args.change(spec))?;
        output(&format!("{}\n", args.name))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut before = None;
    let after = tenant.change_spec(|spec| -> Result<()> {
        before = Some(spec.clone());
        args.change(spec)?;
        if args.disk.is_some() {
            // Last, as it cannot be taken back.
            fief_images::disk::grow(&tenant.disk(spec.isolation), spec.disk.0)?;
        }
        Ok(())
    })?;
    if let (Some(before), Ok(Some(_))) = (before, tenant.state()) {
        let running = Running {
            tenant: &tenant,
            before: &before,
            after: &after,
        };
        for note in running.apply() {
            say(&format!("fief: {}: {note}", args.name));
        }
    }
    output(&format!("{}\n", args.name))?;
    Ok(ExitCode::SUCCESS)
}

/// A tenant that runs while its spec changes.
struct Running<'a> {
    tenant: &'a Tenant,
    before: &'a Spec,
    after: &'a Spec,
}

impl Running<'_> {
    /// Lets what can take effect do so; what cannot, in words.
    fn apply(&self) -> Vec<String> {
        let (before, after) = (self.before, self.after);
        let mut notes = Vec::new();
        let later = [
            (before.cpus != after.cpus, "processors"),
            (before.memory != after.memory, "memory"),
            (before.log != after.log, "log"),
            (before.pin_memory != after.pin_memory, "pinned memory"),
        ];
        let later: Vec<_> = later
            .iter()
            .filter_map(|(changed, what)| changed.then_some(*what))
            .collect();
        if !later.is_empty() {
            let (what, name) = (later.join(" and "), &self.tenant.name);
            notes.push(format!(
                "{what} as asked from its next start on; `fief restart {name}` starts it now"
            ));
        }
        let weights = |spec: &Spec| (spec.limits.cpu_weight, spec.limits.io_weight);
        if weights(before) != weights(after) {
            notes.extend(Group::of(self.tenant).set_weights(&Settings::of(after)));
        }
        let mut try_now = |what: &str, done: Result<()>| {
            if let Err(error) = done {
                let why = error.text();
                let why = why.strip_prefix("fief: ").unwrap_or(&why);
                notes.push(format!("{what} from its next start on: {why}"));
            }
        };
        let disk = |spec: &Spec| (spec.limits.disk_rate, spec.limits.disk_ops);
        if disk(before) != disk(after) {
            try_now("the disk's new rates take effect", self.limit_disk());
        }
        if before.limits.net_rate != after.limits.net_rate {
            try_now("the network's new rate takes effect", self.limit_net());
        }
        if before.ssh_keys != after.ssh_keys {
            let given = provide::renew(self.tenant);
            try_now("the change of its keys takes effect", given.map_err(remote));
        }
        if before.disk != after.disk {
            try_now("the disk's new size can be used", self.grow_disk());
        }
        notes
    }

    fn patch_disk(&self, patch: PartialDrive) -> Result<()> {
        let (_directory, api) = vm::api(self.tenant)?;
        Ok(api.with_timeout(PATIENCE).patch_drive(&patch)?)
    }

    /// Whether it is a container, and one that has been made: one that is just being made has its limits of before.
    fn is_container(&self) -> Result<bool> {
        if self.after.isolation == Isolation::Vm {
            return Ok(false);
        }
        match self.tenant.state()? {
            Some(state) if state.phase == Phase::Running => Ok(true),
            _ => Err(Error::new("it is just starting")),
        }
    }

    fn limit_disk(&self) -> Result<()> {
        if self.is_container()? {
            return Ok(container::limit_disk(self.tenant, &self.after.limits)?);
        }
        self.patch_disk(PartialDrive {
            drive_id: vm::DISK_DRIVE.to_owned(),
            path_on_host: None,
            rate_limiter: Some(self.after.limits.disk_limiter()),
        })
    }

    fn limit_net(&self) -> Result<()> {
        if self.after.net == Net::None {
            return Ok(());
        }
        if self.is_container()? {
            let network = network::Record::read(self.tenant.directory())?;
            let rate = self.after.limits.net_rate;
            return Ok(network.map_or(Ok(()), |network| network::limit(&network, rate))?);
        }
        let limiter = Some(self.after.limits.net_limiter());
        let (_directory, api) = vm::api(self.tenant)?;
        Ok(api
            .with_timeout(PATIENCE)
            .patch_network_interface(&PartialNetworkInterface {
                iface_id: vm::INTERFACE.to_owned(),
                rx_rate_limiter: limiter,
                tx_rate_limiter: limiter,
            })?)
    }

    /// The monitor looks at the file's size again, then the agent lets the file system fill it.
    fn grow_disk(&self) -> Result<()> {
        self.patch_disk(PartialDrive {
            drive_id: vm::DISK_DRIVE.to_owned(),
            path_on_host: Some(start::text(&self.tenant.disk(self.after.isolation))),
            rate_limiter: None,
        })?;
        let deadline = Instant::now() + PATIENCE;
        exec::own_program(self.tenant, &["--grow", vm::DISK_DRIVE], deadline).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::spec::tests::spec;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        let words = ["x", "alice"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().args
    }

    #[test]
    fn only_what_is_said_changes() {
        assert!(args("").says_nothing());
        for line in [
            "--cpus 2",
            "--memory 1G",
            "--disk 20G",
            "--isolation container",
            "--runtime crun",
            "--allow-unenforced",
            "-e A=b",
            "--no-autostart",
        ] {
            assert!(!args(line).says_nothing(), "{line}");
        }
        let mut changed = spec();
        args("--memory 1G").apply(&mut changed).unwrap();
        let expected = Spec {
            memory: Bytes::from_mib(1024),
            ..spec()
        };
        assert_eq!(changed, expected);
        let error = args("--cpus 300").apply(&mut changed).unwrap_err();
        assert_eq!(error.text(), Error::from(SpecError::Cpus(300)).text());
    }

    #[test]
    fn an_account_whose_last_key_goes_is_remembered() {
        let key = |letter: &str| {
            format!(
                "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOPXvqWUhSzi20nt9hklbnyJagezvteBUtraBr9+Tc{letter}8"
            )
        };
        let set = |flag: &str, letter: &str, spec: &mut Spec| {
            let words = ["x", "alice", flag, &key(letter)].map(str::to_owned);
            Line::try_parse_from(words).unwrap().args.apply(spec)
        };
        let mut changed = spec();
        set("--ssh-key", "c", &mut changed).unwrap();
        set("--ssh-key", "d", &mut changed).unwrap();
        assert_eq!(changed.ssh_keys, [key("c"), key("d")]);
        set("--remove-ssh-key", "c", &mut changed).unwrap();
        assert_eq!(
            (&changed.ssh_keys, changed.keyless_account),
            (&vec![key("d")], false)
        );
        set("--remove-ssh-key", "d", &mut changed).unwrap();
        assert!(changed.ssh_keys.is_empty() && changed.keyless_account);
        set("--remove-ssh-key", "d", &mut changed).unwrap_err();
        set("--ssh-key", "d", &mut changed).unwrap();
        assert!(!changed.keyless_account);
    }

    #[test]
    fn a_variable_without_a_value_is_dropped() {
        let mut changed = spec();
        args("-e A=1 -e B=2").apply(&mut changed).unwrap();
        args("-e A= -e B=3 -e C=").apply(&mut changed).unwrap();
        assert_eq!(changed.env, [("B".to_owned(), "3".to_owned())]);
    }
}
