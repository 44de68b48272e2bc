//! The backend `container`: an installed OCI runtime, a bundle for it, and a root made of the tenant's image and disk.
//!
//! The runtime makes and starts the container and is gone; the shim is then the parent of the container's process 1, which
//! is fief's agent, and waits for it as for a monitor.

mod bundle;
mod console;
mod idmap;
mod ids;
mod loop_device;
mod root;
pub mod runtime;
mod seccomp;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};

use super::{
    AGENT_SOCKET, Backend, BackendError, ContainerFiles, Spawned, agent_words, failed, through,
};
use crate::cgroup::{Group, Version};
use crate::network::{self, NetworkError, Record};
use crate::process::{self, Child, Process};
use crate::spec::{Init, Spec};
use crate::store::{Reason, Tenant};

use bundle::Description;
use root::{Layers, RootError};
use runtime::{Runtime, RuntimeError};

/// The agent finds its listening socket here (systemd's SD_LISTEN_FDS_START, which runtimes count from, too).
const LISTENER: RawFd = 3;
/// The container's name to its runtime, whose state directory is the tenant's own.
const ID: &str = "tenant";
const CONSOLE_SOCKET: &str = "console.sock";
const PID_FILE: &str = "pid";
const RUNTIME_LOG: &str = "runtime.log";
const RUNTIME_STATE: &str = "runtime";
/// Most processes and threads of a container: podman's default, twice. A virtual machine's kernel bounds its own.
const MAX_PROCESSES: u32 = 4096;

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Ids(#[from] ids::IdsError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(
        "an image's own init needs cgroups of version 2 in a container, and this machine has version 1: use --init agent, or \
         --isolation vm"
    )]
    NoGroups,
    #[error(
        "{runtime} cannot {what} the container: {why}; `fief doctor` shows which runtimes work here"
    )]
    Refused {
        runtime: String,
        what: &'static str,
        why: String,
    },
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> ContainerError {
    move |source| ContainerError::Io { what, source }
}

/// For the runtime's commands.
fn starting() -> impl FnOnce(io::Error) -> ContainerError {
    cannot("cannot start the runtime")
}

type Result<T> = std::result::Result<T, ContainerError>;

/// A tenant in a container.
#[derive(Debug)]
pub struct Container {
    tenant: Tenant,
    spec: Spec,
    files: ContainerFiles,
    network: Option<Record>,
    group: Group,
    /// The run directory, open: sockets in it are reached through it.
    run: File,
    runtime: Runtime,
    /// The container's end of its console.
    terminal: Option<OwnedFd>,
}

impl Container {
    /// A container for `tenant`, whose run directory is there.
    ///
    /// # Errors
    /// The run directory cannot be opened, or there is no runtime.
    pub fn new(
        tenant: Tenant,
        spec: Spec,
        files: ContainerFiles,
        network: Option<Record>,
        group: Group,
    ) -> std::result::Result<Self, BackendError> {
        let run = File::open(tenant.run_directory())
            .map_err(failed("cannot open the tenant's run directory"))?;
        // systemd ends at once where it may make no groups.
        let has_groups = |(_, version)| version == Version::V2;
        if spec.init == Init::Image && !group.of_container().is_some_and(has_groups) {
            return Err(ContainerError::NoGroups.into());
        }
        let runtime = Runtime::choose(files.runtime.as_deref()).map_err(ContainerError::from)?;
        Ok(Self {
            tenant,
            spec,
            files,
            network,
            group,
            run,
            runtime,
            terminal: None,
        })
    }

