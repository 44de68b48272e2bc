//! The command line: one file a command.

mod access;
mod api;
mod bench;
mod context;
mod cp;
mod create;
mod demo;
mod devices;
mod disk;
mod doctor;
mod environment;
mod error;
mod exec;
mod gpu;
mod grant;
mod host;
mod images;
mod inspect;
mod isolation;
mod logs;
mod network;
mod policy;
mod ports;
pub mod prepare;
mod ps;
mod restart;
mod rm;
mod run;
mod set;
mod setup;
pub mod ssh_key;
mod start;
mod stats;
mod stop;
mod wait;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use fief_host::{EmulatedHost, HostChoice};

pub use context::Context;
pub use error::{Error, OWN_FAILURE, Result, remote};

use crate::carry;
use crate::terminal::{output, say};

/// Give every user a Linux of their own: root, a package manager, their own kernel, in a virtual machine apart from the
/// host and from neighbours.
#[derive(Debug, Parser)]
#[command(name = "fief", version, disable_help_subcommand = true, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// Where tenants run: on this machine's KVM (native), in a machine that fief emulates, or what fits (auto)
    #[arg(
        long,
        global = true,
        env = "FIEF_HOST",
        value_name = "auto|native|emulated",
        default_value = "auto",
        hide_env = true,
        hide_default_value = true
    )]
    host: HostChoice,
    /// Where tenants and images are kept [/var/lib/fief for root, else the user's data directory]
    #[arg(
        long,
        global = true,
        env = "FIEF_STATE_DIR",
        value_name = "DIR",
        hide_env = true
    )]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  fief run --rm -- uname -r                  a command in a Debian of its own, gone afterwards
  fief run --rm -it                          the same with a shell
  fief run -d --name alice --cpus 2 --memory 1G
  fief exec alice -- sudo apt-get update     in a tenant that runs
  fief shell alice
  fief demo                                  see it all at work

`fief COMMAND --help` tells more about a command. `fief doctor` tells what this machine can do.";

// What a command takes is described once it is asked for: all of them together are half of what a small command does.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
enum Command {
    /// Make a tenant and run a command in it
    Run(run::Args),
    /// Run a command in a running tenant
    Exec(exec::ExecArgs),
    /// Open a shell in a running tenant
    Shell(exec::ShellArgs),
    /// List tenants
    Ps(ps::Args),
    /// Make a tenant without starting it
    Create(create::Args),
    /// Start a tenant that is stopped
    Start(start::Args),
    /// Shut tenants down
    Stop(stop::StopArgs),
    /// Shut tenants down and start them again
    Restart(restart::Args),
    /// Change what a tenant asks for: processors, memory, disk, variables, policy, limits
    Set(set::Args),
    /// End tenants at once, without asking them
    Kill(stop::KillArgs),
    /// Wait until tenants have ended, and print their exit codes
    Wait(wait::Args),
    /// Remove tenants and all that is theirs
    Rm(rm::Args),
    /// Show what running tenants use: processors, memory, disk, network
    Stats(stats::Args),
    /// Copy files and directories into a tenant or out of it
    Cp(cp::Args),
    /// Show what a tenant printed on its console
    Logs(logs::Args),
    /// Show all that is known about a tenant, as JSON
    Inspect(inspect::Args),
    /// Give disks to a tenant and take them from it, also while it runs
    #[command(subcommand)]
    Disk(disk::Args),
    /// List GPUs and other PCI devices, and take them from the host for tenants
    #[command(subcommand)]
    Gpu(gpu::Args),
    /// Reach the control API of a tenant's monitor: a socket here, or one request
    Api(api::Args),
    /// Let one tenant reach a port of another: at once, until it is revoked or either is removed
    Grant(grant::Args),
    /// Take a grant back; connections that it allowed end
    Revoke(grant::Args),
    /// List who may reach which port of whom
    Grants(grant::ListArgs),
    /// List the ports that tenants publish
    #[command(hide = true)]
    Ports(ports::Args),
    /// List, import and remove images
    Images(images::Args),
    /// Make kernels and images ready, so that the first run need not
    Setup(setup::Args),
    /// Tell what this machine can do, and what is missing
    Doctor(doctor::Args),
    /// Show it all at work: a tenant in a machine, one in a container, a kernel crash, and the other one lives
    Demo(demo::Args),
    /// Measure what isolation costs, and what it buys: machines, containers and the plain host
    Bench(bench::Args),
    /// Start, stop and look at the emulated host
    Host(host::Args),
    /// Show the version
    Version,
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            crate::terminal::restore();
            say(&error.text());
            ExitCode::from(error.code())
        }
    }
}

