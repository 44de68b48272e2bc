//! What a serial port can be connected to: standard input and output, a file or named pipe, a pseudo-terminal.
//!
//! Nothing here opens a path by name: the caller opens files through its own seam and hands them over.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::Duration;

/// Host ends of a serial port.
#[derive(Default)]
pub struct SerialEnds {
    /// `None`: no input.
    pub input: Option<File>,
    /// `None`: output is discarded.
    pub output: Option<Output>,
    /// Kept open so that the other end of a pseudo-terminal never looks hung up.
    _peer: Option<OwnedFd>,
    _raw: Option<RawMode>,
}

impl SerialEnds {
    /// Standard input and output. A terminal on standard input is switched to raw mode until the ends are dropped.
    ///
    /// # Errors
    /// A descriptor is closed or cannot be duplicated.
    pub fn stdio() -> io::Result<Self> {
        let (stdin, stdout) = (io::stdin().as_raw_fd(), io::stdout().as_raw_fd());
        let input = duplicate(stdin)?;
        Ok(Self {
            _raw: RawMode::enter(&input),
            input: Some(input),
            output: Some(Output::new(duplicate(stdout)?)?),
            _peer: None,
        })
    }

    /// Output to `file` (regular, or a named pipe opened without blocking), no input.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn file(file: File) -> io::Result<Self> {
        Ok(Self {
            output: Some(Output::new(file)?),
            ..Self::default()
        })
    }

    /// A new pseudo-terminal in raw mode, and the path of its other end.
    ///
    /// # Errors
    /// There is no pseudo-terminal to be had.
    pub fn pty() -> io::Result<(Self, String)> {
        let (mut main, mut peer): (RawFd, RawFd) = (-1, -1);
        let mut name = [0u8; 64];
        // SAFETY: both descriptors are valid places for the results, the name and the options are null pointers,
        // which openpty accepts.
        let result = unsafe {
            libc::openpty(
                &mut main,
                &mut peer,
                std::ptr::null_mut(),
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: openpty has just opened both descriptors and nobody else owns them.
        let (main, peer) = unsafe { (File::from_raw_fd(main), OwnedFd::from_raw_fd(peer)) };
        // SAFETY: the descriptor is open and the buffer is as long as said.
        let error =
            unsafe { libc::ptsname_r(main.as_raw_fd(), name.as_mut_ptr().cast(), name.len()) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        let name = name.split(|&byte| byte == 0).next().unwrap_or(&[]);
        let name = String::from_utf8_lossy(name).into_owned();
        let peer_file = File::from(peer);
        set_raw(&peer_file)?;
        set_nonblocking(&main)?;
        let ends = Self {
            input: Some(main.try_clone()?),
            output: Some(Output::new(main)?),
            _peer: Some(peer_file.into()),
            _raw: None,
        };
        Ok((ends, name))
    }
}

/// An output that is written without blocking.
pub struct Output {
    file: File,
    /// Most bytes to write when poll says that there is room; `None` if a write never blocks anyway.
    poll_chunk: Option<usize>,
}

impl Output {
    /// Takes over `file`. Pipes and terminals are opened again where /proc allows, so that O_NONBLOCK affects nobody
    /// who shares the descriptor; where it does not, poll is asked before every small write.
    ///
    /// # Errors
    /// The file cannot be examined.
    pub fn new(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if kind.is_file() || is_nonblocking(&file)? {
            return Ok(Self {
                file,
                poll_chunk: None,
            });
        }
        let chunk = if kind.is_fifo() { libc::PIPE_BUF } else { 256 };
        if kind.is_fifo() || kind.is_char_device() {
            let again = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
                .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
            if let Ok(file) = again {
                return Ok(Self {
                    file,
                    poll_chunk: None,
                });
            }
        }
        Ok(Self {
            file,
            poll_chunk: Some(chunk),
        })
    }

    /// Writes some of `bytes`.
    ///
    /// # Errors
    /// WouldBlock if it is full; others as write(2).
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(chunk) = self.poll_chunk else {
            return self.file.write(bytes);
        };
        if !self.wait(Duration::ZERO) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.file.write(bytes.get(..chunk).unwrap_or(bytes))
    }

    /// Waits up to `patience` for room; true if there is some (or an error to be seen by writing).
    pub fn wait(&self, patience: Duration) -> bool {
        let mut poll = libc::pollfd {
            fd: self.file.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `poll` is one valid pollfd.
        unsafe { libc::poll(&mut poll, 1, milliseconds) > 0 }
    }
}

impl AsRawFd for Output {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Raw mode of a terminal; the former mode comes back when this is dropped.
pub struct RawMode {
    terminal: File,
    before: libc::termios,
}

impl RawMode {
    /// Switches `file` to raw mode if it is a terminal.
    pub fn enter(file: &File) -> Option<Self> {
        let before = attributes(file).ok()?;
        let terminal = file.try_clone().ok()?;
        set_raw(file).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // SAFETY: the descriptor is open and `before` was filled by tcgetattr.
        unsafe { libc::tcsetattr(self.terminal.as_raw_fd(), libc::TCSANOW, &self.before) };
    }
}

fn attributes(file: &File) -> io::Result<libc::termios> {
    // SAFETY: termios is plain data, for which zeros are a value.
    let mut attributes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `attributes` is a valid place for the result.
    check(unsafe { libc::tcgetattr(file.as_raw_fd(), &mut attributes) })?;
    Ok(attributes)
}

fn set_raw(file: &File) -> io::Result<()> {
    let mut attributes = attributes(file)?;
    // SAFETY: `attributes` was filled by tcgetattr.
    unsafe { libc::cfmakeraw(&mut attributes) };
    // SAFETY: the descriptor is open and `attributes` is initialised.
    check(unsafe { libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, &attributes) }).map(drop)
}

fn flags(file: &File) -> io::Result<i32> {
    // SAFETY: F_GETFL takes no argument.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })
}

fn is_nonblocking(file: &File) -> io::Result<bool> {
    Ok(flags(file)? & libc::O_NONBLOCK != 0)
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = flags(file)? | libc::O_NONBLOCK;
    // SAFETY: F_SETFL takes an int.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: F_DUPFD_CLOEXEC takes an int and checks the descriptor.
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: `copy` has just been opened and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(copy) })
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
