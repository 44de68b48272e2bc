//! A local client of the relay.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use crate::{
    AgentHello, ClientHello, Decoder, ErrorKind, Frame, Kind, Nonce, Outbound, RemoteError,
    VERSION, WINDOW, preamble_reply,
};

/// Room for control frames on top of what the windows of a client's streams allow.
const CONTROL_ROOM: usize = 1 << 20;

pub(super) struct Client {
    pub(super) socket: UnixStream,
    pub(super) decoder: Decoder,
    pub(super) outbound: Outbound,
    pub(super) greeted: bool,
    begun: bool,
    /// Its stream ids → upstream ids.
    pub(super) streams: HashMap<u32, u32>,
}

impl Client {
    pub(super) fn new(socket: UnixStream) -> Client {
        Client {
            socket,
            decoder: Decoder::for_client_bytes(),
            outbound: Outbound::default(),
            greeted: false,
            begun: false,
            streams: HashMap::new(),
        }
    }

    /// Takes in what arrived; false if the client has gone.
    pub(super) fn read(&mut self) -> bool {
        let mut bytes = [0; 32 * 1024];
        match self.socket.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.decoder.push(&bytes[..count]);
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }

    /// Writes what waits; false if the client has gone.
    pub(super) fn flush(&mut self) -> bool {
        self.outbound.flush_to(&self.socket).is_ok()
    }

    /// Whether more waits than its streams' windows can explain: it grants credit and does not read. Streams that
    /// have ended leave their output behind, hence the bound for several generations of the fullest client.
    pub(super) fn is_over_its_bound(&self) -> bool {
        let windows = (self.streams.len() + 8) * 2 * WINDOW as usize;
        self.outbound.len() > windows + CONTROL_ROOM
    }

    /// Answers a preamble; a second one is a mistake on a socket of its own.
    pub(super) fn begin(&mut self, nonce: &Nonce) -> bool {
        self.outbound.raw(&preamble_reply(nonce));
        !std::mem::replace(&mut self.begun, true)
    }

    /// Answers a hello with the agent's own.
    pub(super) fn greet(&mut self, frame: &Frame, agent: &AgentHello) -> bool {
        let Ok(hello) = frame.parse::<ClientHello>() else {
            return false;
        };
        if hello.version != VERSION {
            let message = format!(
                "protocol version {} is not {VERSION}: restart what is older",
                hello.version
            );
            self.refuse(
                0,
                &RemoteError {
                    kind: ErrorKind::Protocol,
                    message,
                },
            );
            return true;
        }
        if let Some(answer) = Frame::json(0, Kind::Hello, agent) {
            self.outbound.frame(&answer);
        }
        !std::mem::replace(&mut self.greeted, true)
    }

    /// Ends one of its streams with an error.
    pub(super) fn refuse(&mut self, stream: u32, error: &RemoteError) {
        if let Some(answer) = Frame::json(stream, Kind::Error, error) {
            self.outbound.frame(&answer);
        }
    }
}
