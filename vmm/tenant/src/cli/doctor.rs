//! `fief doctor`.

use std::path::Path;
use std::process::ExitCode;

use fief_host::HostKind;
use fief_host::doctor::{Check, Health, Report, examine};

use super::{Context, Result};
use crate::backend::container::runtime::{KNOWN, Runtime, RuntimeError, TrialError, try_out};
use crate::cgroup::{CONTROLLERS, Version, hierarchies};
use crate::network;
use crate::terminal::output;

/// Flags of `fief doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let mut report = examine(
        context.choice(),
        context.monitor(),
        context.agent(),
        context.state(),
    );
    report.checks.push(limits());
    report.checks.extend(rules(context.state()));
    report.checks.extend(runtimes(context.agent()));
    output(&if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        text(&report)
    })?;
    Ok(if report.healthy() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What of a tenant's limits this machine can enforce.
fn limits() -> Check {
    let found = hierarchies().unwrap_or_default();
    let (mut there, mut missing) = (Vec::new(), Vec::new());
    for controller in CONTROLLERS {
        let hierarchy = found
            .iter()
            .find(|hierarchy| hierarchy.controllers.contains(&controller));
        match hierarchy.map(|hierarchy| hierarchy.version) {
            Some(Version::V1) => there.push(format!("{} (v1)", controller.name())),
            Some(Version::V2) => there.push(format!("{} (v2)", controller.name())),
            None => missing.push(controller.name()),
        }
    }
    let name = "limits";
    if !missing.is_empty() {
        return Check::bad(
            name,
            Health::Warning,
            format!("no cgroup controller for {}", missing.join(", ")),
            "mount cgroup2 at /sys/fs/cgroup, on a kernel that has them; tenants run without these limits",
        );
    }
    if !nix::unistd::geteuid().is_root() {
        return Check::bad(
            name,
            Health::Warning,
            "only root may make cgroups here",
            "run fief as root; tenants of this user run without limits of processors and memory",
        );
    }
    Check::ok(name, format!("cgroups for {}", there.join(", ")))
}

/// Whether the rules are there that keep the tenants of this state directory apart. Nothing to say without networks.
fn rules(state: &Path) -> Option<Check> {
    let name = "tenants' rules";
    let (all, bare) = network::count_bare(state).filter(|(all, _)| *all > 0)?;
    if bare == 0 {
        return Some(Check::ok(name, format!("set for {all} networks")));
    }
    Some(Check::bad(
        name,
        Health::Warning,
        format!("gone for {bare} of {all} networks: `nft flush ruleset`, say, removes them"),
        "start any tenant: `fief start` sets them again, and as long as one runs they are kept",
    ))
}

/// Which OCI runtimes can make containers here, by a trial of each. Machines need none of them.
fn runtimes(agent: &Path) -> Vec<Check> {
    let found = KNOWN.map(|name| (name, Runtime::named(name)));
    let any = found.iter().any(|(_, runtime)| runtime.is_ok());
    let check = |(name, runtime): (&'static str, std::result::Result<Runtime, RuntimeError>)| {
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(_) if any => return Check::ok(name, "not installed, and one runtime is enough"),
            Err(_) => {
                return Check::bad(
                    name,
                    Health::Warning,
                    "not installed",
                    format!("tenants in containers need an OCI runtime: `apt-get install {name}`"),
                );
            }
        };
        trial(name, &runtime, agent)
    };
    found.map(check).into()
}

/// Whether `runtime`, known as `name`, makes containers here.
fn trial(name: &'static str, runtime: &Runtime, agent: &Path) -> Check {
    let path = runtime.path.display();
    let tried = runtime
        .version()
        .and_then(|version| match try_out(runtime, agent) {
            Ok(()) => Ok(format!("{path} makes containers here ({version})")),
            Err(TrialError::NotRoot) => Ok(format!(
                "{path} ({version}); only root can try whether it works here"
            )),
            // Told by a check of its own.
            Err(error @ TrialError::NoAgent(_)) => {
                Ok(format!("{path} ({version}), not tried: {error}"))
            }
            Err(error) => Err(error),
        });
    tried.map_or_else(
        |error| {
            Check::bad(
                name,
                Health::Warning,
                format!("{path} does not work here: {error}"),
                "install its package again, or use another runtime; machines do not need one",
            )
        },
        |found| Check::ok(name, found),
    )
}

fn text(report: &Report) -> String {
    let kind = match report.host.kind {
        HostKind::Native => "native",
        HostKind::Emulated => "emulated",
    };
    let mut text = format!("   host            {kind}: {}\n", report.host.why);
    for check in &report.checks {
        let mark = match check.health {
            Health::Ok => "ok ",
            Health::Warning => "!  ",
            Health::Missing => "NO ",
        };
        text.push_str(&format!("{mark}{:<15} {}\n", check.name, check.found));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("{:18} {remedy}\n", ""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_runtime_is_blamed_for_what_it_says_and_not_for_an_agent_that_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("agent");
        let said = |words: &str| {
            let path = directory.path().join("runc");
            fs::write(&path, format!("#!/bin/sh\n{words}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let runtime = Runtime::named(path.to_str().unwrap()).unwrap();
            trial("runc", &runtime, &missing)
        };
        let fine = said("echo runc version 1.2");
        assert_eq!(fine.health, Health::Ok);
        assert!(
            fine.found.contains("(runc 1.2), not tried: the agent "),
            "{}",
            fine.found
        );
        let broken = said("echo out of luck >&2; exit 1");
        assert_eq!(broken.health, Health::Warning);
        assert!(broken.found.ends_with("out of luck"), "{}", broken.found);
    }
}
