//! One session with an agent, shared by many local clients, each of which sees a session of its own.
//!
//! One thread, non-blocking sockets. Stream ids are translated: a client's ids mean nothing upstream. Windows are
//! granted end to end between client and agent, so what waits here for one client is bounded by its streams; a client
//! that grants credit without reading is dropped. While the upstream does not take bytes, no client is read.

mod client;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    AgentHello, Channel, Decoder, Error, ErrorKind, Frame, FrameError, Inbound, Kind, MAX_STREAMS,
    Outbound, RemoteError, Result, Session,
};
use client::Client;

/// Clients at once; more wait in the listener's backlog.
const MAX_CLIENTS: usize = 64;
/// Upstream bytes that may wait before clients are not read any more.
const UPSTREAM_BUFFER: usize = 256 * 1024;

/// Serves the clients of `listener` over `session` until `stop` becomes readable (or hangs up) or the session ends.
/// A client that vanishes has its streams cancelled; a client that breaks the protocol is dropped alone.
///
/// # Errors
/// Why the session ended; [`Error::Io`] if the listener fails.
pub fn relay(session: Session, listener: UnixListener, stop: impl AsFd) -> Result<()> {
    listener
        .set_nonblocking(true)
        .map_err(Error::io("cannot use the relay's socket"))?;
    let mut relay = Relay {
        upstream: session.stream,
        decoder: session.decoder,
        outbound: Outbound::default(),
        hello: session.hello,
        clients: HashMap::new(),
        next_client: 0,
        routes: HashMap::new(),
        next_stream: 1,
    };
    // The handshake may have brought more than the hello.
    relay.take_upstream_frames()?;
    while relay.turn(&listener, &stop)? {}
    Ok(())
}

/// Where an upstream stream's frames go.
struct Route {
    /// None: its client has gone and the agent was told; frames are dropped until the last one.
    client: Option<u64>,
    local: u32,
}

struct Relay {
    upstream: File,
    decoder: Decoder,
    outbound: Outbound,
    hello: AgentHello,
    clients: HashMap<u64, Client>,
    next_client: u64,
    routes: HashMap<u32, Route>,
    next_stream: u32,
}

