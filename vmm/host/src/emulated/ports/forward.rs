//! Accepting, and the way of a connection.

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::Port;
use super::server::Ports;

/// Connections at once, of all ports; more wait in the listeners' backlogs. Commands have the rest of the streams of the
/// agent's session (`fief_agent_proto::MAX_STREAMS`).
pub(super) const MAX_CONNECTIONS: usize = fief_agent_proto::MAX_STREAMS / 2;

/// Into the keeper's log, which may be full.
pub(super) fn log(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Takes clients of ours and connections to published ports until [`Ports::end`].
pub(super) fn run(ports: &Arc<Ports>, control: &UnixListener) {
    // No descriptor or thread is left: nothing is accepted until something ends.
    let mut starved = false;
    while let Some(now) = ports.to_accept() {
        let mut fds = vec![PollFd::new(ports.wake().as_fd(), PollFlags::POLLIN)];
        if !starved {
            let holds = if now.holds {
                PollFlags::POLLIN
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::new(control.as_fd(), holds));
            let listeners = now.listeners.iter();
            fds.extend(
                listeners.map(|(_, listener)| PollFd::new(listener.as_fd(), PollFlags::POLLIN)),
            );
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                log(&format!("cannot wait for connections: {error}"));
                return ports.end();
            }
        }
        let ready: Vec<bool> = fds
            .iter()
            .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        let mut failed = false;
        if ready.get(1) == Some(&true) {
            failed |= accept_hold(ports, control).is_err();
        }
        for ((port, listener), _) in now
            .listeners
            .iter()
            .zip(ready.iter().skip(2))
            .filter(|(_, ready)| **ready)
        {
            failed |= accept_connection(ports, *port, listener).is_err();
        }
        starved = failed;
    }
}

/// Whether an error of accept(2) is about the one connection alone.
fn is_gone(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
    )
}

fn accepted<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(connection) => Ok(Some(connection)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn accept_hold(ports: &Arc<Ports>, control: &UnixListener) -> io::Result<()> {
    let Some((client, _)) = accepted(control.accept())? else {
        return Ok(());
    };
    let id = ports.new_hold();
    let shared = Arc::clone(ports);
    let serve = move || shared.hold(id, client);
    std::thread::Builder::new()
        .name("hold".into())
        .spawn(serve)
        .map(drop)
        .inspect_err(|_| ports.release(id))
}

fn accept_connection(ports: &Arc<Ports>, port: Port, listener: &TcpListener) -> io::Result<()> {
    let Some((stream, _)) = accepted(listener.accept())? else {
        return Ok(());
    };
    let id = ports.begin(port, &stream)?;
    let shared = Arc::clone(ports);
    let carry = move || {
        let ended = prepare(&stream).and_then(|()| shared.inside.carry(port, &stream));
        if ended.is_err() {
            // What broke inside is no end of what was to be said.
            let now = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            let _ = setsockopt(&stream, sockopt::Linger, &now);
        }
        shared.ended(id, stream);
    };
    std::thread::Builder::new()
        .name("connection".into())
        .spawn(carry)
        .map(drop)
        .inspect_err(|_| ports.forget(id))
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    // What a person types does not wait for more.
    stream.set_nodelay(true)?;
    // A client whose machine is gone gives its place back one day.
    Ok(setsockopt(stream, sockopt::KeepAlive, &true)?)
}
