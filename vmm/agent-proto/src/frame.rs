//! Frame layout and the decoder both sides read with.
//!
//! ```text
//! 0       4      5         6       8        12
//! +-------+------+---------+-------+--------+---------
//! |stream | kind | channel | zero  | length | payload …
//! +-------+------+---------+-------+--------+---------
//! ```
//! All integers are little-endian.

use std::collections::VecDeque;

/// Bytes of a frame before its payload.
pub const HEADER_LEN: usize = 12;
/// Longest payload in bytes. It also bounds the padding a client needs to resynchronise a serial port.
pub const MAX_PAYLOAD: usize = 32 * 1024;
/// Bytes that may be in flight on one channel of one stream; the receiver opens it again with `Credit`.
pub const WINDOW: u32 = 256 * 1024;
/// Streams one session may have open at once.
pub const MAX_STREAMS: usize = 128;

/// Length of [`MAGIC`] and of a nonce.
const WORD: usize = 16;
/// Identifies one session on a byte stream that several clients use one after another.
pub type Nonce = [u8; WORD];
/// Starts a client's preamble. Byte 4 is where a frame has its kind, and 0 is no kind: a preamble is never a frame.
pub(crate) const MAGIC: &[u8; WORD] = b"FIEF\0agent-hello";
/// Starts the agent's answer.
pub(crate) const REPLY_MAGIC: &[u8; WORD] = b"FIEF\0agent-ready";

/// What a frame is. The comment names who may send it and its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Both, stream 0, first: `ClientHello`, `AgentHello`.
    Hello = 1,
    /// Client, opens a stream: `ExecRequest`.
    Exec = 2,
    /// Client: `Signal`.
    Signal = 3,
    /// Client: `WindowSize`.
    Resize = 4,
    /// Both: bytes of a channel.
    Data = 5,
    /// From the channel's sender: no more data; on `In` with the u64 count of bytes sent.
    /// From its receiver: nobody reads it any more.
    Eof = 6,
    /// Receiver of a channel: u32, further bytes the sender may send.
    Credit = 7,
    /// Client: gone. A command gets SIGHUP, then SIGKILL; the stream still ends with its last frame.
    Cancel = 8,
    /// Client, opens a stream: empty.
    Ping = 9,
    /// Client, opens a stream: empty.
    Stats = 10,
    /// Client, opens a stream: `SetClock`.
    SetClock = 11,
    /// Client, opens a stream: `Shutdown`.
    Shutdown = 12,
    /// Client, opens a stream: `WriteFile`.
    WriteFile = 13,
    /// Client, opens a stream: `ReadFile`.
    ReadFile = 14,
    /// Client, opens a stream: `Provide`.
    Provide = 15,
    /// Client, opens a stream: `Connect`.
    Connect = 16,
    /// Agent: `Started`, the answer to `Exec`.
    Started = 32,
    /// Agent: `FileInfo`, the answer to `ReadFile`.
    FileInfo = 33,
    /// Agent, ends the stream: `ExitStatus`.
    Exited = 34,
    /// Agent, ends the stream: the request is done; its result.
    Done = 35,
    /// Agent, ends the stream (on stream 0 the session): `RemoteError`.
    Error = 36,
    /// Agent: empty, the answer to `Connect`.
    Connected = 37,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        [
            Hello, Exec, Signal, Resize, Data, Eof, Credit, Cancel, Ping, Stats, SetClock,
            Shutdown, WriteFile, ReadFile, Provide, Connect, Started, FileInfo, Exited, Done,
            Error, Connected,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    /// Whether the frame opens a stream.
    pub fn opens(self) -> bool {
        use Kind::*;
        matches!(
            self,
            Exec | Ping | Stats | SetClock | Shutdown | WriteFile | ReadFile | Provide | Connect
        )
    }

    /// Whether the frame is the last of its stream.
    pub fn ends(self) -> bool {
        matches!(self, Kind::Exited | Kind::Done | Kind::Error)
    }

    fn may_come_from(self, side: Side) -> bool {
        use Kind::*;
        match side {
            Side::Client => (self as u8) < Started as u8,
            Side::Agent => {
                matches!(self, Hello | Data | Eof | Credit) || self as u8 >= Started as u8
            }
        }
    }
}

/// Who sent a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Agent,
}

/// A direction of data within a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// To the agent: stdin, a file's content, what a connection sends.
    In = 0,
    /// To the client: stdout, the terminal, a file's content, what a connection receives.
    Out = 1,
    /// To the client: stderr.
    Err = 2,
}

impl Channel {
    fn from_byte(byte: u8) -> Option<Channel> {
        [Channel::In, Channel::Out, Channel::Err]
            .into_iter()
            .find(|channel| *channel as u8 == byte)
    }

