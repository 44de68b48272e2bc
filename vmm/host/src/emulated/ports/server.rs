//! The keeper's side: which ports are taken, and who holds them.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use fief_agent_proto::{Connect, Connection, ExecRequest, connect_unix};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::forward::{MAX_CONNECTIONS, log, run};
use super::{Answer, Missing, Port, Transport};
use crate::emulated::{EmulatedHost, START_DEADLINE};

/// Commands that hold ports at once; more wait in the socket's backlog.
const MAX_HOLDS: usize = 64;

/// What the keeper asks of the emulated host. (Tests play it.)
pub(super) trait Inside: Send + Sync + 'static {
    /// The ports that tenants publish.
    fn published(&self) -> io::Result<Vec<Port>>;
    /// Gives the emulated host an address of this machine, so that `fief` inside finds it there.
    fn add_address(&self, address: Ipv4Addr) -> io::Result<()>;
    /// Makes one connection of `local` and the port inside, until both directions have ended.
    fn carry(&self, port: Port, local: &TcpStream) -> io::Result<()>;
}

/// Everything, shared by the threads.
pub(in super::super) struct Ports {
    pub(super) inside: Box<dyn Inside>,
    table: Mutex<Table>,
    /// The accepting thread has seen a change.
    seen: Condvar,
    /// Wakes it.
    wake: EventFd,
    /// One question to the inside at a time, or an older answer could come last.
    asking: Mutex<()>,
}

#[derive(Default)]
pub(super) struct Table {
    /// The inside has been asked.
    known: bool,
    /// What tenants publish.
    published: Vec<Port>,
    holds: HashMap<u64, Vec<Port>>,
    taken: HashMap<Port, Arc<TcpListener>>,
    connections: HashMap<u64, (Port, TcpStream)>,
    next: u64,
    /// Counts changes of `taken`, and how many of them the accepting thread has seen.
    changes: u64,
    seen: u64,
    /// The emulated host has ended.
    over: bool,
}

impl Ports {
    pub(super) fn new(inside: Box<dyn Inside>) -> io::Result<Arc<Self>> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Arc::new(Self {
            inside,
            table: Mutex::default(),
            seen: Condvar::new(),
            wake: EventFd::from_flags(flags)?,
            asking: Mutex::default(),
        }))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        let _ = self.wake.write(1);
    }

    /// What to accept on now; waits for no connection. None when all is over. Whoever waits for the last of the ports to
    /// be given back goes on.
    pub(super) fn to_accept(&self) -> Option<ToAccept> {
        let _ = self.wake.read();
        let mut table = self.table();
        table.seen = table.changes;
        self.seen.notify_all();
        if table.over {
            return None;
        }
        let room = table.connections.len() < MAX_CONNECTIONS;
        let listeners = table.taken.iter().filter(|_| room);
        Some(ToAccept {
            holds: table.holds.len() < MAX_HOLDS,
            listeners: listeners
                .map(|(port, listener)| (*port, Arc::clone(listener)))
                .collect(),
        })
    }

    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Ends everything.
    pub(in super::super) fn end(&self) {
        let mut table = self.table();
        table.over = true;
        table.taken.clear();
        table.cut(|_| true);
        drop(table);
        self.changed();
    }

    /// Serves one connection of a client of ours: what it holds, until it ends.
    pub(super) fn hold(&self, id: u64, client: UnixStream) {
        // A client that goes away without a word holds nothing.
        let Ok(ports) = super::read_line::<Vec<Port>>(&client) else {
            return self.release(id);
        };
        let answer = self.take(id, &ports);
        let held = matches!(answer, Answer::Held { .. });
        let told = serde_json::to_vec(&answer).is_ok_and(|mut line| {
            line.push(b'\n');
            (&client).write_all(&line).is_ok()
        });
        if held && told {
            let _ = (&client).read(&mut [0]);
        }
        self.release(id);
    }

    /// Makes room for a hold; its number.
    pub(super) fn new_hold(&self) -> u64 {
        let mut table = self.table();
        table.next += 1;
        let id = table.next;
        table.holds.insert(id, Vec::new());
        id
    }

    fn take(&self, id: u64, ports: &[Port]) -> Answer {
        let first = !self.table().known;
        let mut missing = if first { self.refresh() } else { Vec::new() };
        let (tcp, udp): (Vec<Port>, Vec<Port>) = ports
            .iter()
            .partition(|port| port.protocol == Transport::Tcp);
        missing.extend(udp.into_iter().map(Missing::udp));
        let mut table = self.table();
        if let Err(missing) = table.take_all(&tcp) {
            return Answer::Refused(missing);
        }
        table.holds.insert(id, ports.to_vec());
        drop(table);
        self.changed();
        self.add_addresses(ports);
        Answer::Held { missing }
    }

    /// Ends a hold.
    pub(super) fn release(&self, id: u64) {
        let mut table = self.table();
        table.holds.remove(&id);
        let idle = table.known && table.published.is_empty() && table.taken.is_empty();
        drop(table);
        self.changed();
        if !idle {
            self.refresh();
        }
    }

    /// Asks which ports are published, and takes or gives back what has changed. What cannot be had is returned.
    fn refresh(&self) -> Vec<Missing> {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let published = match self.inside.published() {
            Ok(published) => published,
            Err(error) => {
                log(&format!("cannot ask which ports are published: {error}"));
                return Vec::new();
            }
        };
        self.add_addresses(&published);
        let mut table = self.table();
        table.known = true;
        table.published = published;
        let missing = table.settle();
        let change = table.changes;
        self.changed();
        // Until the accepting thread has let go of a listener its port is not free.
        while table.seen < change && !table.over {
            table = self
                .seen
                .wait(table)
                .unwrap_or_else(PoisonError::into_inner);
        }
        missing
    }

    fn add_addresses(&self, ports: &[Port]) {
        let elsewhere =
            |port: &&Port| !port.address.is_loopback() && !port.address.is_unspecified();
        for port in ports.iter().filter(elsewhere) {
            if let Err(error) = self.inside.add_address(port.address) {
                log(&format!("cannot take {} inside: {error}", port.address));
            }
        }
    }

    /// Notes a connection; its number.
    pub(super) fn begin(&self, port: Port, stream: &TcpStream) -> io::Result<u64> {
        let stream = stream.try_clone()?;
        let mut table = self.table();
        table.next += 1;
        let id = table.next;
        table.connections.insert(id, (port, stream));
        Ok(id)
    }

    /// Closes a connection that is over.
    pub(super) fn ended(&self, id: u64, stream: TcpStream) {
        // The last descriptor of it closes it, and only then its place is free.
        let noted = self.table().connections.remove(&id);
        drop((noted, stream));
        self.changed();
    }

    /// Forgets a connection that never came to be.
    pub(super) fn forget(&self, id: u64) {
        self.table().connections.remove(&id);
    }
}

