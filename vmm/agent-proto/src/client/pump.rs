//! Connects a command to descriptors of this process.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, read, write};

use super::process::{ChannelReader, Process, StdinWriter};
use crate::handshake::wait_for;
use crate::{Error, ExitStatus, MAX_PAYLOAD, Result};

/// The descriptors a command is connected to. They are used as they are: a caller that wants a raw terminal makes it
/// raw, and restores it.
#[derive(Debug, Clone, Copy)]
pub struct Terminals<'a> {
    /// None: the command's stdin ends at once.
    pub stdin: Option<BorrowedFd<'a>>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
}

/// Carries bytes between the command and `terminals` until the command has ended and all its output is out.
///
/// The end of `stdin` is passed on as end of file while output goes on. If `stdout` or `stderr` breaks (EPIPE), the
/// command's next write there gets SIGPIPE. Signals and window sizes are the caller's: take [`Process::remote`] first
/// and use it from another thread.
///
/// # Errors
/// The connection's failure, or no thread or pipe to be had.
pub fn pump(mut process: Process, terminals: Terminals<'_>) -> Result<ExitStatus> {
    let (wake, waker) = pipe2(OFlag::O_CLOEXEC)
        .map_err(io::Error::from)
        .map_err(Error::io("cannot make a pipe"))?;
    let stdin = process.take_stdin();
    let stdout = process.take_stdout();
    let stderr = process.take_stderr();
    std::thread::scope(|scope| {
        if let (Some(from), Some(to)) = (terminals.stdin, stdin) {
            let wake = wake.as_fd();
            scope.spawn(move || pump_in(from, to, wake));
        }
        let outputs = [
            stdout.map(|end| (end, terminals.stdout)),
            stderr.map(|end| (end, terminals.stderr)),
        ];
        let pumps: Vec<_> = outputs
            .into_iter()
            .flatten()
            .map(|(from, to)| scope.spawn(move || pump_out(from, to)))
            .collect();
        let status = process.wait();
        for pump in pumps {
            let _ = pump.join();
        }
        // The reader of stdin may wait for a key nobody will press.
        drop(waker);
        status
    })
}

fn pump_in(from: BorrowedFd<'_>, mut to: StdinWriter, wake: BorrowedFd<'_>) {
    let mut chunk = vec![0; MAX_PAYLOAD];
    loop {
        let mut fds = [
            PollFd::new(from, PollFlags::POLLIN),
            PollFd::new(wake, PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        let happened = |fd: &PollFd| fd.revents().is_some_and(|events| !events.is_empty());
        if happened(&fds[1]) {
            return;
        }
        if !happened(&fds[0]) {
            continue;
        }
        match read(from, &mut chunk) {
            Ok(0) => return,
            Ok(count) => {
                if to.write_all(&chunk[..count]).is_err() {
                    return;
                }
            }
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // A terminal that hung up has nothing more to say, as any other unreadable stdin.
            Err(_) => return,
        }
    }
}

fn pump_out(mut from: ChannelReader, to: BorrowedFd<'_>) {
    let mut chunk = vec![0; 2 * MAX_PAYLOAD];
    // A failed connection is reported by `wait`.
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        let mut rest = &chunk[..count];
        while !rest.is_empty() {
            match write(to, rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if wait_for(to, PollFlags::POLLOUT, None).is_ok() => {}
                // Dropping `from` tells the command.
                Err(_) => return,
            }
        }
    }
}
