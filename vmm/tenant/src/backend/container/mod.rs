//! The backend `container`: an installed OCI runtime, a bundle for it, and a root made of the tenant's image and disk.
//!
//! The runtime makes and starts the container and is gone; the shim is then the parent of the container's process 1, which
//! is fief's agent, and waits for it as for a monitor.

mod bundle;
pub mod cdi;
mod console;
mod ids;
mod loop_device;
mod namespaces;
mod root;
pub mod runtime;
mod seccomp;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::pipe2;

use super::{
    AGENT_SOCKET, Backend, BackendError, ContainerFiles, Spawned, agent_words, failed, through,
};
use crate::cgroup::{CONTAINER_PROCESSES, Group, Version};
use crate::network::{self, NetworkError, Record};
use crate::process::{self, Child, Finished, Process};
use crate::spec::{Init, Isolation, Limits, Spec};
use crate::store::{Reason, Tenant};

use bundle::Description;
use cdi::Devices;
use ids::IdRange;
use namespaces::Namespaces;
use root::{Layers, Root, RootError};
use runtime::{Runtime, RuntimeError};

/// The agent finds its listening socket here (systemd's SD_LISTEN_FDS_START, which runtimes count from, too).
const LISTENER: RawFd = 3;
/// Where it is told to go on.
const GO: RawFd = 4;
/// The container's name to its runtime, whose state directory is the tenant's own.
const ID: &str = "tenant";
const CONSOLE_SOCKET: &str = "console.sock";
const PID_FILE: &str = "pid";
const RUNTIME_LOG: &str = "runtime.log";
const RUNTIME_STATE: &str = "runtime";
/// How long a command of the runtime may take. It reads what is the tenant's (/etc/passwd, for one), and a tenant may have
/// put there what has no end; they take a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same for the removal, after which the processes are ended by their cgroup.
const LAST_MOMENT: Duration = Duration::from_secs(5);

/// Linux, include/uapi/linux/securebits.h: who changes her ids keeps what she may do.
const SECBIT_NO_SETUID_FIXUP: nix::libc::c_ulong = 1 << 2;

/// Why a container could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Cdi(#[from] cdi::CdiError),
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
        "{runtime} cannot make the container: {why}; `fief doctor` shows which runtimes work here"
    )]
    Refused { runtime: String, why: String },
    #[error(
        "this machine cannot enforce {0}; leave the limit out, use --isolation vm, or accept that with --allow-unenforced"
    )]
    Unenforced(String),
    #[error("it was told to stop before it had started")]
    GivenUp,
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
    /// Lets the agent go on: not before this process is its parent, as it ends with its parent. Open as long as that lives.
    go: Option<OwnedFd>,
    /// Readable when the start is to be given up.
    give_up: OwnedFd,
}

/// Whether a container in that group can have that init.
///
/// # Errors
/// It cannot: systemd ends at once where it may make no groups.
pub fn check_init(init: Init, group: &Group) -> std::result::Result<(), BackendError> {
    supports(init, group.of_container().map(|(_, version)| version)).map_err(BackendError::from)
}

fn supports(init: Init, groups: Option<Version>) -> Result<()> {
    if init == Init::Image && groups != Some(Version::V2) {
        Err(ContainerError::NoGroups)
    } else {
        Ok(())
    }
}

