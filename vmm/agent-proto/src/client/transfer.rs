//! Files into and out of a tenant.

use std::io::{Read, Write};

use super::Connection;
use crate::{Channel, Error, FileInfo, Frame, Kind, MAX_PAYLOAD, ReadFile, Result, WriteFile};

impl Connection {
    /// Writes all of `content` into a file, which appears complete or not at all; returns its length in bytes.
    ///
    /// # Errors
    /// [`Error::Remote`] if the agent cannot write it, [`Error::Io`] if `content` cannot be read.
    pub fn write_file(&self, request: &WriteFile, mut content: impl Read) -> Result<u64> {
        let stream = self.shared.open(Kind::WriteFile, request)?;
        let mut chunk = vec![0; MAX_PAYLOAD];
        let mut sent = 0;
        'content: loop {
            let count = match content.read(&mut chunk) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let _ = stream.send(&Frame::empty(stream.id, Kind::Cancel));
                    return Err(Error::io("cannot read what to write into the tenant")(
                        error,
                    ));
                }
            };
            if count == 0 {
                break;
            }
            let mut rest = &chunk[..count];
            while !rest.is_empty() {
                match stream.write(rest)? {
                    Some(count) => {
                        rest = &rest[count..];
                        sent += count as u64;
                    }
                    // The agent gave up; its last frame says why.
                    None => break 'content,
                }
            }
        }
        stream.close_input();
        stream.wait_done()?;
        Ok(sent)
    }

    /// Copies a file of the tenant into `target`; checks that all of it came.
    ///
    /// # Errors
    /// [`Error::Remote`] if the agent cannot read it, [`Error::Io`] if `target` cannot be written.
    pub fn read_file(&self, request: &ReadFile, mut target: impl Write) -> Result<FileInfo> {
        let stream = self.shared.open(Kind::ReadFile, request)?;
        let info = stream.wait_file()?;
        let mut chunk = vec![0; MAX_PAYLOAD];
        let mut received = 0;
        loop {
            let count = stream.read(Channel::Out, &mut chunk)?;
            if count == 0 {
                break;
            }
            received += count as u64;
            if let Err(error) = target.write_all(&chunk[..count]) {
                let _ = stream.send(&Frame::empty(stream.id, Kind::Cancel));
                return Err(Error::io("cannot write what the tenant's file holds")(
                    error,
                ));
            }
        }
        let told = stream.wait_done()?;
        if told.as_slice().try_into().ok().map(u64::from_le_bytes) != Some(received) {
            return Err(Error::Protocol("a file of another length than announced"));
        }
        Ok(info)
    }
}