    fn sender(self) -> Side {
        match self {
            Channel::In => Side::Client,
            Channel::Out | Channel::Err => Side::Agent,
        }
    }
}

/// One frame. Build it with the constructors; what a [`Decoder`] returns keeps the rules of the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub stream: u32,
    pub kind: Kind,
    /// Of `Data`, `Eof` and `Credit`; `In` in all other frames.
    pub channel: Channel,
    pub payload: Vec<u8>,
}

/// Why bytes are not a frame of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("unknown frame kind {0}")]
    Kind(u8),
    #[error("frame kind {0:?} from the wrong side")]
    Direction(Kind),
    #[error("unknown or wrong channel {0}")]
    Channel(u8),
    #[error("reserved bytes are {0:#06x}, not 0")]
    Reserved(u16),
    #[error("payload of {0} bytes, the limit is {MAX_PAYLOAD}")]
    Length(u32),
    #[error("{0:?} frame with a payload of {1} bytes")]
    Payload(Kind, u32),
    #[error("{0:?} frame on stream {1}")]
    Stream(Kind, u32),
    #[error("a new session begins")]
    Preamble,
}

impl Frame {
    /// A control frame with a JSON body, or None if the body exceeds [`MAX_PAYLOAD`].
    pub fn json<T: serde::Serialize>(stream: u32, kind: Kind, body: &T) -> Option<Frame> {
        let payload = serde_json::to_vec(body).ok()?;
        (payload.len() <= MAX_PAYLOAD).then_some(Frame {
            stream,
            kind,
            channel: Channel::In,
            payload,
        })
    }

    /// A control frame without a body.
    pub fn empty(stream: u32, kind: Kind) -> Frame {
        Frame {
            stream,
            kind,
            channel: Channel::In,
            payload: Vec::new(),
        }
    }

    /// Bytes of a channel, at most [`MAX_PAYLOAD`].
    pub fn data(stream: u32, channel: Channel, payload: Vec<u8>) -> Frame {
        Frame {
            stream,
            kind: Kind::Data,
            channel,
            payload,
        }
    }

    /// The sender of a channel of the client ends it after `sent` bytes.
    pub fn eof_counted(stream: u32, sent: u64) -> Frame {
        Frame {
            stream,
            kind: Kind::Eof,
            channel: Channel::In,
            payload: sent.to_le_bytes().to_vec(),
        }
    }

    /// The agent ends a channel it sends, or a receiver stops reading one.
    pub fn eof(stream: u32, channel: Channel) -> Frame {
        Frame {
            stream,
            kind: Kind::Eof,
            channel,
            payload: Vec::new(),
        }
    }

    /// The receiver of a channel allows `bytes` more.
    pub fn credit(stream: u32, channel: Channel, bytes: u32) -> Frame {
        Frame {
            stream,
            kind: Kind::Credit,
            channel,
            payload: bytes.to_le_bytes().to_vec(),
        }
    }

    /// The JSON body.
    pub fn parse<'a, T: serde::Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_slice(&self.payload)
    }

    /// The number in a `Credit` frame.
    pub fn credit_bytes(&self) -> u32 {
        self.payload
            .as_slice()
            .try_into()
            .map_or(0, u32::from_le_bytes)
    }

    /// The number in a counted `Eof` frame.
    pub fn eof_count(&self) -> Option<u64> {
        self.payload
            .as_slice()
            .try_into()
            .ok()
            .map(u64::from_le_bytes)
    }

    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        debug_assert!(self.payload.len() <= MAX_PAYLOAD);
        out.extend_from_slice(&header(
            self.stream,
            self.kind,
            self.channel,
            self.payload.len(),
        ));
        out.extend_from_slice(&self.payload);
    }
}

/// A frame's header for a payload of `length` bytes (at most [`MAX_PAYLOAD`]).
pub(crate) fn header(stream: u32, kind: Kind, channel: Channel, length: usize) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&stream.to_le_bytes());
    bytes[4] = kind as u8;
    bytes[5] = channel as u8;
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    bytes[8..].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// A checked header: stream, kind, channel, payload length.
type Header = (u32, Kind, Channel, usize);

