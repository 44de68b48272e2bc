//! Talks to an agent by hand: `agent SOCKET|serial:SOCKET|vsock:SOCKET COMMAND…`, where the command is
//! `stats`, `clock SECONDS`, `poweroff`, `reboot`, `relay LOCAL-SOCKET`, `put FILE PATH`, or `run|tty [--user U] ARGV…`.

use std::error::Error;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use fief_agent_proto::{
    AGENT_PORT, Connection, ExecRequest, SetClock, Shutdown, ShutdownAction, Terminals, WindowSize,
    WriteFile, connect_unix, connect_vsock_unix, handshake, handshake_serial, pump, relay,
};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [socket, command @ ..] = &words[..] else {
        return Err("usage: agent SOCKET COMMAND…".into());
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let session = match socket.split_once(':') {
        Some(("serial", path)) => {
            handshake_serial(connect_unix(Path::new(path), deadline)?, deadline)?
        }
        Some(("vsock", path)) => handshake(
            connect_vsock_unix(Path::new(path), AGENT_PORT, deadline)?,
            deadline,
        )?,
        _ => handshake(connect_unix(Path::new(socket), deadline)?, deadline)?,
    };
    eprintln!("{:?}", session.hello);
    if let ["relay", path] = command {
        return Ok(relay(session, UnixListener::bind(path)?, std::io::stdin())?);
    }
    let connection = Connection::new_despite_problem(session)?;
    let end = |action| {
        connection.shutdown(Shutdown {
            action,
            force: false,
        })
    };
    match command {
        ["stats"] => println!("{:#?}", connection.stats()?),
        ["clock", seconds] => {
            connection.set_clock(SetClock {
                unix_nanoseconds: seconds.parse::<u64>()? * 1_000_000_000,
            })?;
        }
        ["poweroff"] => end(ShutdownAction::Poweroff)?,
        ["reboot"] => end(ShutdownAction::Reboot)?,
        ["put", file, path] => {
            let request = WriteFile {
                path: (*path).into(),
                mode: 0o755,
                owner: None,
                parents: true,
            };
            connection.write_file(&request, std::fs::File::open(file)?)?;
        }
        [how @ ("run" | "tty"), argv @ ..] => {
            let (user, argv) = match argv {
                ["--user", user, argv @ ..] => (Some((*user).to_owned()), argv),
                _ => (None, argv),
            };
            let tty = (*how == "tty").then_some(WindowSize {
                rows: 24,
                columns: 80,
            });
            let request = ExecRequest {
                user,
                tty,
                stdin: true,
                ..ExecRequest::new(argv.iter().copied())
            };
            let process = connection.exec(&request).unwrap_or_else(|error| {
                eprintln!("{error}");
                std::process::exit(error.shell_code());
            });
            let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
            let terminals = Terminals {
                stdin: Some(stdin.as_fd()),
                stdout: stdout.as_fd(),
                stderr: stderr.as_fd(),
            };
            std::process::exit(pump(process, terminals)?.shell_code());
        }
        _ => return Err("no such command".into()),
    }
    Ok(())
}
