//! Another monitor, with the kernel, image, disk and agent of a tenant in a virtual machine: any program that takes a
//! configuration file as Firecracker has it (`docs/api.md`).

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use fief::agent::{BOOT_PATIENCE, patiently};
use fief::backend::{BootFiles, VSOCK_SOCKET, through};
use fief::cgroup::{Group, Settings};
use fief::cli::{Context, prepare};
use fief::spec::{Bytes, KernelFormat};
use fief_agent_proto::{
    AGENT_PORT, Connection, Error as Unanswered, ExecRequest, Shutdown, ShutdownAction, Terminals,
    WriteFile, connect_vsock_unix, pump,
};
use fief_host::HostChoice;
use fief_images::Silent;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::plain::DISK;
use super::tenant::used;
use super::{Backend, Crowd, PROBE, Subject};
use crate::error::{Error, Result, failed, on, other};
use crate::machine::{Begun, begin};
use crate::measure::{Spent, available, spend};
use crate::runner::Order;

/// How long a machine may take to shut down.
const END_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at whether a monitor has ended.
const GLANCE: Duration = Duration::from_millis(1);
/// What is read of what a monitor and its guest printed, in bytes.
const TAIL: u64 = 4096;

/// Files of a machine's directory, where its monitor is started.
const CONFIG: &str = "config.json";
const DISK_FILE: &str = "disk.ext4";
const CONSOLE: &str = "console";
const MESSAGES: &str = "messages";

/// A machine of a peer, which may be started again and again.
#[derive(Debug)]
pub struct Monitor {
    name: String,
    program: PathBuf,
    files: BootFiles,
    /// A disk beside those of tenants, so that it is on the same file system, and what the monitor makes.
    directory: TempDir,
    /// The group's name.
    id: String,
    group: Group,
    memory: Bytes,
    running: RefCell<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    /// None before it has answered.
    connection: Option<Connection>,
    monitor: Child,
}

impl Monitor {
    /// # Errors
    /// Its image or kernel is missing, this machine has no groups, or it does not boot.
    pub fn make(name: &str, order: &Order) -> Result<Self> {
        let peer = order.peers.iter().find(|peer| peer.name == name);
        let peer = peer.ok_or_else(|| Error::Other(format!("the order has no peer '{name}'")))?;
        let text = |error: fief::cli::Error| other(error.text());
        let context = Context::new(HostChoice::Native, Some(order.state.clone())).map_err(text)?;
        let images = context.images().map_err(text)?;
        let root = images.rootfs(&order.image).map_err(other)?;
        let choice = prepare::kernel_choice(&order.kernel).map_err(text)?;
        // Firecracker boots nothing but ELF.
        let kernel = (&choice, KernelFormat::Elf);
        let files = prepare::boot_files(&images, &context, kernel, root, &Silent).map_err(text)?;
        let memory = order.memory.parse().map_err(other)?;
        let id = super::name(&Backend::Peer(name.to_owned()));
        let made = Self::like(name, &peer.program, files, &order.state, memory, id)?;
        made.furnish()?;
        made.stop()?;
        Ok(made)
    }

    fn like(
        name: &str,
        program: &Path,
        files: BootFiles,
        state: &Path,
        memory: Bytes,
        id: String,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix(&id).tempdir_in(state);
        let directory = directory.map_err(on("make a directory in", state))?;
        fief_images::disk::make(&directory.path().join(DISK_FILE), DISK).map_err(other)?;
        let config = config(&files, memory);
        let path = directory.path().join(CONFIG);
        fs::write(&path, config.to_string()).map_err(on("write", &path))?;
        Ok(Self {
            name: name.to_owned(),
            program: program.to_owned(),
            files,
            directory,
            group: super::group(&id, 1, Settings::with_monitor(memory))?,
            id,
            memory,
            running: RefCell::new(None),
        })
    }

