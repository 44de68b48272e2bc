//! The header of a packet (virtio 1.3 §5.10.6), 44 bytes, little endian.

/// Bytes of a header.
pub const HEADER_BYTES: usize = 44;

/// Context id of the host (virtio 1.3 §5.10.4).
pub const HOST_CID: u64 = 2;

/// VIRTIO_VSOCK_TYPE_STREAM.
pub const TYPE_STREAM: u16 = 1;

/// The sender will receive no more (VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE).
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender will send no more (VIRTIO_VSOCK_SHUTDOWN_F_SEND).
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (virtio 1.3 §5.10.6, `op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Operation {
    fn code(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        let all = [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ];
        all.into_iter().find(|operation| operation.code() == code)
    }
}

/// A header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub source_cid: u64,
    pub target_cid: u64,
    pub source_port: u32,
    pub target_port: u32,
    /// Bytes of data that follow.
    pub length: u32,
    /// [`TYPE_STREAM`] or something that we do not serve.
    pub kind: u16,
    /// `None`: an operation that does not exist.
    pub operation: Option<Operation>,
    pub flags: u32,
    /// Size of the sender's receive buffer for this connection.
    pub buffer_size: u32,
    /// Bytes that the sender has passed on from that buffer, modulo 2^32.
    pub forwarded: u32,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut reader = Reader(bytes);
        Self {
            source_cid: u64::from_le_bytes(reader.take()),
            target_cid: u64::from_le_bytes(reader.take()),
            source_port: u32::from_le_bytes(reader.take()),
            target_port: u32::from_le_bytes(reader.take()),
            length: u32::from_le_bytes(reader.take()),
            kind: u16::from_le_bytes(reader.take()),
            operation: Operation::from_code(u16::from_le_bytes(reader.take())),
            flags: u32::from_le_bytes(reader.take()),
            buffer_size: u32::from_le_bytes(reader.take()),
            forwarded: u32::from_le_bytes(reader.take()),
        }
    }

    /// Writes a header.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(self.source_cid.to_le_bytes());
        bytes.extend(self.target_cid.to_le_bytes());
        bytes.extend(self.source_port.to_le_bytes());
        bytes.extend(self.target_port.to_le_bytes());
        bytes.extend(self.length.to_le_bytes());
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.operation.map_or(0, Operation::code).to_le_bytes());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.buffer_size.to_le_bytes());
        bytes.extend(self.forwarded.to_le_bytes());
        bytes
    }
}

/// Takes fields from the front of a header.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// The next `N` bytes; zeros beyond the end, which no field of a whole header reaches.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *field
    }
}