impl Table {
    /// Takes all of them or none. Where one is in the way of another that is ours, it is left to the `fief` inside to
    /// refuse it: that knows whose it is.
    fn take_all(&mut self, ports: &[Port]) -> Result<(), Missing> {
        let mut new: Vec<(Port, Arc<TcpListener>)> = Vec::new();
        for port in ports {
            let mut ours = self.taken.keys().chain(new.iter().map(|(port, _)| port));
            if !ours.any(|ours| ours.collides(port)) {
                new.push((*port, Arc::new(take(*port)?)));
            }
        }
        self.taken.extend(new);
        self.changes += 1;
        Ok(())
    }

    /// Takes what is published or held, and gives back everything else.
    fn settle(&mut self) -> Vec<Missing> {
        let held = self.holds.values().flatten();
        let wanted: Vec<Port> = self.published.iter().chain(held).copied().collect();
        self.taken.retain(|port, _| wanted.contains(port));
        self.cut(|port| !wanted.contains(port));
        self.changes += 1;
        let mut missing = Vec::new();
        for port in wanted {
            missing.extend(self.take_all(&[port]).err());
        }
        missing
    }

    /// Ends connections of ports that are no more.
    fn cut(&self, gone: impl Fn(&Port) -> bool) {
        for (_, stream) in self.connections.values().filter(|(port, _)| gone(port)) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// What the accepting thread waits for.
pub(super) struct ToAccept {
    pub(super) holds: bool,
    pub(super) listeners: Vec<(Port, Arc<TcpListener>)>,
}

fn take(port: Port) -> Result<TcpListener, Missing> {
    if port.protocol == Transport::Udp {
        return Err(Missing::udp(port));
    }
    let bound = TcpListener::bind((port.address, port.port));
    let listener = bound.and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|error| Missing {
        port,
        errno: error.raw_os_error().unwrap_or(nix::libc::EIO),
    })
}

/// Serves published ports of the emulated host whose relay listens at `relay`, in a thread, until [`Ports::end`].
///
/// # Errors
/// No descriptor or thread is to be had.
pub(in super::super) fn serve(control: UnixListener, relay: PathBuf) -> io::Result<Arc<Ports>> {
    let ports = Ports::new(Box::new(Agent {
        relay,
        connection: OnceLock::new(),
    }))?;
    start(&ports, control)?;
    Ok(ports)
}

pub(super) fn start(ports: &Arc<Ports>, control: UnixListener) -> io::Result<()> {
    control.set_nonblocking(true)?;
    let shared = Arc::clone(ports);
    let accept = move || run(&shared, &control);
    std::thread::Builder::new()
        .name("ports".into())
        .spawn(accept)
        .map(drop)
}

/// The emulated host's own agent.
struct Agent {
    relay: PathBuf,
    /// Made when it is first needed: the relay must be running.
    connection: OnceLock<Connection>,
}

impl Agent {
    fn connection(&self) -> io::Result<&Connection> {
        if let Some(connection) = self.connection.get() {
            return Ok(connection);
        }
        let deadline = Instant::now() + START_DEADLINE;
        let stream = connect_unix(&self.relay, deadline).map_err(io::Error::other)?;
        let made = Connection::open(stream, deadline).map_err(io::Error::other)?;
        // Another thread may have been quicker: then this one is closed.
        Ok(self.connection.get_or_init(|| made))
    }

    fn run(&self, request: &ExecRequest) -> io::Result<Vec<u8>> {
        let process = self.connection()?.exec(request).map_err(io::Error::other)?;
        let (status, out, err) = process.output().map_err(io::Error::other)?;
        if status.success() {
            return Ok(out);
        }
        let said = String::from_utf8_lossy(&err).trim().to_owned();
        Err(io::Error::other(said))
    }
}

impl Inside for Agent {
    fn published(&self) -> io::Result<Vec<Port>> {
        let request = EmulatedHost::carried(&["ports", "--json"].map(str::to_owned));
        Ok(serde_json::from_slice(&self.run(&request)?)?)
    }

    fn add_address(&self, address: Ipv4Addr) -> io::Result<()> {
        let address = format!("{address}/32");
        let words = ["ip", "address", "replace", &address, "dev", "lo"];
        self.run(&ExecRequest::new(words)).map(drop)
    }

    fn carry(&self, port: Port, local: &TcpStream) -> io::Result<()> {
        let socket = self.connection()?.connect(&Connect::Tcp(port.inside()));
        let joined = socket.and_then(|socket| socket.join(local));
        joined.map_err(io::Error::other)
    }
}