    /// Another one, with a disk of its own.
    fn another(&self, id: String) -> Result<Self> {
        let state = self.directory.path().parent().unwrap_or(Path::new("/"));
        let files = self.files.clone();
        Self::like(&self.name, &self.program, files, state, self.memory, id)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts it with the work put into its files.
    fn furnish(&self) -> Result<()> {
        self.start()?;
        let own = std::env::current_exe().map_err(failed("find this program"))?;
        let content = File::open(&own).map_err(on("read", &own))?;
        let request = WriteFile {
            path: PROBE.to_owned(),
            mode: 0o755,
            owner: None,
            parents: false,
        };
        self.with_connection(|agent| agent.write_file(&request, content).map(drop).map_err(other))
    }

    /// Starts the monitor in the group.
    fn launch(&self) -> Result<()> {
        self.kill();
        // Firecracker makes its socket, and takes none that is there.
        let _ = fs::remove_file(self.path(VSOCK_SOCKET));
        let output = |name: &str| {
            let path = self.path(name);
            File::create(&path).map_err(on("write", &path))
        };
        let mut command = Command::new(std::env::current_exe().unwrap_or_default());
        command.args(["enter", "--group", &self.id, "--"]);
        command.arg(&self.program);
        command.args(["--no-api", "--config-file", CONFIG]);
        command
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(output(CONSOLE)?)
            .stderr(output(MESSAGES)?);
        let monitor = command
            .spawn()
            .map_err(|source| self.program_error(source))?;
        *self.running.borrow_mut() = Some(Running {
            connection: None,
            monitor,
        });
        Ok(())
    }

    fn program_error(&self, source: std::io::Error) -> Error {
        Error::PeerProgram {
            name: self.name.clone(),
            path: self.program.clone(),
            source,
        }
    }

    /// Waits until the agent answers.
    fn answer(&self) -> Result<()> {
        let mut running = self.running.borrow_mut();
        let running = running.as_mut().ok_or_else(|| self.is_not_running())?;
        let path = self.directory.path();
        let directory = File::open(path).map_err(on("open", path))?;
        let socket = through(&directory, VSOCK_SOCKET);
        let attempt = |until| {
            let stream = connect_vsock_unix(&socket, AGENT_PORT, until);
            match stream.and_then(|stream| Connection::open(stream, until)) {
                // A monitor that says anything else than it should may do better the next time.
                Err(error) if !matches!(error, Unanswered::Boot(_)) => {
                    Err(Unanswered::Deadline(error.to_string()))
                }
                // Or the agent runs, and says why the machine's root is not there.
                other => other,
            }
        };
        let mut ended = Ok(None);
        let monitor = &mut running.monitor;
        let answered = patiently(attempt, || {
            ended = monitor.try_wait();
            !matches!(ended, Ok(None))
        });
        if let Some(status) = ended.map_err(failed("wait for a monitor"))? {
            return Err(self.ended(status));
        }
        running.connection = Some(answered.map_err(|error| match error {
            Unanswered::Deadline(_) => self.silent("answer", BOOT_PATIENCE),
            error => other(error),
        })?);
        Ok(())
    }

    fn ended(&self, status: ExitStatus) -> Error {
        Error::PeerEnded {
            name: self.name.clone(),
            status,
            said: self.last_words(),
        }
    }

    fn silent(&self, what: &'static str, patience: Duration) -> Error {
        Error::PeerSilent {
            name: self.name.clone(),
            what,
            seconds: patience.as_secs(),
            said: self.last_words(),
        }
    }

    fn failed_at_end(&self, status: ExitStatus) -> Error {
        Error::Command {
            command: self.program.display().to_string(),
            how: format!("did not end well when its machine restarted ({status})"),
            said: self.last_words(),
        }
    }

    fn is_not_running(&self) -> Error {
        Error::Other(format!(
            "the machine of the peer {} does not run",
            self.name
        ))
    }

    fn with_connection<T>(&self, work: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        let running = self.running.borrow();
        let connection = running.as_ref().and_then(|one| one.connection.as_ref());
        work(connection.ok_or_else(|| self.is_not_running())?)
    }
}

/// The end of a file; nothing of one that is not there.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// What Firecracker's configuration file has of a tenant's machine. Drives are named by their devices, in the order in which they
/// are here: Firecracker makes serial numbers itself.
fn config(files: &BootFiles, memory: Bytes) -> Value {
    let drive = |id: &str, path: &Path, read_only: bool| {
        json!({
            "drive_id": id,
            "path_on_host": path,
            "is_root_device": false,
            "is_read_only": read_only,
            "io_engine": "Async",
            // What was synced in a tenant is on the host's disk.
            "cache_type": if read_only { "Unsafe" } else { "Writeback" },
        })
    };
    // A restart ends the monitor (reboot=k: by the keyboard's controller); Firecracker has nothing to power off.
    let mut line = format!(
        "console=ttyS0 quiet reboot=k panic=-1 fief.root=/dev/vda fief.rootfstype={} fief.disk=/dev/vdb fief.agent=vsock \
         fief.hostname=peer",
        files.image_format
    );
    let mut drives = vec![
        drive("image", &files.image, true),
        drive("disk", Path::new(DISK_FILE), false),
    ];
    if let Some(modules) = &files.modules {
        line.push_str(" fief.modulesdrive=/dev/vdc");
        drives.push(drive("modules", modules, true));
    }
    json!({
        "boot-source": {
            "kernel_image_path": files.kernel,
            "initrd_path": files.initramfs,
            "boot_args": line,
        },
        "drives": drives,
        "machine-config": { "vcpu_count": 1, "mem_size_mib": memory.mib() },
        // Each machine has a socket of its own, so all have one number.
        "vsock": { "guest_cid": 3, "uds_path": VSOCK_SOCKET },
        "entropy": {},
    })
}

impl Subject for Monitor {
    fn backend(&self) -> Backend {
        Backend::Peer(self.name.clone())
    }