/// What clap has to say: help and version as they are, errors in fief's own form.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let _ = output(&error.render().to_string());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let what = said.join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    let advice = match error.kind() {
        ErrorKind::UnknownArgument if !what.contains("tip: a similar") => {
            "; a command goes behind `--`, as in `fief run --image debian -- uname -r`"
        }
        // Our own types say themselves what to write.
        _ if what.contains("; ") => "",
        _ => "; `fief --help` shows the commands, `fief COMMAND --help` what they take",
    };
    say(&Error::new(format!("{what}{advice}")).text());
    ExitCode::from(OWN_FAILURE)
}

fn run(cli: Cli) -> Result<ExitCode> {
    let Some(command) = cli.command else {
        output(&Cli::command().render_help().to_string())?;
        return Ok(ExitCode::SUCCESS);
    };
    if cli.state_dir.is_none() && !matches!(command, Command::Version) {
        access::pass(&context::default_state()?)?;
    }
    let context = Context::new(cli.host, cli.state_dir)?;
    if let Some(carried) = carried(&command)
        && context.is_emulated()
        && (makes_tenants(&command) || EmulatedHost::open(context.state()).exists())
    {
        return carry::carry(&context, &carried);
    }
    match command {
        Command::Run(args) => run::run(&context, &args),
        Command::Exec(args) => exec::exec(&context, &args),
        Command::Shell(args) => exec::shell(&context, &args),
        Command::Ps(args) => ps::run(&context, &args),
        Command::Create(args) => create::run(&context, &args),
        Command::Start(args) => start::run(&context, &args),
        Command::Stop(args) => stop::stop(&context, &args),
        Command::Restart(args) => restart::run(&context, &args),
        Command::Set(args) => set::run(&context, &args),
        Command::Kill(args) => stop::kill(&context, &args),
        Command::Wait(args) => wait::run(&context, &args),
        Command::Rm(args) => rm::run(&context, &args),
        Command::Stats(args) => stats::run(&context, &args),
        Command::Cp(args) => cp::run(&context, &args),
        Command::Logs(args) => logs::run(&context, &args),
        Command::Inspect(args) => inspect::run(&context, &args),
        Command::Disk(args) => disk::run(&context, &args),
        Command::Gpu(args) => gpu::run(&context, &args),
        Command::Api(args) => api::run(&context, &args),
        Command::Grant(args) => grant::grant(&context, &args),
        Command::Revoke(args) => grant::revoke(&context, &args),
        Command::Grants(args) => grant::list(&context, &args),
        Command::Ports(args) => ports::run(&context, &args),
        Command::Images(args) => images::run(&context, &args),
        Command::Setup(args) => setup::run(&context, &args),
        Command::Doctor(args) => doctor::run(&context, &args),
        Command::Demo(args) => demo::run(&context, &args),
        Command::Bench(args) => bench::run(&context, &args),
        Command::Host(args) => host::run(&context, &args),
        Command::Version => {
            output(&format!("fief {}\n", env!("CARGO_PKG_VERSION")))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Whether a command can be the first there is. Others find no tenants here if the emulated host was never started, and
/// need not make it to say so.
fn makes_tenants(command: &Command) -> bool {
    matches!(command, Command::Run(_) | Command::Create(_))
}

/// What a command that runs where the tenants are needs there; none for a command of this side.
fn carried(command: &Command) -> Option<carry::Needs> {
    let nothing = carry::Needs::default();
    // A tenant that ends may be one that is then removed.
    let ports = carry::Needs {
        changes_ports: true,
        ..carry::Needs::default()
    };
    match command {
        Command::Run(args) => Some(args.needs()),
        Command::Create(args) => Some(args.needs()),
        Command::Exec(args) => Some(args.needs()),
        Command::Shell(args) => Some(args.needs()),
        Command::Api(args) => args.needs(),
        Command::Set(args) => Some(args.needs()),
        Command::Stats(args) => Some(args.needs()),
        Command::Start(_)
        | Command::Stop(_)
        | Command::Restart(_)
        | Command::Kill(_)
        | Command::Wait(_)
        | Command::Rm(_) => Some(ports),
        Command::Ps(_)
        | Command::Logs(_)
        | Command::Inspect(_)
        | Command::Disk(_)
        | Command::Gpu(_)
        | Command::Grant(_)
        | Command::Revoke(_)
        | Command::Grants(_)
        | Command::Ports(_) => Some(nothing),
        // What is here stays here: it speaks with the tenant's agent by way of a command of its own.
        Command::Cp(_)
        | Command::Images(_)
        | Command::Setup(_)
        | Command::Doctor(_)
        | Command::Demo(_)
        | Command::Bench(_)
        | Command::Host(_)
        | Command::Version => None,
    }
}
