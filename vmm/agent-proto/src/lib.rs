//! Frames between `fief` and the agent in a tenant (and in the emulated host): see `docs/agent-protocol.md`.
//!
//! The crate has three users. The agent takes [`Decoder`], [`Frame`] and the messages. `fief` takes [`Connection`]:
//! it runs commands with [`Connection::exec`], connects them to its own descriptors with [`pump`], and copies files.
//! The emulated host takes [`relay()`], which lets many local clients share its one serial port.
//!
//! Everything a peer sends is bounded: a frame's payload by [`MAX_PAYLOAD`], what may be in flight on one channel of a
//! stream by [`WINDOW`].

mod client;
mod dial;
mod error;
mod frame;
mod handshake;
mod message;
mod outbound;
mod provide;
mod relay;

pub use client::{
    ChannelReader, Connection, Process, Remote, RemoteSocket, StdinWriter, Terminals, pump,
};
pub use dial::{AGENT_PORT, connect_unix, connect_vsock_unix};
pub use error::{Error, Result};
pub use frame::{
    Channel, Decoder, Frame, FrameError, HEADER_LEN, Inbound, Kind, MAX_PAYLOAD, MAX_STREAMS,
    Nonce, Side, WINDOW,
};
pub use handshake::{Session, handshake, handshake_serial, preamble, preamble_reply};
pub use message::{
    AgentHello, ClientHello, Connect, DiskUse, ErrorKind, ExecRequest, ExitStatus, FileInfo,
    InitMode, ReadFile, RemoteError, SetClock, Shutdown, ShutdownAction, Signal, Started, Stats,
    VERSION, WindowSize, WriteFile,
};
pub use outbound::Outbound;
pub use provide::{
    LONGEST_LOGIN, Login, MAX_KEYS, MAX_NAMES, Provide, ProvideError, is_login, is_public_key_line,
};
pub use relay::relay;
