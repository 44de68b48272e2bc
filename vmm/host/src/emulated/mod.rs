//! The emulated host: a PC that QEMU emulates, with KVM, an IOMMU and Debian in it, for machines whose own KVM cannot
//! run Linux guests. It is built from the same parts as a tenant: kernel, initramfs with the agent, read-only image,
//! writable disk.
//!
//! A *keeper* process owns it (see [`keeper`]): QEMU dies with it, and it shares the machine's one serial port among
//! all `fief` commands. The keeper holds a lock for as long as it lives, so "is it running" never rests on a process
//! id.

mod directory;
pub mod keeper;
pub mod ports;
mod sync;
mod wake;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fief_agent_proto::{Connection, ErrorKind, ExecRequest, Shutdown, ShutdownAction};
use fief_images::{Images, InitramfsSpec, KernelKind, Kind, Progress, Unit};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::doctor::find_program;
use crate::qemu::{Boot, Hardware, QEMU};
use directory::Directory;

/// How long a start may take before it is given up: QEMU needs 2–4 s on an idle machine, far more on a busy one.
const START_DEADLINE: Duration = Duration::from_secs(180);
/// How long an orderly shutdown may take before QEMU is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long an agent that is up may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long all tenants that start by themselves may take until their machines run.
const AUTOSTART_DEADLINE: Duration = Duration::from_secs(600);
/// How many seconds tenants have to shut down before their host does.
const TENANTS_GRACE: &str = "30";
/// Between two looks at a condition that nothing announces.
const POLL: Duration = Duration::from_millis(20);
/// Size of the emulated host's own disk. The file is sparse: it takes what is used.
const DISK_BYTES: u64 = 64 << 30;
/// Where fief keeps its state inside the emulated host.
const INNER_STATE: &str = "/var/lib/fief";
/// Where its binaries are inside the emulated host.
const INNER_BINARIES: &str = "/usr/local/bin";

/// Why the emulated host could not be used.
#[derive(Debug, thiserror::Error)]
pub enum EmulatedError {
    /// QEMU is not installed.
    #[error("{QEMU} is not installed; install the package qemu-system-x86")]
    NoEmulator,
    /// A file or process could not be handled.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// An image or kernel could not be made.
    #[error("cannot prepare what the emulated host boots from: {0}")]
    Images(#[from] fief_images::Error),
    /// Its own disk could not be made.
    #[error("cannot make the emulated host's disk: {0}")]
    Disk(#[from] fief_images::disk::Error),
    /// The agent did not answer, or the connection broke.
    #[error("the emulated host does not answer: {0}")]
    Agent(#[from] fief_agent_proto::Error),
    /// It ended while it was starting.
    #[error("the emulated host ended while it was starting: {reason}; its console is in {console}")]
    Died { reason: String, console: String },
    /// It did not come up in time.
    #[error("the emulated host did not answer within {seconds} s; its console is in {console}")]
    Slow { seconds: u64, console: String },
    /// It is not running.
    #[error("the emulated host is not running; start it with `fief host start`")]
    NotRunning,
    /// It runs with other hardware than asked for.
    #[error(
        "the emulated host already runs with other options; stop it first with `fief host stop`"
    )]
    OtherHardware,
    /// A port of this machine cannot be had for it.
    #[error(transparent)]
    Port(ports::Missing),
}

impl EmulatedError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// What `fief host status` shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    pub running: bool,
    /// The keeper's process id, where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// What it runs with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<Hardware>,
    /// Bytes that its disk takes on this machine.
    pub disk_bytes: u64,
    /// Its serial console.
    pub console: PathBuf,
}

/// What a keeper starts; written by `start`, read by the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Launch {
    hardware: Hardware,
    boot: Boot,
}

/// The emulated host of one state directory.
pub struct EmulatedHost {
    directory: Directory,
}

impl EmulatedHost {
    /// The emulated host below `state`. Nothing is made or started.
    pub fn open(state: &Path) -> Self {
        Self {
            directory: Directory::new(state.join("host")),
        }
    }

    /// Whether it was ever started: only then can there be tenants in it.
    pub fn exists(&self) -> bool {
        self.directory.disk().exists()
    }