    /// The runtime, in the run directory, which is its bundle, too.
    fn command(&self, arguments: &[&str]) -> Command {
        let run = self.tenant.run_directory();
        let mut command = self
            .runtime
            .command(&run.join(RUNTIME_STATE), &run.join(RUNTIME_LOG));
        command.args(arguments).current_dir(run);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn make(&mut self) -> Result<Spawned> {
        // Process 1 of the container becomes a child of this process when the runtime, its parent, has ended.
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|errno| cannot("cannot become the container's parent")(errno.into()))?;
        let listener = UnixListener::bind(through(&self.run, AGENT_SOCKET))
            .map_err(cannot("cannot make the agent's socket"))?;
        let console = UnixListener::bind(through(&self.run, CONSOLE_SOCKET))
            .map_err(cannot("cannot make the console's socket"))?;
        let ids = ids::claim(&self.tenant)?;
        let messages = elsewhere(|| {
            // The runtime works with all of these in the mount namespace that hides one place.
            let needed = [
                self.tenant.directory(),
                &self.files.image,
                &self.files.agent,
                &self.runtime.path,
            ];
            let root = root::mount_all(Layers {
                place: root::place(&needed)?,
                image: &self.files.image,
                image_format: &self.files.image_format,
                disk: &self.tenant.disk(self.spec.isolation),
                ids,
            })?;
            self.runtime
                .settle_mounts()
                .map_err(cannot("cannot make the cgroups ready for the runtime"))?;
            self.write_bundle(&root, ids)?;
            self.create(listener)
        })?;
        let child = fs::read_to_string(self.tenant.run_directory().join(PID_FILE))
            .and_then(|text| text.trim().parse().map_err(io::Error::other))
            .and_then(Child::of)
            .map_err(cannot("cannot find the container's process"))?;
        let (console, terminal) =
            console::receive(&console).map_err(cannot("cannot get the container's console"))?;
        if let Some(network) = &self.network {
            let inside = File::open(format!("/proc/{}/ns/net", child.id()))
                .map_err(cannot("cannot open the container's network namespace"))?;
            network::attach(network, &inside)?;
        }
        self.terminal = Some(terminal);
        Ok(Spawned {
            child,
            console,
            messages,
            events: None,
        })
    }

    fn write_bundle(&self, root: &Path, ids: ids::IdRange) -> Result<()> {
        let bundle = bundle::spec(&Description {
            root,
            agent: &self.files.agent,
            words: agent_words(&self.spec, self.network.as_ref()),
            hostname: &self.spec.hostname,
            ids,
            group: self
                .group
                .of_container()
                .map(|(path, version)| bundle::Group { path, version }),
            memory: self.spec.memory,
            pids: MAX_PROCESSES,
            rlimits: bundle::rlimits().map_err(cannot("cannot read this process's limits"))?,
        });
        bundle
            .map_err(io::Error::other)
            .and_then(|bundle| bundle::write(&bundle, &self.tenant.run_directory()))
            .map_err(cannot("cannot write the container's bundle"))
    }

    /// Makes the container with its agent's socket; the pipe with what the runtime had to say.
    fn create(&self, listener: UnixListener) -> Result<OwnedFd> {
        let mut command = self.command(&[
            "create",
            "--bundle",
            ".",
            "--pid-file",
            PID_FILE,
            "--console-socket",
            CONSOLE_SOCKET,
            "--preserve-fds",
            &bundle::PRESERVED_FDS.to_string(),
            ID,
        ]);
        // From 3 on: so number 3 is taken in this process, and what is put there in the child is nobody else's.
        let listener = fcntl(&listener, FcntlArg::F_DUPFD_CLOEXEC(LISTENER))
            .map_err(|errno| starting()(errno.into()))?;
        // SAFETY: fcntl has just made it, for this alone.
        let listener = unsafe { OwnedFd::from_raw_fd(listener) };
        settle(&mut command, listener.as_raw_fd());
        self.run("make", command)
    }