    fn start(&self) -> Result<Spent> {
        let boot = || self.launch().and_then(|()| self.answer());
        // What is half there is none.
        spend(|| self.charged(), boot).inspect_err(|_| self.kill())
    }

    /// By the agent, as a person in it would: it restarts the machine, with which a monitor ends.
    fn stop(&self) -> Result<Spent> {
        let Some(mut running) = self.running.take() else {
            return Ok(Spent::default());
        };
        let mut end = || {
            if let Some(agent) = &running.connection {
                let request = Shutdown {
                    action: ShutdownAction::Reboot,
                    force: false,
                };
                agent.shutdown(request).map_err(other)?;
            }
            let deadline = Instant::now() + END_PATIENCE;
            while Instant::now() < deadline {
                let ended = running.monitor.try_wait();
                match ended.map_err(failed("wait for a monitor"))? {
                    Some(status) if status.success() => return Ok(()),
                    Some(status) => return Err(self.failed_at_end(status)),
                    None => std::thread::sleep(GLANCE),
                }
            }
            Err(self.silent("shut down", END_PATIENCE))
        };
        let ended = spend(|| self.charged(), &mut end);
        if ended.is_err() {
            let _ = running.monitor.kill();
            let _ = running.monitor.wait();
        }
        ended
    }

    fn crowd(&self, size: usize) -> Result<Crowd> {
        let all = (0..size).map(|one| self.another(format!("{}-{one}", self.id)));
        let all = all.collect::<Result<Vec<_>>>()?;
        let before = available()?;
        let spent = spend(
            || all.iter().map(Self::charged).sum(),
            || {
                all.iter().try_for_each(Self::launch)?;
                all.iter().try_for_each(Self::answer)
            },
        )?;
        let memory = before - available()?;
        Ok(Crowd { spent, memory })
    }

    fn neighbour(&self) -> Result<Box<dyn Subject>> {
        let neighbour = self.another(super::neighbour_of(&self.id))?;
        neighbour.furnish()?;
        Ok(Box::new(neighbour))
    }

    fn kill(&self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.monitor.kill();
            let _ = running.monitor.wait();
        }
        self.group.end_processes();
    }

    fn begin(&self, words: &[&str]) -> Result<Begun> {
        let mut command = Command::new(std::env::current_exe().unwrap_or_default());
        command.current_dir(self.directory.path());
        begin(command.args(["inside", VSOCK_SOCKET, "--"]).args(words))
    }

