//! What a host program says first: `CONNECT <port>\n`.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::unix;

/// Longest line, with its newline: `CONNECT 4294967295\n` has 19 bytes, and a little more space does no harm.
const LONGEST_LINE: usize = 32;

/// A host program that has connected and not yet said to which port.
pub(super) struct Handshake {
    pub stream: UnixStream,
    /// When patience with it ends.
    pub deadline: Instant,
    /// The socket is watched for input.
    pub watched: bool,
    line: [u8; LONGEST_LINE],
    length: usize,
}

/// How far a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not complete.
    Waiting,
    /// The program wants to talk to this port of the guest.
    Connect(u32),
    /// The line is none, too long, or will never be complete.
    Refused,
}

impl Handshake {
    pub fn new(stream: UnixStream, deadline: Instant) -> Self {
        Self {
            stream,
            deadline,
            watched: false,
            line: [0; LONGEST_LINE],
            length: 0,
        }
    }

    /// Reads as much of the line as is there, and nothing behind it.
    pub fn advance(&mut self) -> Progress {
        loop {
            let rest = self.line.get_mut(self.length..).unwrap_or(&mut []);
            if rest.is_empty() {
                return Progress::Refused;
            }
            let seen = match unix::peek(&self.stream, rest) {
                Ok(0) => return Progress::Refused,
                Ok(count) => rest.get(..count).unwrap_or(&[]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Progress::Waiting;
                }
                Err(_) => return Progress::Refused,
            };
            let newline = seen.iter().position(|&byte| byte == b'\n');
            let wanted = newline.map_or(seen.len(), |at| at + 1);
            // They are there: nobody else reads from this end.
            let taken = rest.get_mut(..wanted).unwrap_or(&mut []);
            if (&self.stream).read_exact(taken).is_err() {
                return Progress::Refused;
            }
            self.length += wanted;
            if newline.is_some() {
                let line = self.line.get(..self.length).unwrap_or(&[]);
                return parse(line).map_or(Progress::Refused, Progress::Connect);
            }
        }
    }
}

/// The port of a line.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let verb = words.next()?;
    let port = words.next()?.parse().ok()?;
    (verb.eq_ignore_ascii_case("connect") && words.next().is_none()).then_some(port)
}

/// The answer when the guest has accepted.
pub(super) fn accepted(host_port: u32) -> Vec<u8> {
    format!("OK {host_port}\n").into_bytes()
}
