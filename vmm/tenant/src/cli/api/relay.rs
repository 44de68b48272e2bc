//! Connections to the user's socket, carried to the monitor's.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use fief_agent_proto::Connect;
use fief_host::EmulatedHost;
use nix::sys::signal::Signal;

use super::socket::ApiSocket;
use crate::backend::socket;
use crate::backend::vm::API_SOCKET;
use crate::cli::{Error, Result, remote};
use crate::store::Tenant;
use crate::terminal::{Signals, say};

/// Connections at once, as many as a monitor serves; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 10;

/// Where the monitor is. Each connection looks for it anew: a tenant may be restarted meanwhile, or the emulated host.
pub enum Target {
    Here(Tenant),
    Emulated {
        host: EmulatedHost,
        /// The monitor's socket inside.
        path: String,
    },
}

impl Target {
    /// Makes one connection of `client` and the monitor's socket, until it ends.
    fn carry(&self, client: &UnixStream) -> Result<()> {
        match self {
            Self::Here(tenant) => {
                let (_directory, path) = socket(tenant, API_SOCKET)?;
                Ok(both_ways(client, &UnixStream::connect(path)?)?)
            }
            Self::Emulated { host, path } => {
                let connection = host.connect()?;
                let monitor = connection.connect(&Connect::Unix(path.clone()));
                monitor
                    .and_then(|monitor| monitor.join(client))
                    .map_err(remote)
            }
        }
    }
}

/// Serves until a signal asks for the end: which one.
pub fn serve(socket: &ApiSocket, target: Target, signals: &Signals) -> Result<Signal> {
    let target = Arc::new(target);
    // One byte for each connection that may be; whoever accepts one takes a byte, which comes back with its end.
    let (mut places, back) = io::pipe()?;
    (&back).write_all(&[0; MAX_CONNECTIONS])?;
    let back = Arc::new(back);
    loop {
        if let Some(signal) = end_or(signals, &places) {
            return Ok(signal);
        }
        places.read_exact(&mut [0])?;
        if let Some(signal) = end_or(signals, &socket.listener) {
            return Ok(signal);
        }
        // A client may have gone again.
        let client = socket.listener.accept();
        let (target, back) = (Arc::clone(&target), Arc::clone(&back));
        let carry = move || {
            if let Ok((client, _)) = client
                && let Err(error) = target.carry(&client)
            {
                say(&error.context("the connection was closed").text());
            }
            let _ = (&*back).write_all(&[0]);
        };
        thread::Builder::new()
            .spawn(carry)
            .map_err(|error| Error::from(error).context("cannot serve the socket"))?;
    }
}

/// Waits for something to read at `other`, or for a signal that asks for the end.
fn end_or(signals: &Signals, other: &impl AsFd) -> Option<Signal> {
    loop {
        match signals.wait(other.as_fd()) {
            Some(Signal::SIGWINCH) => {}
            asked => return asked,
        }
    }
}

/// Carries bytes both ways until the monitor has closed its side: it does so once its client has, or asked it to.
fn both_ways(client: &UnixStream, monitor: &UnixStream) -> io::Result<()> {
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut from, mut to) = (client, monitor);
            let _ = io::copy(&mut from, &mut to);
            let _ = monitor.shutdown(Shutdown::Write);
        });
        let (mut from, mut to) = (monitor, client);
        let carried = io::copy(&mut from, &mut to).map(drop);
        let _ = client.shutdown(Shutdown::Both);
        let _ = monitor.shutdown(Shutdown::Both);
        carried
    })
}
