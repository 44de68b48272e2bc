//! A running command.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::stream::{End, Stream};
use crate::{Channel, Error, ExecRequest, ExitStatus, Frame, Kind, Result, Signal, WindowSize};

/// A command that runs in the tenant.
///
/// Take the ends of its channels once each; a channel whose end is dropped is closed (stdin: end of file; stdout,
/// stderr: SIGPIPE for who writes there). Dropping the `Process` before its end cancels it.
#[derive(Debug)]
pub struct Process {
    stream: Arc<Stream>,
    stdin: Option<StdinWriter>,
    stdout: Option<ChannelReader>,
    stderr: Option<ChannelReader>,
}

impl Process {
    pub(super) fn new(stream: Arc<Stream>, request: &ExecRequest) -> Process {
        let reader = |channel| {
            Some(ChannelReader {
                stream: Arc::clone(&stream),
                channel,
            })
        };
        Process {
            stdin: request.stdin.then(|| StdinWriter {
                stream: Arc::clone(&stream),
            }),
            stdout: reader(Channel::Out),
            stderr: reader(Channel::Err).filter(|_| request.tty.is_none()),
            stream,
        }
    }

    pub(super) fn wait_started(&self) -> Result<u32> {
        self.stream.wait_started()
    }

    /// Its process id in the tenant.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn pid(&self) -> Result<u32> {
        self.stream.wait_started()
    }

    /// The writing end of its stdin, if the request asked for one and it was not taken before.
    pub fn take_stdin(&mut self) -> Option<StdinWriter> {
        self.stdin.take()
    }

    /// The reading end of its stdout (with a terminal: of everything).
    pub fn take_stdout(&mut self) -> Option<ChannelReader> {
        self.stdout.take()
    }

    /// The reading end of its stderr; None with a terminal.
    pub fn take_stderr(&mut self) -> Option<ChannelReader> {
        self.stderr.take()
    }

    /// A handle for signals and window sizes, for other threads.
    pub fn remote(&self) -> Remote {
        Remote {
            stream: Arc::clone(&self.stream),
        }
    }

    /// Waits for its end. The agent reports it after the last output; a channel nobody reads holds it up once its
    /// window is full, so read (or drop) them first.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn wait(&self) -> Result<ExitStatus> {
        match self.stream.wait_end() {
            End::Exited(status) => Ok(status),
            End::Failed(error) => Err(error),
            End::Done(_) => Err(Error::Protocol("a result for a command")),
        }
    }

    /// Collects what it prints to stdout and stderr, without stdin, and waits.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn output(mut self) -> Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        drop(self.stdin.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (out, err) = (self.stdout.take(), self.stderr.take());
        std::thread::scope(|scope| {
            // A failed connection is reported by `wait`.
            scope.spawn(|| err.map(|mut end| end.read_to_end(&mut stderr)));
            let _ = out.map(|mut end| end.read_to_end(&mut stdout));
        });
        Ok((self.wait()?, stdout, stderr))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.stream.is_ended() {
            // If the connection is gone, the agent has cancelled it anyway.
            let _ = self
                .stream
                .send(&Frame::empty(self.stream.id, Kind::Cancel));
        }
    }
}

/// Controls a running command from any thread; after its end it does nothing.
#[derive(Debug, Clone)]
pub struct Remote {
    pub(super) stream: Arc<Stream>,
}

impl Remote {
    /// Sends a signal (Linux number) to the command's process group.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn signal(&self, number: i32) -> Result<()> {
        let frame = Frame::json(self.stream.id, Kind::Signal, &Signal { number });
        frame.map_or(Ok(()), |frame| self.stream.send(&frame))
    }

    /// Tells the terminal's new size.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn resize(&self, size: WindowSize) -> Result<()> {
        Frame::json(self.stream.id, Kind::Resize, &size)
            .map_or(Ok(()), |frame| self.stream.send(&frame))
    }

    /// Ends the command as if its client had vanished: SIGHUP, then SIGKILL.
    ///
    /// # Errors
    /// The connection's failure.
    pub fn cancel(&self) -> Result<()> {
        self.stream
            .send(&Frame::empty(self.stream.id, Kind::Cancel))
    }

    /// Whether the command has ended or its connection failed.
    pub fn is_ended(&self) -> bool {
        self.stream.is_ended()
    }
}

/// Writes to a command's stdin; waits while the command does not read. Dropping it is the end of file.
#[derive(Debug)]
pub struct StdinWriter {
    pub(super) stream: Arc<Stream>,
}

impl Write for StdinWriter {
    /// # Errors
    /// `BrokenPipe` if the command closed its stdin or ended.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.stream
            .write(bytes)
            .map_err(io::Error::other)?
            .ok_or(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for StdinWriter {
    fn drop(&mut self) {
        self.stream.close_input();
    }
}

/// Reads a command's stdout or stderr, or a file's content. Dropping it tells the writer that nobody reads.
#[derive(Debug)]
pub struct ChannelReader {
    pub(super) stream: Arc<Stream>,
    pub(super) channel: Channel,
}

impl Read for ChannelReader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream
            .read(self.channel, bytes)
            .map_err(io::Error::other)
    }
}

impl Drop for ChannelReader {
    fn drop(&mut self) {
        self.stream.discard(self.channel);
    }
}
