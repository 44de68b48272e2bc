//! `fief run`: a tenant, and a command in it.

use std::process::ExitCode;
use std::time::Duration;

use fief_agent_proto::{Connection, ExecRequest};
use nix::sys::signal::Signal;

use super::create::{self, TenantArgs};
use super::environment::{self, Variable};
use super::error::remote;
use super::{Context, Error, Result, exec, prepare, start, stop};
use crate::backend::container::cdi;
use crate::carry::Needs;
use crate::progress::Shown;
use crate::shim::{Attached, Order};
use crate::spec::{RestartPolicy, Spec, TenantName};
use crate::store::{Exit, Reason, Store, Tenant};
use crate::terminal::{Signals, Streams, attend, output};

/// How long a tenant may take to shut down once its command has ended.
const GRACE: Duration = Duration::from_secs(30);

/// Flags of `fief run`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a command: a login shell; with -d, nothing but the tenant itself.\n\
    Exit codes: the command's own; 128+N if signal N ended it; 126 or 127 if it cannot be run or found; 125 if fief failed."
)]
pub struct Args {
    #[command(flatten)]
    streams: StreamArgs,
    /// Start the tenant, print its name, and leave it running
    #[arg(long, short = 'd', conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Remove the tenant when it ends
    #[arg(long)]
    rm: bool,
    /// Name of the tenant [a generated one]
    #[arg(long, value_name = "NAME")]
    name: Option<TenantName>,
    #[command(flatten)]
    tenant: TenantArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// The command and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What of this process a command gets.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct StreamArgs {
    /// Pass standard input on
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    tty: bool,
}

impl StreamArgs {
    /// # Errors
    /// `-t` without a terminal.
    pub fn streams(self) -> Result<Streams> {
        if self.tty {
            crate::terminal::size()?;
        }
        Ok(self.unchecked())
    }

    pub fn unchecked(self) -> Streams {
        Streams {
            stdin: self.interactive,
            tty: self.tty,
        }
    }
}

/// Where and with what a command runs.
#[derive(Debug, clap::Args)]
pub struct PlaceArgs {
    /// Set a variable (with `fief run`: for all commands of the tenant); NAME alone passes this shell's value on
    #[arg(long, short = 'e', value_name = "NAME=VALUE")]
    env: Vec<Variable>,
    /// Directory to run in [the user's home]
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
}

impl PlaceArgs {
    /// The request, with the variables of all the tenant's commands below its own.
    pub fn request(&self, spec: &Spec, argv: Vec<String>, user: Option<String>) -> ExecRequest {
        ExecRequest {
            argv,
            env: environment::over(
                &environment::over(&cdi::variables(&spec.gpus), spec.env.clone()),
                environment::resolve(&self.env),
            ),
            cwd: self.workdir.clone(),
            user,
            ..ExecRequest::default()
        }
    }

    /// Variables that a `fief` elsewhere must have to resolve these flags.
    pub fn inherited(&self) -> Vec<(String, String)> {
        environment::inherited(&self.env)
    }
}