impl Container {
    /// A container for `tenant`, whose run directory is there. As soon as `give_up` is readable, it is no longer waited for
    /// its start.
    ///
    /// # Errors
    /// The run directory cannot be opened, or there is no runtime.
    pub fn new(
        tenant: Tenant,
        spec: Spec,
        files: ContainerFiles,
        network: Option<Record>,
        group: Group,
        give_up: OwnedFd,
    ) -> std::result::Result<Self, BackendError> {
        let run = File::open(tenant.run_directory())
            .map_err(failed("cannot open the tenant's run directory"))?;
        check_init(spec.init, &group)?;
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
            go: None,
            give_up,
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
        let (wait, go) =
            pipe2(OFlag::O_CLOEXEC).map_err(|errno| cannot("cannot make a pipe")(errno.into()))?;
        let devices = cdi::resolve(&self.spec.gpus)?;
        let ids = ids::claim(&self.tenant)?;
        let (messages, unlimited) = elsewhere(|| {
            // The runtime works with all of these in the mount namespace that hides one place.
            let mut needed = vec![
                self.tenant.directory(),
                &self.files.image,
                &self.files.agent,
                &self.runtime.path,
            ];
            needed.extend(devices.mounts.iter().map(|mount| &*mount.source));
            let namespaces =
                Namespaces::new(ids).map_err(cannot("cannot make the tenant's namespaces"))?;
            let place = root::place(&needed)?;
            let root = root::mount_all(Layers {
                place,
                image: &self.files.image,
                image_format: &self.files.image_format,
                disk: &self.tenant.disk(self.spec.isolation),
                ids,
                namespaces: &namespaces,
                give_up: self.give_up.as_fd(),
            })?;
            self.runtime
                .settle_mounts()
                .map_err(cannot("cannot make the cgroups ready for the runtime"))?;
            self.runtime.protect();
            let nodes = root::device_nodes(place, &devices.nodes, ids)?;
            self.write_bundle(&root.path, ids, &namespaces, &devices, &nodes)?;
            if let Some(network) = &self.network {
                network::attach(network, namespaces.network())?;
            }
            let unlimited = self.limit(&root)?;
            Ok((self.launch(listener, wait)?, unlimited))
        })?;
        self.go = Some(go);
        let child = fs::read_to_string(self.tenant.run_directory().join(PID_FILE))
            .and_then(|text| text.trim().parse().map_err(io::Error::other))
            .and_then(Child::of)
            .map_err(cannot("cannot find the container's process"))?;
        let (console, terminal) =
            console::receive(&console).map_err(cannot("cannot get the container's console"))?;
        self.terminal = Some(terminal);
        Ok(Spawned {
            child,
            console,
            messages,
            events: None,
            unlimited,
        })
    }

    /// Sets the rates of its disk and its network, before it makes use of any; what could not be limited, one clause each.
    fn limit(&self, root: &Root) -> Result<Vec<String>> {
        let limits = &self.spec.limits;
        let mut failures = Vec::new();
        // Those of a run before went with it.
        let disk = limits.of_disk();
        if !disk.is_empty()
            && let Err(error) = self.group.limit_disk(root.disk, limits)
        {
            failures.push(format!("{}: {error}", disk.join(" and ")));
        }
        if let (Some(network), Some(rate)) = (&self.network, limits.net_rate)
            && let Err(error) = network::limit(network, Some(rate))
        {
            failures.push(format!("--net-rate: {error}"));
        }
        if failures.is_empty() || self.spec.allow_unenforced {
            Ok(failures)
        } else {
            Err(ContainerError::Unenforced(failures.join("; ")))
        }
    }

    fn write_bundle(
        &self,
        root: &Path,
        ids: IdRange,
        namespaces: &Namespaces,
        devices: &Devices,
        nodes: &[PathBuf],
    ) -> Result<()> {
        let image = root::image(root);
        let bundle = bundle::spec(&Description {
            root,
            agent: &self.files.agent,
            image: self.files.shows_image.then_some(image.as_path()),
            words: agent_words(&self.spec, self.network.as_ref()),
            hostname: &self.spec.hostname,
            ids,
            namespaces: &namespaces.paths(),
            group: self
                .group
                .of_container()
                .map(|(path, version)| bundle::Group {
                    path,
                    version,
                    controllers: self.group.controllers(),
                }),
            memory: self.spec.memory,
            pids: CONTAINER_PROCESSES,
            devices,
            nodes,
        });
        bundle
            .map_err(io::Error::other)
            .and_then(|bundle| bundle::write(&bundle, &self.tenant.run_directory()))
            .map_err(cannot("cannot write the container's bundle"))
    }

