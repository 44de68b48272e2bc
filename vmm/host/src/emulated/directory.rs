//! The files of an emulated host: locks, sockets, logs, disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{EmulatedError, Launch, POLL};
use crate::qemu::Endpoints;

/// The relay's socket, for any number of clients.
pub(super) const AGENT_SOCKET: &str = "agent.sock";
/// The keeper's socket for commands that publish ports.
pub(super) const PORTS_SOCKET: &str = "ports.sock";

pub(super) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.path.join("disk.ext4")
    }

    pub(super) fn endpoints(&self) -> Endpoints {
        Endpoints::in_directory(&self.path)
    }

    pub(super) fn copies(&self) -> PathBuf {
        self.path.join("copies.json")
    }

    fn log(&self) -> PathBuf {
        self.path.join("keeper.log")
    }

    fn keeper_lock(&self) -> PathBuf {
        self.path.join("keeper.lock")
    }

    /// Bytes that the disk takes.
    pub(super) fn disk_usage(&self) -> u64 {
        // st_blocks counts 512 bytes whatever the block size (stat(2)).
        fs::metadata(self.disk()).map_or(0, |data| data.blocks() * 512)
    }

    fn create(&self) -> Result<(), EmulatedError> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(self.failed("cannot make"))
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> EmulatedError + use<> {
        EmulatedError::io(format!("{what} {}", self.path.display()))
    }

    fn lock(&self, file: &Path, how: FlockArg) -> Result<Option<Flock<File>>, EmulatedError> {
        let failed = || EmulatedError::io(format!("cannot lock {}", file.display()));
        let mut options = OpenOptions::new();
        let opened = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(file);
        match Flock::lock(opened.map_err(failed())?, how) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(failed()(error.into())),
        }
    }

    fn lock_exclusive(&self, name: &str) -> Result<Flock<File>, EmulatedError> {
        self.create()?;
        let file = self.path.join(name);
        let lock = self.lock(&file, FlockArg::LockExclusive)?;
        lock.ok_or_else(|| {
            EmulatedError::io(format!("cannot lock {}", file.display()))(
                io::ErrorKind::WouldBlock.into(),
            )
        })
    }

    /// One start at a time.
    pub(super) fn lock_start(&self) -> Result<Flock<File>, EmulatedError> {
        self.lock_exclusive("start.lock")
    }

    /// One copying at a time.
    pub(super) fn lock_copies(&self) -> Result<Flock<File>, EmulatedError> {
        self.lock_exclusive("copies.lock")
    }

    /// The lock that a keeper holds while it lives; `None` when another keeper has it.
    pub(super) fn lock_keeper(&self) -> Result<Option<Flock<File>>, EmulatedError> {
        let Some(mut lock) = self.lock(&self.keeper_lock(), FlockArg::LockExclusiveNonblock)?
        else {
            return Ok(None);
        };
        let written = lock
            .set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()));
        written.map_err(EmulatedError::io("cannot write the keeper's lock"))?;
        Ok(Some(lock))
    }

    /// A keeper lives.
    pub(super) fn kept(&self) -> bool {
        // A shared lock is refused while the keeper has the exclusive one, and never keeps a keeper out for long.
        let Ok(file) = File::open(self.keeper_lock()) else {
            return false;
        };
        matches!(
            Flock::lock(file, FlockArg::LockSharedNonblock),
            Err((_, nix::Error::EWOULDBLOCK))
        )
    }

    pub(super) fn keeper_pid(&self) -> Option<i32> {
        let mut text = String::new();
        File::open(self.keeper_lock())
            .ok()?
            .take(16)
            .read_to_string(&mut text)
            .ok()?;
        text.trim().parse().ok()
    }

    /// Sends a signal to the keeper, if it lives.
    pub(super) fn signal_keeper(&self, signal: Signal) -> Result<(), EmulatedError> {
        match self.keeper_pid().filter(|_| self.kept()) {
            Some(pid) => kill(Pid::from_raw(pid), signal).map_err(|errno| {
                EmulatedError::io("cannot end the keeper of the emulated host")(errno.into())
            }),
            None => Ok(()),
        }
    }

    /// Waits until the new keeper has its lock.
    pub(super) fn await_keeper(&self, mut child: Child) -> Result<(), EmulatedError> {
        loop {
            if self.kept() {
                return Ok(());
            }
            let ended = child
                .try_wait()
                .map_err(EmulatedError::io("cannot wait for the keeper"))?;
            if let Some(status) = ended {
                let reason = self
                    .last_words()
                    .unwrap_or_else(|| format!("its keeper ended with {status}"));
                return Err(EmulatedError::Died {
                    reason,
                    console: self.endpoints().console.display().to_string(),
                });
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until no keeper lives; false if one still does at the end of `patience`.
    pub(super) fn await_end(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.kept() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    pub(super) fn launch(&self) -> Result<Launch, EmulatedError> {
        let file = self.path.join("launch.json");
        let failed = || EmulatedError::io(format!("cannot read {}", file.display()));
        let text = fs::read(&file).map_err(failed())?;
        serde_json::from_slice(&text).map_err(|error| failed()(error.into()))
    }

    pub(super) fn write_launch(&self, launch: &Launch) -> Result<(), EmulatedError> {
        self.write_json("launch.json", launch)
    }

    /// Writes a small file that is there whole or not at all.
    pub(super) fn write_json(
        &self,
        name: &str,
        value: &impl serde::Serialize,
    ) -> Result<(), EmulatedError> {
        let written = tempfile::NamedTempFile::new_in(&self.path).and_then(|mut file| {
            serde_json::to_writer(&mut file, value)?;
            file.as_file().sync_all()?;
            file.persist(self.path.join(name))?;
            Ok(())
        });
        written.map_err(self.failed(&format!("cannot write {name} in")))
    }

    fn remove(&self, name: &str) -> Result<(), EmulatedError> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(EmulatedError::io(
                format!("cannot remove {name} in {}", self.path.display()),
            )(error)),
            _ => Ok(()),
        }
    }

    /// Removes what an earlier run may have left: sockets and the console's output.
    pub(super) fn clear_run_files(&self) -> Result<(), EmulatedError> {
        // A machine that died has said why on its console.
        let console = self.endpoints().console;
        if console.exists() {
            let kept = self.path.join("console.log.1");
            fs::rename(&console, kept).map_err(self.failed("cannot move console.log in"))?;
        }
        self.clear_sockets()
    }

    /// Removes the sockets; the logs stay to be read.
    pub(super) fn clear_sockets(&self) -> Result<(), EmulatedError> {
        [AGENT_SOCKET, PORTS_SOCKET, "serial.sock"]
            .iter()
            .try_for_each(|name| self.remove(name))
    }

    /// Forgets what was copied inside.
    pub(super) fn forget_copies(&self) -> Result<(), EmulatedError> {
        self.remove("copies.json")
    }

    pub(super) fn create_log(&self) -> Result<File, EmulatedError> {
        // Appended to: what an earlier keeper said before it ended is what one wants to know. It is small: a start
        // adds some lines.
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log());
        opened.map_err(self.failed("cannot write keeper.log in"))
    }

    /// The last line of the keeper's log.
    pub(super) fn last_words(&self) -> Option<String> {
        let text = fs::read_to_string(self.log()).ok()?;
        text.lines()
            .rev()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .map(str::to_owned)
    }

    /// Connects to the relay.
    pub(super) fn connect_agent(&self) -> Result<UnixStream, EmulatedError> {
        self.connect(AGENT_SOCKET)
            .map_err(EmulatedError::io("cannot connect to the emulated host"))
    }

    /// Connects to the keeper, about ports.
    pub(super) fn connect_ports(&self) -> Result<UnixStream, EmulatedError> {
        self.connect(PORTS_SOCKET).map_err(EmulatedError::io(
            "cannot ask the keeper of the emulated host for ports; if an older fief started it, `fief host stop` helps",
        ))
    }

    fn connect(&self, socket: &str) -> io::Result<UnixStream> {
        // A socket's name is limited to 107 bytes (unix(7)), a state directory's is not: go by way of a descriptor.
        let directory = File::open(&self.path)?;
        UnixStream::connect(format!("/proc/self/fd/{}/{socket}", directory.as_raw_fd()))
    }
}