    /// Runs a command of the runtime; the pipe with what it had to say. It is `what` was to be done, if that was refused.
    fn run(&self, what: &'static str, mut command: Command) -> Result<OwnedFd> {
        let (messages, into) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|errno| starting()(errno.into()))?;
        let status = command.stderr(into).status().map_err(starting())?;
        // With its end of the pipe.
        drop(command);
        if status.success() {
            return Ok(messages);
        }
        let log = fs::read_to_string(self.tenant.run_directory().join(RUNTIME_LOG));
        let said = runtime::text(&File::from(messages));
        Err(ContainerError::Refused {
            runtime: self.runtime.name.clone(),
            what,
            why: runtime::ending(status, log.ok().as_deref(), &said),
        })
    }
}

impl Backend for Container {
    fn spawn(&mut self) -> std::result::Result<Spawned, BackendError> {
        let made = self.make();
        if made.is_err() {
            self.clear();
        }
        Ok(made?)
    }

    fn boot(&mut self, _process: &mut Child) -> std::result::Result<(), BackendError> {
        elsewhere(|| {
            self.runtime.settle_thread().map_err(starting())?;
            self.run("start", self.command(&["start", ID]))
        })?;
        Ok(())
    }

    fn press_power_button(&self) -> std::result::Result<(), BackendError> {
        press_power_button(&self.tenant, self.spec.init)
            .map_err(failed("cannot signal the container"))
    }

    /// A pid namespace's end is a signal to its process 1, from the kernel, which says why (pid_namespaces(7)).
    fn meaning(&self, status: ExitStatus) -> Option<(Reason, Option<String>)> {
        match (status.signal(), status.code()) {
            (Some(2), _) | (_, Some(0)) => Some((Reason::Poweroff, None)),
            (Some(1), _) | (_, Some(129)) => Some((Reason::Reboot, None)),
            (_, Some(code)) => {
                let detail =
                    format!("its process 1 ended with code {code}; `fief logs` may tell why");
                Some((Reason::Failed, Some(detail)))
            }
            _ => None,
        }
    }

    fn clear(&mut self) {
        // What it cannot remove goes with the run directory and the cgroup, which the shim removes.
        let mut command = self.command(&["delete", "--force", ID]);
        command.stderr(Stdio::null());
        let _ = elsewhere(|| {
            let _ = self.runtime.settle_thread();
            command.status().map_err(starting())
        });
    }
}

/// Asks the container of a running tenant to shut down, without its agent: by systemd's signal for power-off (systemd(1),
/// SIGRTMIN+4), or by the agent's to process 1.
///
/// # Errors
/// It does not run.
pub fn press_power_button(tenant: &Tenant, init: Init) -> io::Result<()> {
    /// glibc's and musl's SIGRTMIN are not the same; that of the programs inside is 34, in both a kernel's number.
    const POWER_OFF: i32 = 34 + 4;
    let none = || io::Error::from(io::ErrorKind::NotFound);
    let state = tenant.state().map_err(io::Error::other)?.ok_or_else(none)?;
    let process = state.monitor.and_then(Process::open_exactly);
    process.ok_or_else(none)?.signal_number(match init {
        Init::Agent => Signal::SIGPWR as i32,
        Init::Image => POWER_OFF,
    })
}

/// Makes the kernel end the runtime when this thread ends, and gives it the agent's socket.
fn settle(command: &mut Command, listener: RawFd) {
    // SAFETY: dup2, fcntl, pthread_sigmask and prctl are async-signal-safe and touch no memory of this process; `listener`
    // stays open until the child was started, as its owner outlives the call of `status`.
    unsafe {
        command.pre_exec(move || {
            if listener == LISTENER {
                fcntl(
                    BorrowedFd::borrow_raw(listener),
                    FcntlArg::F_SETFD(FdFlag::empty()),
                )?;
            } else if nix::libc::dup2(listener, LISTENER) < 0 {
                return Err(io::Error::last_os_error());
            }
            // The shim reads its signals from a descriptor; a program begins with none blocked.
            SigSet::empty().thread_set_mask()?;
            Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
        });
    }
}

/// Does `work` on a thread of its own, whose mount namespace it may change.
fn elsewhere<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    process::elsewhere(work).map_err(cannot("cannot start a thread"))?
}