    /// Whether it runs, and how.
    pub fn status(&self) -> Status {
        let running = self.directory.kept();
        Status {
            running,
            pid: self.directory.keeper_pid().filter(|_| running),
            hardware: self
                .directory
                .launch()
                .ok()
                .map(|launch| launch.hardware)
                .filter(|_| running),
            disk_bytes: self.directory.disk_usage(),
            console: self.directory.endpoints().console,
        }
    }

    /// Starts it, or returns at once if it runs with this hardware (`None`: with any). Images are made where they are
    /// missing. `agent` becomes its init; `keeper` is a command that, with the host's directory added as its last
    /// argument, ends in [`keeper::keep`].
    ///
    /// # Errors
    /// See [`EmulatedError`]; nothing is left running.
    pub fn start(
        &self,
        hardware: Option<&Hardware>,
        images: &Images,
        agent: &Path,
        keeper: Command,
        progress: &dyn Progress,
    ) -> Result<(), EmulatedError> {
        let _starting = self.directory.lock_start()?;
        if self.directory.kept() {
            let running = self.directory.launch()?.hardware;
            if hardware.is_some_and(|asked| *asked != running) {
                return Err(EmulatedError::OtherHardware);
            }
            return self.await_agent(progress);
        }
        if find_program(QEMU).is_none() {
            return Err(EmulatedError::NoEmulator);
        }
        let boot = self.prepare(images, agent, progress)?;
        self.directory.write_launch(&Launch {
            hardware: hardware.cloned().unwrap_or_default(),
            boot,
        })?;
        self.directory.clear_run_files()?;
        self.spawn(keeper)?;
        self.await_agent(progress)?;
        progress.begin(
            "starting the tenants that start by themselves",
            Unit::Items,
            None,
        );
        self.tell(&self.inside(&["start", "--all"], AUTOSTART_DEADLINE));
        progress.end();
        Ok(())
    }

    /// Runs `fief WORDS` inside, as a boot and a shutdown do it; what it complained of. A disk that has no fief yet has
    /// no tenants either.
    fn inside(&self, words: &[&str], patience: Duration) -> String {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let what = format!("fief {}", words.join(" "));
        let connected = self.try_connect(Instant::now() + ANSWER.min(patience));
        let (ended, end) = std::sync::mpsc::channel();
        // On a thread: a machine that hangs holds up nothing but that.
        std::thread::spawn(move || {
            let ran =
                connected.and_then(|agent| Ok(agent.exec(&Self::carried(&words))?.output()?));
            let _ = ended.send(ran);
        });
        match end.recv_timeout(patience) {
            Ok(Ok((_, _, errors))) => String::from_utf8_lossy(&errors).into_owned(),
            Ok(Err(EmulatedError::Agent(fief_agent_proto::Error::Remote(error))))
                if error.kind == ErrorKind::CommandNotFound =>
            {
                String::new()
            }
            Ok(Err(error)) => format!("cannot run {what}: {error}\n"),
            Err(_) => format!("{what} did not end within {} s\n", patience.as_secs()),
        }
    }

    /// Into its log, where those look who miss a tenant.
    fn tell(&self, text: &str) {
        if let Ok(mut log) = self.directory.create_log() {
            let _ = log.write_all(text.as_bytes());
        }
    }

    fn prepare(
        &self,
        images: &Images,
        agent: &Path,
        progress: &dyn Progress,
    ) -> Result<Boot, EmulatedError> {
        let kernel = images.ensure_kernel(KernelKind::Debian, progress)?;
        let root = images.ensure_rootfs("host", progress)?;
        let spec = InitramfsSpec {
            kernel: kernel.clone(),
            agent: agent.to_owned(),
            modules: fief_images::modules::HOST
                .iter()
                .map(|&name| name.to_owned())
                .collect(),
            later: Vec::new(),
            busybox: false,
        };
        let initramfs = images.ensure_initramfs(&spec, progress)?;
        let disk = self.directory.disk();
        if !disk.exists() {
            // What was copied to an older disk is not on this one.
            self.directory.forget_copies()?;
            fief_images::disk::make(&disk, DISK_BYTES)?;
        }
        Ok(Boot {
            kernel: kernel.bzimage,
            initramfs: initramfs.path,
            root: root.path,
            disk,
            modules: kernel.modules_image,
        })
    }