    /// Has the runtime make and start the container, with what its agent inherits; the pipe with what it had to say. At once: a
    /// runtime takes much of its time to begin, and nothing is left to do in between.
    fn launch(&self, listener: UnixListener, wait: OwnedFd) -> Result<OwnedFd> {
        let mut command = self.command(&[
            "run",
            "--detach",
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
        let listener = from_number(&listener, LISTENER).map_err(starting())?;
        let wait = from_number(&wait, GO).map_err(starting())?;
        settle(&mut command, [&listener, &wait].map(AsRawFd::as_raw_fd));
        let (messages, into) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| starting()(errno.into()))?;
        // What it has started may keep the other end open.
        fcntl(&messages, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(|errno| starting()(errno.into()))?;
        let ended = process::finish(command.stderr(into), PATIENCE, Some(self.give_up.as_fd()));
        // With its end of the pipe.
        drop(command);
        let why = match ended.map_err(starting())? {
            Finished::With(status) if status.success() => return Ok(messages),
            Finished::With(status) => {
                let log = fs::read_to_string(self.tenant.run_directory().join(RUNTIME_LOG));
                let said = runtime::text(&File::from(messages));
                runtime::ending(status, log.ok().as_deref(), &said)
            }
            Finished::TooLate => {
                let said = runtime::text(&File::from(messages));
                let said = said
                    .lines()
                    .last()
                    .map(|line| format!(" (its last words: {line})"));
                format!(
                    "it did not end within {} seconds{}; a file of the tenant that it reads may have no end (is /etc/passwd a \
                     FIFO?)",
                    PATIENCE.as_secs(),
                    said.unwrap_or_default()
                )
            }
            Finished::GivenUp => return Err(ContainerError::GivenUp),
        };
        Err(ContainerError::Refused {
            runtime: self.runtime.name.clone(),
            why,
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
        let go = self.go.as_ref();
        let told = go.map_or(Ok(0), |go| nix::unistd::write(go, &[1]));
        told.map_err(|errno| failed("the container's first process has ended")(errno.into()))?;
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

    fn process(&self) -> &'static str {
        "its process 1"
    }

    /// Process 1 takes its mounts with it, and has ended only when what it had written is on the disk.
    fn hurry(&self) {
        let _ = self.group.free_disk();
    }

    fn clear(&mut self) {
        // What it cannot remove goes with the run directory and the cgroup, which the shim removes.
        let mut command = self.command(&["delete", "--force", ID]);
        command.stderr(Stdio::null());
        let _ = elsewhere(|| {
            let _ = self.runtime.settle_thread();
            process::finish(&mut command, LAST_MOMENT, None).map_err(starting())
        });
        self.group.end_container();
        // What the runtime had begun to make is this process's, as the nearest parent that has not ended.
        process::reap_adopted();
    }
}

/// Gives the disk of a tenant's container, which runs, these rates.
///
/// # Errors
/// It does not run, or this machine cannot limit it.
pub fn limit_disk(tenant: &Tenant, limits: &Limits) -> io::Result<()> {
    let disk = File::open(tenant.disk(Isolation::Container))?;
    let device = loop_device::device_of(&disk)?
        .ok_or_else(|| io::Error::other("its disk is not mounted"))?;
    Group::of(tenant).limit_disk(device, limits)
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

/// A copy with the first free number from `first` on. Then that number is taken in this process, and what is put there in a child
/// is nobody else's.
fn from_number(descriptor: impl AsFd, first: RawFd) -> io::Result<OwnedFd> {
    let copy = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(first))?;
    // SAFETY: fcntl has just made it, for this alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Makes the kernel end the runtime when this thread ends, and gives it what the agent inherits: `given` are of
/// [`from_number`], in the order of the numbers that they get, so that none is overwritten before it is copied.
fn settle(command: &mut Command, given: [RawFd; 2]) {
    // SAFETY: dup2, fcntl, pthread_sigmask and prctl are async-signal-safe and touch no memory of this process; `given` stay
    // open until the child was started, as their owners outlive that.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in given.into_iter().zip([LISTENER, GO]) {
                if from == to {
                    let stays = FcntlArg::F_SETFD(FdFlag::empty());
                    fcntl(BorrowedFd::borrow_raw(from), stays)?;
                } else if nix::libc::dup2(from, to) < 0 {
                    return Err(io::Error::last_os_error());
                }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_own_init_wants_groups_of_version_2() {
        let check = |init, version| supports(init, version).map_err(|error| error.to_string());
        let told = check(Init::Image, Some(Version::V1)).unwrap_err();
        assert!(told.contains("--init agent"), "{told}");
        check(Init::Image, None).unwrap_err();
        check(Init::Image, Some(Version::V2)).unwrap();
        for version in [None, Some(Version::V1)] {
            check(Init::Agent, version).unwrap();
        }
    }
}
