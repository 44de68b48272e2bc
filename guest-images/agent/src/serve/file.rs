//! Files in and out, as streams of a session.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use fief_agent_proto::{
    Channel, ErrorKind, FileInfo, Frame, Kind, MAX_PAYLOAD, Outbound, ReadFile, RemoteError,
    WINDOW, WriteFile,
};
use nix::unistd::{Gid, Uid};

use super::command::{OUTBOUND_ROOM, io_error, protocol};
use crate::account;

/// Makes names of unfinished files unique within this agent.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A file that is being written, under another name until it is complete.
#[derive(Debug)]
pub struct Writing {
    file: File,
    unfinished: PathBuf,
    path: PathBuf,
    mode: u32,
    received: u64,
    finished: bool,
}

impl Writing {
    /// Opens the unfinished file.
    ///
    /// # Errors
    /// Path, owner or directory are not usable.
    pub fn begin(request: &WriteFile) -> Result<Writing, RemoteError> {
        let path = absolute(&request.path)?;
        let failed = |error| io_error(&format!("cannot write {}", request.path), &error);
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(bad(&request.path, "is no file name"));
        };
        if path
            .symlink_metadata()
            .is_ok_and(|found| !found.is_file() && !found.is_symlink())
        {
            return Err(bad(&request.path, "exists and is no regular file"));
        }
        let owner = request
            .owner
            .as_deref()
            .map(|owner| account::look_up(owner, Path::new("/etc")))
            .transpose()?;
        if request.parents {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(failed)?;
        }
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let unfinished = directory.join(format!(
            ".{}.fief-{}-{number}",
            name.to_string_lossy(),
            std::process::id()
        ));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .map_err(failed)?;
        let mode = request.mode & 0o7777;
        let writing = Writing {
            file,
            unfinished,
            path,
            mode,
            received: 0,
            finished: false,
        };
        if let Some(owner) = owner {
            nix::unistd::fchown(
                &writing.file,
                Some(Uid::from_raw(owner.uid)),
                Some(Gid::from_raw(owner.gid)),
            )
            .map_err(|error| failed(error.into()))?;
        }
        Ok(writing)
    }

    /// Writes bytes and gives their credit back at once.
    ///
    /// # Errors
    /// The file system's, such as no space.
    pub fn data(&mut self, id: u32, payload: &[u8], out: &mut Outbound) -> Result<(), RemoteError> {
        self.file
            .write_all(payload)
            .map_err(|error| io_error(&format!("cannot write {}", self.path.display()), &error))?;
        self.received += payload.len() as u64;
        out.frame(&Frame::credit(
            id,
            Channel::In,
            u32::try_from(payload.len()).unwrap_or(0),
        ));
        Ok(())
    }

    /// Puts the complete file in place.
    ///
    /// # Errors
    /// The count does not match, or the file system's.
    pub fn finish(&mut self, count: Option<u64>) -> Result<(), RemoteError> {
        if count != Some(self.received) {
            return Err(protocol("the end of the file does not match what arrived"));
        }
        let failed = |error: std::io::Error| {
            io_error(&format!("cannot write {}", self.path.display()), &error)
        };
        // After the owner, because a change of owner clears the set-id bits.
        let mode = nix::sys::stat::Mode::from_bits_truncate(self.mode);
        nix::sys::stat::fchmod(&self.file, mode).map_err(|error| failed(error.into()))?;
        std::fs::rename(&self.unfinished, &self.path).map_err(failed)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.unfinished);
        }
    }
}

/// A file that is being read.
#[derive(Debug)]
pub struct Reading {
    file: File,
    credit: u32,
    sent: u64,
}

impl Reading {
    /// Opens the file.
    ///
    /// # Errors
    /// It is not there or no regular file.
    pub fn begin(request: &ReadFile) -> Result<(Reading, FileInfo), RemoteError> {
        let path = absolute(&request.path)?;
        let failed = |error| io_error(&format!("cannot read {}", request.path), &error);
        // Non-blocking, or a FIFO would hold up everybody.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if !found.is_file() {
            return Err(bad(&request.path, "is no regular file"));
        }
        let info = FileInfo {
            size_bytes: found.len(),
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
        };
        Ok((
            Reading {
                file,
                credit: WINDOW,
                sent: 0,
            },
            info,
        ))
    }

    /// The client takes more.
    ///
    /// # Errors
    /// More than the window.
    pub fn credit(&mut self, bytes: u32) -> Result<(), RemoteError> {
        let credit = self
            .credit
            .checked_add(bytes)
            .filter(|credit| *credit <= WINDOW);
        self.credit = credit.ok_or_else(|| protocol("more credit than the window"))?;
        Ok(())
    }

    /// Whether [`turn`](Self::turn) would do something.
    pub fn may_read(&self, room: bool) -> bool {
        self.credit > 0 && room
    }

    /// Sends what credit and room allow, up to a few frames; the last frame when all is sent or reading failed.
    pub fn turn(&mut self, id: u32, out: &mut Outbound, scratch: &mut [u8]) -> Option<Frame> {
        for _ in 0..4 {
            if !self.may_read(out.len() < OUTBOUND_ROOM) {
                return None;
            }
            let most = MAX_PAYLOAD.min(self.credit as usize).min(scratch.len());
            match self.file.read(&mut scratch[..most]) {
                Ok(0) => {
                    let payload = self.sent.to_le_bytes().to_vec();
                    return Some(Frame {
                        stream: id,
                        kind: Kind::Done,
                        channel: Channel::In,
                        payload,
                    });
                }
                Ok(count) => {
                    self.credit -= u32::try_from(count).unwrap_or(self.credit);
                    self.sent += count as u64;
                    out.data(id, Channel::Out, &scratch[..count]);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Frame::json(id, Kind::Error, &io_error("cannot read on", &error));
                }
            }
        }
        None
    }
}

fn absolute(path: &str) -> Result<PathBuf, RemoteError> {
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(bad(path, "is no absolute path"))
    }
}

fn bad(path: &str, why: &str) -> RemoteError {
    RemoteError {
        kind: ErrorKind::BadRequest,
        message: format!("'{path}' {why}"),
    }
}
