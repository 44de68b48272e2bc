//! One command elsewhere, with this process's standard streams, terminal and signals.

use std::io::{self, Write};
use std::os::fd::AsFd;

use fief_agent_proto::{Connection, Error, ExecRequest, Remote, Terminals, pump};
use nix::sys::signal::Signal;

use super::raw::{self, RawTerminal};
use super::signals::Signals;

/// After so many requests to end that went to the command, this process stops being polite, as docker's does.
const PATIENCE: u32 = 3;

/// What of this process the command gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streams {
    /// Standard input (`-i`).
    pub stdin: bool,
    /// A terminal (`-t`).
    pub tty: bool,
}

/// Runs `request` and carries everything until it ends; its exit code as a shell would show it.
///
/// Signals go to the command. The third that asks for an end calls `force`, which may use the command's handle; should
/// that not help, the fourth ends this process.
///
/// # Errors
/// The command could not be started ([`Error::shell_code`] has docker's code), or the connection was lost.
pub fn attend(
    connection: &Connection,
    mut request: ExecRequest,
    streams: Streams,
    signals: &Signals,
    force: &(dyn Fn(&Remote) + Sync),
) -> Result<i32, Error> {
    request.stdin = streams.stdin;
    if streams.tty {
        request.tty = Some(
            super::current_size().unwrap_or(fief_agent_proto::WindowSize {
                rows: 24,
                columns: 80,
            }),
        );
        let has_term = request.env.iter().any(|(name, _)| name == "TERM");
        if let (false, Ok(term)) = (has_term, std::env::var("TERM")) {
            request.env.push(("TERM".to_owned(), term));
        }
    }
    let process = connection.exec(&request)?;
    let remote = process.remote();
    // Without it, keys would be shown twice and Ctrl-C would stay here.
    let raw = if streams.tty && streams.stdin {
        RawTerminal::enter().ok()
    } else {
        None
    };
    let (stop, stopper) = io::pipe().map_err(|source| lost(&source))?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let ended = std::thread::scope(|scope| {
        scope.spawn(|| forward(&remote, signals, streams.tty, &stop, force));
        let ended = pump(
            process,
            Terminals {
                stdin: streams.stdin.then(|| stdin.as_fd()),
                stdout: stdout.as_fd(),
                stderr: stderr.as_fd(),
            },
        );
        drop(stopper);
        ended
    });
    drop(raw);
    Ok(ended?.shell_code())
}

fn lost(error: &io::Error) -> Error {
    Error::Lost(error.to_string())
}

fn forward(
    remote: &Remote,
    signals: &Signals,
    tty: bool,
    stop: &io::PipeReader,
    force: &(dyn Fn(&Remote) + Sync),
) {
    let mut asked = 0;
    while let Some(signal) = signals.wait(stop.as_fd()) {
        if signal == Signal::SIGWINCH {
            if let (true, Some(size)) = (tty, super::current_size()) {
                let _ = remote.resize(size);
            }
            continue;
        }
        // If the connection is lost, the pump says so.
        let _ = remote.signal(signal as i32);
        if matches!(signal, Signal::SIGINT | Signal::SIGTERM) {
            asked += 1;
        }
        if asked == PATIENCE {
            force(remote);
        } else if asked > PATIENCE {
            raw::restore();
            std::process::exit(128 + signal as i32);
        }
    }
}

/// The force that only the command needs: its agent ends it. If the connection is lost, the pump says so.
pub fn cancel(command: &Remote) {
    let _ = command.cancel();
}

/// Prints a line for people to standard error. (`eprintln!` panics where nobody reads any more, or the disk is full.)
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints to standard output.
///
/// # Errors
/// Standard output cannot be written. If its reader is gone, this process ends at once, as one killed by SIGPIPE.
pub fn output(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            std::process::exit(128 + Signal::SIGPIPE as i32);
        }
        other => other,
    }
}