impl Relay {
    /// Waits for something to do and does it; false when told to stop.
    fn turn(&mut self, listener: &UnixListener, stop: &impl AsFd) -> Result<bool> {
        let read_clients = self.outbound.len() < UPSTREAM_BUFFER;
        let accept = self.clients.len() < MAX_CLIENTS;
        let ids: Vec<u64> = self.clients.keys().copied().collect();
        let when = |condition, flag| if condition { flag } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(
                self.upstream.as_fd(),
                PollFlags::POLLIN | when(!self.outbound.is_empty(), PollFlags::POLLOUT),
            ),
            PollFd::new(listener.as_fd(), when(accept, PollFlags::POLLIN)),
        ];
        for id in &ids {
            if let Some(client) = self.clients.get(id) {
                let flags = when(read_clients, PollFlags::POLLIN)
                    | when(!client.outbound.is_empty(), PollFlags::POLLOUT);
                fds.push(PollFd::new(client.socket.as_fd(), flags));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(true),
            Err(error) => {
                return Err(Error::io("cannot wait for the relay's clients")(
                    error.into(),
                ));
            }
        }
        let happened: Vec<PollFlags> = fds
            .iter()
            .map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
            .collect();
        drop(fds);
        if !happened[0].is_empty() {
            return Ok(false);
        }
        if !happened[1].difference(PollFlags::POLLOUT).is_empty() {
            self.read_upstream()?;
        }
        if happened[2].contains(PollFlags::POLLIN) {
            self.accept(listener)?;
        }
        for (id, events) in ids.into_iter().zip(&happened[3..]) {
            // Hang-up is reported even when nothing was asked: a vanished client is noticed behind a full upstream.
            let gone = events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR)
                && !events.contains(PollFlags::POLLIN);
            if gone || (events.contains(PollFlags::POLLIN) && !self.read_client(id)) {
                self.drop_client(id);
            }
        }
        self.outbound
            .flush_to(&self.upstream)
            .map_err(|error| Error::Lost(error.to_string()))?;
        self.flush_clients();
        Ok(true)
    }

    fn accept(&mut self, listener: &UnixListener) -> Result<()> {
        match listener.accept() {
            Ok((socket, _)) => {
                if socket.set_nonblocking(true).is_ok() {
                    self.clients.insert(self.next_client, Client::new(socket));
                    self.next_client += 1;
                }
                Ok(())
            }
            // A client that gave up before it was accepted, or no descriptor left for it: others go on.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(Error::io("cannot accept clients of the relay")(error))
            }
            Err(_) => Ok(()),
        }
    }

    fn flush_clients(&mut self) {
        let broken: Vec<u64> = self
            .clients
            .iter_mut()
            .filter_map(|(id, client)| {
                (!client.flush() || client.is_over_its_bound()).then_some(*id)
            })
            .collect();
        broken.into_iter().for_each(|id| self.drop_client(id));
    }

    fn read_upstream(&mut self) -> Result<()> {
        let mut bytes = [0; 64 * 1024];
        match self.upstream.read(&mut bytes) {
            Ok(0) => return Err(Error::Lost("the agent closed it".into())),
            Ok(count) => self.decoder.push(&bytes[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(Error::Lost(error.to_string())),
        }
        self.take_upstream_frames()
    }

    fn take_upstream_frames(&mut self) -> Result<()> {
        while let Some(inbound) = self.decoder.event() {
            match inbound {
                Inbound::Frame(frame) => self.pass_down(frame)?,
                Inbound::Malformed(error) => return Err(error.into()),
                Inbound::Preamble(_) => return Err(FrameError::Preamble.into()),
            }
        }
        Ok(())
    }

    fn pass_down(&mut self, mut frame: Frame) -> Result<()> {
        if frame.stream == 0 {
            return match frame.parse::<RemoteError>() {
                Ok(error) if frame.kind == Kind::Error => Err(error.into()),
                _ => Err(Error::Protocol("unexpected frame on stream 0")),
            };
        }
        let Some(route) = self.routes.get(&frame.stream) else {
            return Ok(());
        };
        let (owner, local) = (route.client, route.local);
        if frame.kind.ends() {
            self.routes.remove(&frame.stream);
        }
        if let Some(client) = owner.and_then(|id| self.clients.get_mut(&id)) {
            if frame.kind.ends() {
                client.streams.remove(&local);
            }
            frame.stream = local;
            client.outbound.frame(&frame);
        }
        Ok(())
    }

    /// Reads from a client; false if it has to go.
    fn read_client(&mut self, id: u64) -> bool {
        let Some(client) = self.clients.get_mut(&id) else {
            return true;
        };
        if !client.read() {
            return false;
        }
        while let Some(inbound) = self
            .clients
            .get_mut(&id)
            .and_then(|client| client.decoder.event())
        {
            let served = match inbound {
                Inbound::Frame(frame) => self.pass_up(id, frame),
                Inbound::Preamble(nonce) => self
                    .clients
                    .get_mut(&id)
                    .is_some_and(|client| client.begin(&nonce)),
                Inbound::Malformed(_) => false,
            };
            if !served {
                return false;
            }
        }
        true
    }

    /// Passes a client's frame on; false if it broke the protocol.
    fn pass_up(&mut self, id: u64, mut frame: Frame) -> bool {
        let Some(client) = self.clients.get_mut(&id) else {
            return false;
        };
        if frame.kind == Kind::Hello {
            return client.greet(&frame, &self.hello);
        }
        if !client.greeted {
            return false;
        }
        let local = frame.stream;
        if frame.kind.opens() {
            if client.streams.contains_key(&local) {
                return false;
            }
            // The agent counts all clients' streams as one session's.
            if self.routes.len() >= MAX_STREAMS {
                let message = format!(
                    "{MAX_STREAMS} requests are running already; try again when one has ended"
                );
                client.refuse(
                    local,
                    &RemoteError {
                        kind: ErrorKind::Limit,
                        message,
                    },
                );
                return true;
            }
            let upstream = loop {
                let candidate = self.next_stream;
                self.next_stream = candidate.wrapping_add(1).max(1);
                if !self.routes.contains_key(&candidate) {
                    break candidate;
                }
            };
            client.streams.insert(local, upstream);
            self.routes.insert(
                upstream,
                Route {
                    client: Some(id),
                    local,
                },
            );
        }
        // Frames for a stream that has just ended are late, not wrong.
        if let Some(upstream) = client.streams.get(&local) {
            frame.stream = *upstream;
            self.outbound.frame(&frame);
        }
        true
    }

    fn drop_client(&mut self, id: u64) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        for upstream in client.streams.into_values() {
            if let Some(route) = self.routes.get_mut(&upstream) {
                route.client = None;
                self.outbound.frame(&Frame::empty(upstream, Kind::Cancel));
                // Output in flight must not wait for credit that nobody will give.
                for channel in [Channel::Out, Channel::Err] {
                    self.outbound.frame(&Frame::eof(upstream, channel));
                }
            }
        }
    }
}