    fn spawn(&self, mut keeper: Command) -> Result<(), EmulatedError> {
        let log = self.directory.create_log()?;
        let errors = log
            .try_clone()
            .map_err(EmulatedError::io("cannot use the keeper's log"))?;
        keeper.arg(self.directory.path()).current_dir("/");
        keeper.stdin(Stdio::null()).stdout(log).stderr(errors);
        keeper::detach(&mut keeper);
        let child = keeper.spawn().map_err(EmulatedError::io(
            "cannot start the keeper of the emulated host",
        ))?;
        self.directory.await_keeper(child)
    }

    fn await_agent(&self, progress: &dyn Progress) -> Result<(), EmulatedError> {
        progress.begin("starting the emulated host", Unit::Items, None);
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            match self.try_connect(deadline) {
                Ok(connection) => {
                    connection.ping()?;
                    progress.end();
                    return Ok(());
                }
                Err(error) if !self.directory.kept() => {
                    let reason = self
                        .directory
                        .last_words()
                        .unwrap_or_else(|| error.to_string());
                    return Err(EmulatedError::Died {
                        reason,
                        console: self.console(),
                    });
                }
                Err(_) if Instant::now() >= deadline => {
                    return Err(EmulatedError::Slow {
                        seconds: START_DEADLINE.as_secs(),
                        console: self.console(),
                    });
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    fn console(&self) -> String {
        self.directory.endpoints().console.display().to_string()
    }

    fn try_connect(&self, deadline: Instant) -> Result<Connection, EmulatedError> {
        let stream = self.directory.connect_agent()?;
        Ok(Connection::open(stream, deadline)?)
    }

    /// A session with the agent inside.
    ///
    /// # Errors
    /// [`EmulatedError::NotRunning`], or why there is no answer.
    pub fn connect(&self) -> Result<Connection, EmulatedError> {
        if !self.directory.kept() {
            return Err(EmulatedError::NotRunning);
        }
        self.try_connect(Instant::now() + START_DEADLINE)
    }

    /// Copies `binaries` (fief, fief-vmm, fief-agent) to where the emulated host runs them, and the files of the
    /// named artifacts into its image store, where they are not there yet.
    ///
    /// # Errors
    /// See [`EmulatedError`].
    pub fn synchronise(
        &self,
        connection: &Connection,
        binaries: &[PathBuf],
        images: &Images,
        artifacts: &[(Kind, &str)],
        progress: &dyn Progress,
    ) -> Result<(), EmulatedError> {
        let _copying = self.directory.lock_copies()?;
        sync::synchronise(
            &self.directory,
            connection,
            binaries,
            images,
            artifacts,
            progress,
        )
    }

    /// The request that runs `fief ARGUMENTS` inside: the same command line, on the emulated host's own KVM.
    pub fn carried(arguments: &[String]) -> ExecRequest {
        let fief = format!("{INNER_BINARIES}/fief");
        let own = [
            fief.as_str(),
            "--host",
            "native",
            "--state-dir",
            INNER_STATE,
        ]
        .map(str::to_owned);
        let mut request = ExecRequest::new(own.into_iter().chain(arguments.iter().cloned()));
        request.user = Some("root".to_owned());
        request.cwd = Some("/root".to_owned());
        request
    }

    /// Shuts it down in good order, or kills it when it does not answer. Returns whether it was running.
    ///
    /// # Errors
    /// It could not be ended.
    pub fn stop(&self) -> Result<bool, EmulatedError> {
        if !self.directory.kept() {
            return Ok(false);
        }
        // Tenants have what they did not write to their disks yet.
        let stop = ["stop", "--all", "--for-shutdown", "-t", TENANTS_GRACE];
        self.tell(&self.inside(&stop, STOP_DEADLINE));
        let asked = self
            .try_connect(Instant::now() + ANSWER)
            .and_then(|connection| {
                Ok(connection.shutdown(Shutdown {
                    action: ShutdownAction::Poweroff,
                    force: false,
                })?)
            });
        let ended = asked.is_ok() && self.directory.await_end(STOP_DEADLINE);
        if !ended {
            self.directory.signal_keeper(Signal::SIGKILL)?;
            self.directory.await_end(STOP_DEADLINE);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