fn check(bytes: [u8; HEADER_LEN], from: Side) -> Result<Header, FrameError> {
    let [s0, s1, s2, s3, kind, channel, r0, r1, l0, l1, l2, l3] = bytes;
    if bytes.starts_with(&MAGIC[..5]) {
        return Err(FrameError::Preamble);
    }
    let stream = u32::from_le_bytes([s0, s1, s2, s3]);
    let kind = Kind::from_byte(kind).ok_or(FrameError::Kind(kind))?;
    if !kind.may_come_from(from) {
        return Err(FrameError::Direction(kind));
    }
    let reserved = u16::from_le_bytes([r0, r1]);
    if reserved != 0 {
        return Err(FrameError::Reserved(reserved));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if length as usize > MAX_PAYLOAD {
        return Err(FrameError::Length(length));
    }
    // Stream 0 is the session itself.
    if (stream == 0) != (kind == Kind::Hello) && !(stream == 0 && kind == Kind::Error) {
        return Err(FrameError::Stream(kind, stream));
    }
    let which = Channel::from_byte(channel).ok_or(FrameError::Channel(channel))?;
    let (channel_fits, length_fits) = match kind {
        Kind::Data => (which.sender() == from, length > 0),
        Kind::Credit => (which.sender() != from, length == 4),
        Kind::Eof if from == Side::Client && which == Channel::In => (true, length == 8),
        Kind::Eof => (true, length == 0),
        Kind::Ping | Kind::Stats | Kind::Cancel | Kind::Connected => {
            (which == Channel::In, length == 0)
        }
        _ => (which == Channel::In, true),
    };
    if !channel_fits {
        return Err(FrameError::Channel(channel));
    }
    if !length_fits {
        return Err(FrameError::Payload(kind, length));
    }
    Ok((stream, kind, which, length as usize))
}

/// What a [`Decoder`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inbound {
    /// A client began a session: forget the one before, answer with [`preamble_reply`](crate::preamble_reply).
    Preamble(Nonce),
    Frame(Frame),
    /// The session is over. The decoder looks for the next preamble.
    Malformed(FrameError),
}

/// Turns bytes into frames, in whatever pieces they arrive. It holds at most what one [`push`](Self::push) brought
/// plus one frame.
#[derive(Debug)]
pub struct Decoder {
    from: Side,
    /// Between sessions: bytes are dropped until a preamble shows up.
    scanning: bool,
    buffer: VecDeque<u8>,
}

impl Decoder {
    /// For the agent's side: waits for a client's preamble.
    pub fn for_client_bytes() -> Decoder {
        Decoder {
            from: Side::Client,
            scanning: true,
            buffer: VecDeque::new(),
        }
    }

    /// For the client's side, after the handshake.
    pub fn for_agent_bytes() -> Decoder {
        Decoder {
            from: Side::Agent,
            scanning: false,
            buffer: VecDeque::new(),
        }
    }

    /// Whether the decoder is between sessions.
    pub fn is_scanning(&self) -> bool {
        self.scanning
    }

    /// Ends a session for a reason of the owner's: from here on bytes are dropped up to the next preamble.
    pub fn restart(&mut self) {
        self.scanning = true;
    }

    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend(bytes);
    }

    /// The next event, or None until more bytes arrive.
    pub fn event(&mut self) -> Option<Inbound> {
        if self.scanning {
            self.scan().map(Inbound::Preamble)
        } else {
            self.frame()
        }
    }

    fn frame(&mut self) -> Option<Inbound> {
        let mut head = [0; HEADER_LEN];
        if self.buffer.len() < HEADER_LEN {
            return None;
        }
        self.buffer
            .iter()
            .zip(&mut head)
            .for_each(|(from, to)| *to = *from);
        let (stream, kind, channel, length) = match check(head, self.from) {
            Ok(header) => header,
            Err(error) => {
                self.scanning = true;
                return Some(Inbound::Malformed(error));
            }
        };
        if self.buffer.len() < HEADER_LEN + length {
            return None;
        }
        self.buffer.drain(..HEADER_LEN);
        let mut payload = Vec::with_capacity(length);
        let (front, back) = self.buffer.as_slices();
        let from_front = front.len().min(length);
        payload.extend_from_slice(&front[..from_front]);
        payload.extend_from_slice(&back[..length - from_front]);
        self.buffer.drain(..length);
        Some(Inbound::Frame(Frame {
            stream,
            kind,
            channel,
            payload,
        }))
    }

    fn scan(&mut self) -> Option<Nonce> {
        let bytes = self.buffer.make_contiguous();
        let found = bytes.windows(WORD).position(|window| window == MAGIC);
        let Some(at) = found else {
            // The magic may have arrived in part.
            let keep = bytes.len().min(WORD - 1);
            self.buffer.drain(..self.buffer.len() - keep);
            return None;
        };
        let nonce = bytes.get(at + WORD..at + 2 * WORD)?.try_into().ok()?;
        self.buffer.drain(..at + 2 * WORD);
        self.scanning = false;
        Some(nonce)
    }
}

#[cfg(test)]
mod tests;