    fn run(&self, words: &[&str]) -> Result<String> {
        let request = ExecRequest::new(words.iter().copied());
        let output = |agent: &Connection| agent.exec(&request)?.output();
        let (status, said, messages) =
            self.with_connection(|agent| output(agent).map_err(other))?;
        if status.success() {
            return Ok(String::from_utf8_lossy(&said).into_owned());
        }
        Err(Error::Command {
            command: words.join(" "),
            how: format!("failed in {} (code {})", self.name, status.shell_code()),
            said: String::from_utf8_lossy(&messages).into_owned(),
        })
    }

    /// The monitor's own, or those of its guest.
    fn last_words(&self) -> String {
        let said = tail(&self.path(MESSAGES));
        if said.trim().is_empty() {
            return tail(&self.path(CONSOLE));
        }
        said
    }

    fn charged(&self) -> Result<u64> {
        used(&self.group)
    }

    fn monitor(&self) -> Result<Option<i32>> {
        let running = self.running.borrow();
        let running = running.as_ref().ok_or_else(|| self.is_not_running())?;
        Ok(Some(running.monitor.id().cast_signed()))
    }

    fn processes(&self) -> Result<Vec<i32>> {
        Ok(self.group.processes())
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.kill();
        let _ = self.group.remove();
    }
}

/// A command in a machine, for whoever reads its output while it goes on.
#[derive(Debug, clap::Args)]
pub struct Inside {
    /// The monitor's vsock
    socket: PathBuf,
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

/// Runs it; its output is this program's.
///
/// # Errors
/// The agent cannot be reached, or cannot start it.
pub fn inside(args: &Inside) -> Result<ExitCode> {
    let deadline = Instant::now() + BOOT_PATIENCE;
    let stream = connect_vsock_unix(&args.socket, AGENT_PORT, deadline).map_err(other)?;
    let agent = Connection::open(stream, deadline).map_err(other)?;
    let request = ExecRequest::new(args.words.iter().cloned());
    let process = agent.exec(&request).map_err(other)?;
    let (stdout, stderr) = (std::io::stdout(), std::io::stderr());
    let terminals = Terminals {
        stdin: None,
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
    };
    let status = pump(process, terminals).map_err(other)?;
    Ok(ExitCode::from(
        u8::try_from(status.shell_code()).unwrap_or(1),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Firecracker refuses keys that it does not know.
    #[test]
    fn the_configuration_has_firecrackers_keys_alone() {
        let files = BootFiles {
            monitor: "unused".into(),
            kernel: "/k".into(),
            initramfs: "/i".into(),
            image: "/r".into(),
            image_format: "erofs".to_owned(),
            modules: Some("/m".into()),
        };
        let config = config(&files, Bytes::from_mib(512));
        let keys = |value: &Value| {
            let map = value.as_object().unwrap();
            map.keys().cloned().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            keys(&config),
            "boot-source drives entropy machine-config vsock"
        );
        assert_eq!(
            keys(&config["boot-source"]),
            "boot_args initrd_path kernel_image_path"
        );
        for drive in config["drives"].as_array().unwrap() {
            assert_eq!(
                keys(drive),
                "cache_type drive_id io_engine is_read_only is_root_device path_on_host"
            );
        }
        assert_eq!(config["machine-config"]["mem_size_mib"], 512);
        let line = config["boot-source"]["boot_args"].as_str().unwrap();
        for word in [
            "fief.root=/dev/vda",
            "fief.disk=/dev/vdb",
            "fief.modulesdrive=/dev/vdc",
            "fief.rootfstype=erofs",
        ] {
            assert!(line.split(' ').any(|found| found == word), "{line}");
        }
        assert!(!line.contains("pci"), "{line}");
    }

    #[test]
    fn a_files_end_is_read_however_long_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("said");
        assert_eq!(tail(&path), "");
        fs::write(&path, "x".repeat(1 << 20) + "end").unwrap();
        assert_eq!(tail(&path).len() as u64, TAIL);
        assert!(tail(&path).ends_with("xend"));
    }
}
