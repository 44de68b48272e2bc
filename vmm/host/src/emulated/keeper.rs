//! The process that an emulated host lives in: it starts QEMU, shares the one serial port among all `fief` commands,
//! and takes QEMU with it when it ends, however it ends.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fief_agent_proto::{connect_unix, handshake_serial, relay};
use nix::sys::signal::Signal;

use super::directory::{AGENT_SOCKET, Directory, PORTS_SOCKET};
use super::{EmulatedError, START_DEADLINE, ports, wake};
use crate::qemu::{Endpoints, QEMU, arguments};

/// Makes the process that `command` starts independent of this one: a session of its own, so that neither Ctrl-C nor
/// the end of the terminal reaches it.
pub fn detach(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
}

/// Keeps the emulated host whose files are in `directory`, as its `launch.json` describes it, until QEMU ends.
///
/// # Errors
/// Another keeper is there already, QEMU could not be started, or its agent never answered.
pub fn keep(directory: &Path) -> Result<(), EmulatedError> {
    let files = Directory::new(directory.to_owned());
    let Some(_alive) = files.lock_keeper()? else {
        return Err(EmulatedError::Io {
            what: "another keeper has this emulated host".to_owned(),
            source: io::ErrorKind::AddrInUse.into(),
        });
    };
    let launch = files.launch()?;
    // Sockets are bound by short relative names: their full names may be too long for a socket address.
    std::env::set_current_dir(directory).map_err(EmulatedError::io(format!(
        "cannot enter {}",
        directory.display()
    )))?;
    let endpoints = Endpoints::in_directory(Path::new("."));
    let mut qemu = start(&arguments(&launch.hardware, &launch.boot, &endpoints))?;
    // A machine whose clock counts instructions would count the answers too.
    let served = serve(&endpoints, &mut qemu, !launch.hardware.icount);
    // The agent is gone or never came: what is left of QEMU gets a moment to power off, then is ended.
    let ended = await_exit(
        &mut qemu,
        Duration::from_secs(if served.is_ok() { 20 } else { 1 }),
    );
    if !ended {
        let _ = qemu.kill();
        let _ = qemu.wait();
    }
    files.clear_sockets()?;
    served
}

fn start(arguments: &[std::ffi::OsString]) -> Result<Child, EmulatedError> {
    let mut command = Command::new(QEMU);
    command.args(arguments).stdin(Stdio::null());
    let keeper = std::process::id();
    // SAFETY: prctl and getppid are async-signal-safe and touch no memory of this process.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The keeper may have died between fork and prctl.
            if nix::unistd::getppid().as_raw().cast_unsigned() == keeper {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        });
    }
    command
        .spawn()
        .map_err(EmulatedError::io(format!("cannot start {QEMU}")))
}

fn serve(endpoints: &Endpoints, qemu: &mut Child, awake: bool) -> Result<(), EmulatedError> {
    let deadline = Instant::now() + START_DEADLINE;
    let port = connect_port(&endpoints.agent, qemu, deadline)?;
    let session = handshake_serial(port, deadline)?;
    let listener = UnixListener::bind(AGENT_SOCKET)
        .map_err(EmulatedError::io("cannot make the agent's socket"))?;
    let published = UnixListener::bind(PORTS_SOCKET)
        .and_then(|control| ports::serve(control, AGENT_SOCKET.into()))
        .map_err(EmulatedError::io("cannot serve published ports"))?;
    if awake {
        wake::keep_awake(AGENT_SOCKET.into(), wake::PERIOD)
            .map_err(EmulatedError::io("cannot keep the machine awake"))?;
    }
    // Nothing ever stops the relay but the end of its session: QEMU ends, and with it this process.
    let (never, _held) = io::pipe().map_err(EmulatedError::io("cannot make a pipe"))?;
    let ended = relay(session, listener, OwnedFd::from(never));
    published.end();
    if let Err(error) = &ended {
        // Into its log, which may be full.
        let _ = writeln!(
            std::io::stderr(),
            "the session with the agent ended: {error}"
        );
    }
    // A session that was open and then ended is the usual end: the machine was shut down.
    Ok(())
}

fn connect_port(
    socket: &Path,
    qemu: &mut Child,
    deadline: Instant,
) -> Result<UnixStream, EmulatedError> {
    loop {
        let soon = Instant::now() + Duration::from_millis(500);
        match connect_unix(socket, soon.min(deadline)) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let status = qemu
                    .try_wait()
                    .map_err(EmulatedError::io("cannot wait for QEMU"))?;
                if let Some(status) = status {
                    let source = io::Error::other(format!(
                        "{status}; what it said stands above in keeper.log"
                    ));
                    return Err(EmulatedError::Io {
                        what: format!("{QEMU} ended at once"),
                        source,
                    });
                }
                if Instant::now() >= deadline {
                    return Err(error.into());
                }
            }
        }
    }
}

fn await_exit(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(super::POLL),
            Ok(None) | Err(_) => return false,
        }
    }
}