impl Args {
    pub fn needs(&self) -> Needs {
        Needs {
            streams: self.streams.unchecked(),
            env: self.place.inherited(),
            ..self.tenant.needs()
        }
    }
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let streams = args.streams.streams()?;
    let store = context.store()?;
    let name = create::choose_name(&store, args.name.as_ref())?;
    let mut spec = args.tenant.spec(&name, args.rm, &args.place.env)?;
    if !args.detach && spec.restart != RestartPolicy::No {
        return Err(Error::new(format!(
            "--restart {} is for tenants that go on without this command; add -d, or leave it out",
            spec.restart
        )));
    }
    let progress = Shown::default();
    let images = context.images()?;
    let root = prepare::resolve(&images, &mut spec, &progress)?;
    let files = prepare::files(&images, context, &spec, root, &progress)?;
    // Until here Ctrl-C just ends this process; from here there is something to clean up.
    let signals = Signals::take_over()?;
    let locked = create::make(&store, &name, &spec)?;
    let command =
        (!args.command.is_empty()).then(|| args.place.request(&spec, args.command.clone(), None));
    let order = Order {
        name: name.clone(),
        directory: start::text(locked.tenant.directory()),
        files,
        attached: !args.detach,
        command: command.clone().filter(|_| args.detach),
        quiet: None,
    };
    progress.step("starting the tenant");
    let started = start::start_new(locked, &order)?;
    let (tenant, attached) = started;
    start::tell_unlimited(&store, attached.unlimited());
    if args.detach {
        if command.is_none() {
            start::await_agent(&store, &tenant, &signals)?;
        }
        drop(progress);
        output(&format!("{name}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let lives = || {
        signals
            .asked_to_end()
            .inspect(|signal| stopped_by(*signal))
            .is_none()
    };
    let connected = crate::agent::connect(&tenant, &lives);
    drop(progress);
    let request = command.unwrap_or_else(|| exec::login_shell(&spec, &args.place, None));
    let run = Foreground {
        store: &store,
        tenant,
        attached,
        remove: args.rm,
    };
    run.attend(connected, request, streams, &signals)
}

/// The signal that ended the wait for the agent, for the exit code.
static STOPPED_BY: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(0);

fn stopped_by(signal: Signal) {
    STOPPED_BY.store(signal as i32, std::sync::atomic::Ordering::Relaxed);
}

/// A tenant that is there for one command of this process.
struct Foreground<'a> {
    store: &'a Store,
    tenant: Tenant,
    attached: Attached,
    remove: bool,
}

impl Foreground<'_> {
    fn attend(
        self,
        connected: std::result::Result<Connection, fief_agent_proto::Error>,
        request: ExecRequest,
        streams: Streams,
        signals: &Signals,
    ) -> Result<ExitCode> {
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => return Err(self.never_answered(error)),
        };
        crate::provide::give_or_warn(&connection, &self.tenant);
        let ended = attend(&connection, request, streams, signals, &|_| {
            self.attached.kill()
        });
        let lost = matches!(&ended, Err(fief_agent_proto::Error::Lost(_)));
        let exit = if lost {
            self.attached.wait()
        } else {
            self.end(connection)
        };
        match (ended, exit) {
            (Ok(code), _) => Ok(ExitCode::from(
                u8::try_from(code).unwrap_or(super::OWN_FAILURE),
            )),
            // The command was the tenant's end.
            (Err(_), Some(exit)) if lost => told(&exit),
            (Err(error), _) => Err(remote(error)),
        }
    }

    /// Ends the tenant after its command.
    fn end(self, connection: Connection) -> Option<Exit> {
        // One that is to be removed has nothing to save.
        let down = !self.remove
            && stop::ask(&connection).is_ok()
            && self.store.wait_idle(&self.tenant, GRACE).unwrap_or(false);
        if !down {
            self.attached.kill();
        }
        self.attached.wait()
    }

    fn never_answered(self, error: fief_agent_proto::Error) -> Error {
        let signal = STOPPED_BY.load(std::sync::atomic::Ordering::Relaxed);
        let console = start::last_words(&self.tenant);
        self.attached.kill();
        let exit = self.attached.wait();
        if signal != 0 {
            return Error::new("stopped before the tenant was up").with_code(128 + signal);
        }
        let why = match exit {
            Some(exit) if exit.reason != Reason::Killed => start::end_in_words(&exit),
            _ => crate::failure::chain(&error),
        };
        Error::new(format!("the tenant did not come up: {why}{console}"))
    }
}

/// What to make of a tenant that ended while its command ran.
fn told(exit: &Exit) -> Result<ExitCode> {
    match exit.reason {
        Reason::Poweroff | Reason::Reboot => Ok(ExitCode::SUCCESS),
        _ => {
            let code = if exit.reason == Reason::Killed {
                exit.code
            } else {
                i32::from(super::OWN_FAILURE)
            };
            Err(
                Error::new(format!("the tenant ended: {}", start::end_in_words(exit)))
                    .with_code(code),
            )
        }
    }
}
