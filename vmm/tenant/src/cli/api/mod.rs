//! `fief api`: the control API of a running tenant's monitor, as a socket on the user's side or one request at a time.

mod relay;
mod socket;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use fief_host::EmulatedHost;

use super::{Context, Error, Result};
use crate::backend::vm::{API_SOCKET, api};
use crate::carry::{self, Needs};
use crate::progress::Shown;
use crate::spec::TenantName;
use crate::terminal::{Signals, Streams, output};
use relay::Target;
use socket::ApiSocket;

/// Longest body that is read from standard input, in bytes: beyond what any monitor takes.
const MAX_BODY: u64 = 1 << 20;
/// The body is on standard input.
const STDIN: &str = "-";
/// The monitor answered, and refused.
const REFUSED: u8 = 1;

/// Flags of `fief api`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a request: makes a socket for the API, prints its path, and serves until Ctrl-C, as in
  fief api alice &
  curl --unix-socket alice.sock http://localhost/vm/config
With one: prints the answer's body. Exit code 0 if the monitor did it, 1 if it refused, 125 if fief failed.
  fief api alice GET /vm/config
  fief api alice PATCH /vm '{\"state\": \"Paused\"}'
docs/api.md lists the requests.")]
pub struct Args {
    /// The tenant
    name: TenantName,
    /// Where the socket is made [NAME.sock in this directory]
    #[arg(long, value_name = "PATH", conflicts_with = "method")]
    socket: Option<PathBuf>,
    /// Print the path of the monitor's own socket
    #[arg(long, hide = true, conflicts_with_all = ["socket", "method"])]
    own_path: bool,
    /// GET, PUT, PATCH or DELETE
    #[arg(value_name = "METHOD", requires = "path")]
    method: Option<String>,
    /// Path of the request, as /vm/config
    #[arg(value_name = "PATH")]
    path: Option<String>,
    /// JSON, or - for standard input
    #[arg(value_name = "BODY", allow_hyphen_values = true)]
    body: Option<String>,
}

impl Args {
    /// None for the socket, which is made on this side.
    pub fn needs(&self) -> Option<Needs> {
        let stdin = self.body.as_deref() == Some(STDIN);
        (self.method.is_some() || self.own_path).then(|| Needs {
            streams: Streams { stdin, tty: false },
            ..Needs::default()
        })
    }
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    if let (Some(method), Some(path)) = (&args.method, &args.path) {
        return request(context, args, method, path);
    }
    if args.own_path {
        let (tenant, _) = context.store()?.running(&args.name)?;
        let path = tenant.run_directory().join(API_SOCKET);
        output(&format!("{}\n", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    serve(context, args)
}

fn request(context: &Context, args: &Args, method: &str, path: &str) -> Result<ExitCode> {
    let mut body = args.body.clone().map(String::into_bytes);
    if args.body.as_deref() == Some(STDIN) {
        let mut given = Vec::new();
        std::io::stdin().take(MAX_BODY).read_to_end(&mut given)?;
        body = Some(given);
    }
    let (tenant, _) = context.store()?.running(&args.name)?;
    let (_directory, client) = api(&tenant)?;
    let (status, answer) = client.request(&method.to_uppercase(), path, body.as_deref())?;
    let text = String::from_utf8_lossy(&answer);
    if !text.trim_end().is_empty() {
        output(&format!("{}\n", text.trim_end()))?;
    }
    Ok(if (200..300).contains(&status) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(REFUSED)
    })
}

/// Makes the socket and serves it until a signal asks for the end.
fn serve(context: &Context, args: &Args) -> Result<ExitCode> {
    let target = target(context, &args.name)?;
    let path = args
        .socket
        .clone()
        .unwrap_or_else(|| format!("{}.sock", args.name).into());
    // Before there are threads: they inherit what is blocked, and the socket's mode is set by umask.
    let signals = Signals::take_over()?;
    let socket = ApiSocket::bind(&path)?;
    output(&format!("{}\n", path.display()))?;
    let signal = relay::serve(&socket, target, &signals)?;
    drop(socket);
    Ok(ExitCode::from(
        u8::try_from(128 + signal as i32).unwrap_or(super::OWN_FAILURE),
    ))
}

fn target(context: &Context, name: &TenantName) -> Result<Target> {
    let host = EmulatedHost::open(context.state());
    if !context.is_emulated() || !host.exists() {
        let (tenant, _) = context.store()?.running(name)?;
        return Ok(Target::Here(tenant));
    }
    let images = context.images()?;
    carry::ready(context, &images, &[], &Shown::default())?;
    let words = ["api", name.as_str(), "--own-path"].map(str::to_owned);
    let asked = host
        .connect()?
        .exec(&EmulatedHost::carried(&words))
        .and_then(fief_agent_proto::Process::output);
    let (status, path, problem) = asked.map_err(super::remote)?;
    if !status.success() {
        let problem = String::from_utf8_lossy(&problem).trim().to_owned();
        return Err(Error::new(
            problem.strip_prefix("fief: ").unwrap_or(&problem),
        ));
    }
    let path = String::from_utf8_lossy(&path).trim_end().to_owned();
    Ok(Target::Emulated { host, path })
}
