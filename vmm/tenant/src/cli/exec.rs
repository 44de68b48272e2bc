//! `fief exec` and `fief shell`: commands in a tenant that runs.

use std::cell::Cell;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use fief_agent_proto::ExecRequest;

use super::error::remote;
use super::run::{PlaceArgs, StreamArgs};
use super::{Context, Error, OWN_FAILURE, Result};
use crate::carry::Needs;
use crate::spec::{Spec, TenantName};
use crate::store::Tenant;
use crate::terminal::{Signals, Streams, attend, cancel};

/// Flags of `fief exec`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: the command's own; 128+N if signal N ended it; 126 or 127 if it cannot be run or \
    found; 125 if fief failed."
)]
pub struct ExecArgs {
    #[command(flatten)]
    streams: StreamArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// Who runs it: name, name:group, uid or uid:gid [the tenant's default user]
    #[arg(long, short = 'u', value_name = "USER")]
    user: Option<String>,
    /// The agent itself is the program, these are its arguments: for `fief cp` from outside
    #[arg(long, hide = true)]
    agent: bool,
    /// The tenant
    name: TenantName,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Flags of `fief shell`.
#[derive(Debug, clap::Args)]
pub struct ShellArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whose shell: name, name:group, uid or uid:gid [the tenant's default user]
    #[arg(long, short = 'u', value_name = "USER")]
    user: Option<String>,
    /// The tenant
    name: TenantName,
}

impl ExecArgs {
    pub fn needs(&self) -> Needs {
        Needs {
            streams: self.streams.unchecked(),
            env: self.place.inherited(),
            ..Needs::default()
        }
    }
}

impl ShellArgs {
    pub fn needs(&self) -> Needs {
        Needs {
            streams: shell_streams(),
            env: self.place.inherited(),
            ..Needs::default()
        }
    }
}

pub fn exec(context: &Context, args: &ExecArgs) -> Result<ExitCode> {
    let streams = args.streams.streams()?;
    run(context, &args.name, streams, |spec| ExecRequest {
        own: args.agent,
        ..args
            .place
            .request(spec, args.command.clone(), args.user.clone())
    })
}

pub fn shell(context: &Context, args: &ShellArgs) -> Result<ExitCode> {
    run(context, &args.name, shell_streams(), |spec| {
        login_shell(spec, &args.place, args.user.clone())
    })
}

/// A shell that is fed by a pipe reads its commands from there.
fn shell_streams() -> Streams {
    Streams {
        stdin: true,
        tty: std::io::stdin().is_terminal(),
    }
}

/// The user's own shell, as a login shell; `sh` where there is none. The agent sets SHELL from the user's account.
pub fn login_shell(spec: &Spec, place: &PlaceArgs, user: Option<String>) -> ExecRequest {
    let script = "test -x \"$SHELL\" || SHELL=/bin/sh; exec \"$SHELL\" -l";
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    place.request(spec, argv, user)
}

fn run(
    context: &Context,
    name: &TenantName,
    streams: Streams,
    request: impl FnOnce(&Spec) -> ExecRequest,
) -> Result<ExitCode> {
    let store = context.store()?;
    let (tenant, _) = store.running(name)?;
    let request = request(&tenant.spec()?);
    let signals = Signals::take_over()?;
    let asked = Cell::new(None);
    let lives = || {
        asked.set(asked.get().or(signals.asked_to_end()));
        asked.get().is_none()
    };
    let connected = crate::agent::connect(&tenant, &lives);
    if let Some(signal) = asked.get() {
        return Err(Error::new("stopped before the command ran").with_code(128 + signal as i32));
    }
    let connection = connected.map_err(remote)?;
    let code = attend(&connection, request, streams, &signals, &cancel).map_err(remote)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(OWN_FAILURE)))
}
/// Runs a program of the agent's own in a running tenant; what it printed. One that fails tells why.
pub fn own_program(tenant: &Tenant, arguments: &[&str], deadline: Instant) -> Result<String> {
    let agent = crate::agent::try_connect(tenant, deadline).map_err(remote)?;
    let request = ExecRequest {
        own: true,
        ..ExecRequest::new(arguments.iter().copied())
    };
    let process = agent.exec(&request).map_err(remote)?;
    let (status, told, said) = process.output().map_err(remote)?;
    if !status.success() {
        return Err(Error::new(String::from_utf8_lossy(&said).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&told).into_owned())
}
