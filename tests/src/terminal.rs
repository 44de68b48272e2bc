//! A terminal of the test's own (pty(7)): the test is the person who types, sees and resizes the window.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};

use crate::waiting::{self, PATIENCE};

nix::ioctl_write_ptr_bad!(set_size, nix::libc::TIOCSWINSZ, Winsize);
nix::ioctl_write_int_bad!(take_terminal, nix::libc::TIOCSCTTY);

/// A program that runs in a terminal, as its session's leader.
pub struct Terminal {
    keyboard: File,
    screen: Receiver<Vec<u8>>,
    /// Everything that was shown.
    shown: String,
    /// How much of it was already looked for.
    seen: usize,
    child: Child,
}

/// Both ends of a new terminal; none of them goes to a program that another test starts at the same time.
fn open() -> nix::Result<(File, File)> {
    let ours: PtyMaster = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NOCTTY.bits())
        .open(ptsname_r(&ours)?)
        .map_err(|_| nix::Error::last())?;
    // SAFETY: the descriptor is open, and its old owner gave it up just now.
    let ours = unsafe { File::from_raw_fd(ours.into_raw_fd()) };
    Ok((ours, theirs))
}

fn set(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the argument is a valid `struct winsize` for the time of the call (ioctl_tty(2)).
    unsafe { set_size(terminal.as_raw_fd(), &raw const size) }.expect("a terminal has a size");
}

impl Terminal {
    /// Starts `command` in a terminal of `rows` and `columns`.
    ///
    /// # Panics
    /// The terminal or the command cannot be had.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let (keyboard, theirs) = open().expect("a terminal is to be had");
        let end = || theirs.try_clone().expect("a descriptor is free");
        command.stdin(end()).stdout(end()).stderr(end());
        set(&keyboard, rows, columns);
        // SAFETY: setsid(2) and ioctl(2) are async-signal-safe and touch no memory of this process; standard input is
        // the terminal by then.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                take_terminal(0, 0)?;
                Ok(())
            });
        }
        let child = command.spawn().expect("the command starts");
        // Our copies of its end would keep the terminal open when the program has ended.
        drop((command, theirs));
        let mut reader = keyboard.try_clone().expect("a descriptor is free");
        let (show, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO once nobody has the other end any more.
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if show.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            keyboard,
            screen,
            shown: String::new(),
            seen: 0,
            child,
        }
    }

    /// Types `keys`.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn types(&mut self, keys: &str) {
        self.keyboard
            .write_all(keys.as_bytes())
            .expect("the terminal is there");
    }

    /// Waits until `text` is shown, behind what was waited for before.
    ///
    /// # Panics
    /// The program ends, or hangs, without having shown it.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                self.seen += at + text.len();
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.screen.recv_timeout(left) {
                Ok(more) => self.shown += &String::from_utf8_lossy(&more),
                Err(why) => panic!("no '{text}' ({why}) in: {}", self.shown),
            }
        }
    }

    /// Gives the window another size; the kernel tells the program (SIGWINCH).
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        set(&self.keyboard, rows, columns);
    }

    /// The process id of the program.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for the end of the program: its status, and everything that was shown.
    ///
    /// # Panics
    /// It hangs.
    pub fn end(mut self) -> (ExitStatus, String) {
        let status = waiting::end_of(self.child, "a program in a terminal").status;
        while let Ok(more) = self.screen.recv_timeout(PATIENCE) {
            self.shown += &String::from_utf8_lossy(&more);
        }
        (status, self.shown)
    }
}
