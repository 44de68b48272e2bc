//! What both ends tell each other first: the version of the protocol, and in JSON what they can.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::error::{Gone, UserError};
use super::exchange::{Connection, MOST_DATA, MOST_DESCRIPTORS, Request};
use super::message::{Body, Command, Fields};

/// The version that we speak.
const MAJOR: u16 = 0;
const MINOR: u16 = 1;

/// Most bytes that a server may need to say what it can.
const LONGEST: usize = 16 << 10;

/// Most descriptors that we send in a message: what the server of the crate `vfio_user` has room for, whatever is said.
const MOST_SENT: u64 = 16;

/// The longest access of a vCPU, bytes.
const ACCESS: u64 = 8;

/// What a server takes in one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Descriptors, at least 1.
    pub descriptors: usize,
    /// Bytes of data, at least those of one access.
    pub data: usize,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Data {
    capabilities: Capabilities,
}

/// The capabilities that matter here, with the defaults of the specification.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Capabilities {
    max_msg_fds: u64,
    max_data_xfer_size: u64,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: 1 << 20,
        }
    }
}

/// Agrees on a version; the first exchange of a connection.
///
/// # Errors
/// The server speaks another version, says nothing that can be read, or takes next to nothing.
pub fn negotiate(connection: &Connection, deadline: Instant) -> Result<Limits, UserError> {
    let ours = Data {
        capabilities: Capabilities {
            max_msg_fds: MOST_DESCRIPTORS as u64,
            max_data_xfer_size: MOST_DATA as u64,
        },
    };
    let body = Body::new()
        .u16(MAJOR)
        .u16(MINOR)
        .bytes(&serde_json::to_vec(&ours)?)
        .bytes(&[0]);
    let reply = connection.exchange(deadline, Request::new(Command::Version, body, LONGEST))?;
    let mut fields = Fields(&reply.body);
    let (Some(major), Some(minor)) = (fields.u16(), fields.u16()) else {
        return Err(Gone::Nonsense(Command::Version, "it is too short").into());
    };
    // A server answers with the same major version, and its own minor one if that is lower.
    if major != MAJOR || minor > MINOR {
        return Err(UserError::Version { major, minor });
    }
    limits(fields.0)
}

fn limits(json: &[u8]) -> Result<Limits, UserError> {
    // A text as C has it, with a zero at its end.
    let json = json.split(|byte| *byte == 0).next().unwrap_or_default();
    let theirs = if json.is_empty() {
        Data::default()
    } else {
        serde_json::from_slice(json)?
    };
    let Capabilities {
        max_msg_fds,
        max_data_xfer_size,
    } = theirs.capabilities;
    if max_data_xfer_size < ACCESS {
        return Err(UserError::Transfer(max_data_xfer_size));
    }
    Ok(Limits {
        descriptors: usize::try_from(max_msg_fds.clamp(1, MOST_SENT)).unwrap_or(1),
        data: usize::try_from(max_data_xfer_size).map_or(MOST_DATA, |data| data.min(MOST_DATA)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_servers_the_specifications_or_ours() {
        let of = |json: &str| limits(json.as_bytes()).unwrap();
        let default = Limits {
            descriptors: 1,
            data: 1 << 20,
        };
        assert_eq!(of(""), default);
        assert_eq!(of("\0"), default);
        assert_eq!(of("{}"), default);
        let said = r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":4096,"pgsizes":4096}}"#;
        let said = format!("{said}\0");
        assert_eq!(
            of(&said),
            Limits {
                descriptors: 8,
                data: 4096
            }
        );
        let much = format!(
            r#"{{"capabilities":{{"max_msg_fds":{0},"max_data_xfer_size":{0}}}}}"#,
            u64::MAX
        );
        assert_eq!(
            of(&much),
            Limits {
                descriptors: 16,
                data: 1 << 20
            }
        );
        let none = r#"{"capabilities":{"max_msg_fds":0}}"#;
        assert_eq!(of(none).descriptors, 1);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let nested = "[".repeat(LONGEST);
        for json in ["{", "7", r#"{"capabilities":{"max_msg_fds":-1}}"#, &nested] {
            let error = limits(json.as_bytes()).unwrap_err();
            assert!(
                matches!(error, UserError::Capabilities(_)),
                "{json}: {error}"
            );
        }
        let tiny = limits(br#"{"capabilities":{"max_data_xfer_size":7}}"#);
        assert!(matches!(tiny, Err(UserError::Transfer(7))));
    }
}
