//! The backend `vm`: one monitor process, configured through its API socket like by any other client.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fief_api::{
    Balloon, BootSource, CacheType, Client, ClientError, DevicePassthrough, Drive, Entropy,
    IoEngine, Lifecycle, MachineConfiguration, NetworkInterface, OnReboot, RateLimiter, Vsock,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::Mode;

use super::{
    Backend, BackendError, BootFiles, Event, Spawned, VSOCK_SOCKET, agent_words, failed,
    parse_event, socket, text, through,
};
use crate::devices::{Registry, Users};
use crate::network::{self, Record};
use crate::process::Child;
use crate::spec::{Device, Disk, DiskSource, Isolation, Spec};
use crate::store::{Held, Tenant};

/// The monitor's API, in the run directory.
pub const API_SOCKET: &str = "api.sock";
const EVENTS: &str = "events";

/// The guest's own context id. Every tenant has the same: each has a vsock of its own, nothing routes between them.
const GUEST_CID: u64 = 3;
/// Drive ids, which the agent finds as serial numbers.
const IMAGE_DRIVE: &str = "image";
pub const DISK_DRIVE: &str = "disk";
const MODULES_DRIVE: &str = "modules";
/// Id of the network interface.
pub const INTERFACE: &str = "eth0";

/// How long the monitor may take to listen: it needs milliseconds, a busy emulated host far more.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the monitor may take to pin all of a tenant's memory, which is allocated and cleared for that.
pub const PINNING: Duration = Duration::from_secs(600);
/// One look at the API socket while the monitor starts.
const GLANCE: Duration = Duration::from_millis(50);

/// A tenant in a virtual machine.
#[derive(Debug)]
pub struct Vm {
    spec: Spec,
    files: BootFiles,
    tenant: Tenant,
    /// The run directory, open: sockets in it are reached through it.
    run: File,
    network: Option<Record>,
}

impl Vm {
    /// A machine for `tenant`, whose run directory is there.
    ///
    /// # Errors
    /// The run directory cannot be opened.
    pub fn new(
        tenant: Tenant,
        spec: Spec,
        files: BootFiles,
        network: Option<Record>,
    ) -> Result<Self, BackendError> {
        let run = File::open(tenant.run_directory())
            .map_err(failed("cannot open the tenant's run directory"))?;
        Ok(Self {
            spec,
            files,
            tenant,
            run,
            network,
        })
    }

    fn client(&self) -> Client {
        Client::new(self.within(API_SOCKET))
    }

    /// A path of a fixed length to a file of the run directory.
    fn within(&self, name: &str) -> PathBuf {
        through(&self.run, name)
    }

    fn configure(&self, client: &Client) -> Result<(), BackendError> {
        client.put_machine_config(&MachineConfiguration {
            vcpu_count: u64::from(self.spec.cpus),
            mem_size_mib: self.spec.memory.mib(),
            ..MachineConfiguration::default()
        })?;
        client.put_boot_source(&BootSource {
            kernel_image_path: text(&self.files.kernel),
            initrd_path: Some(text(&self.files.initramfs)),
            boot_args: Some(self.command_line()),
        })?;
        client.put_drive(&Drive {
            is_read_only: true,
            io_engine: IoEngine::Async,
            ..Drive::new(IMAGE_DRIVE, text(&self.files.image))
        })?;
        client.put_drive(&Drive {
            io_engine: IoEngine::Async,
            // What a tenant synced is on the host's disk.
            cache_type: CacheType::Writeback,
            rate_limiter: Some(self.spec.limits.disk_limiter()).filter(RateLimiter::limits),
            ..Drive::new(DISK_DRIVE, text(&self.tenant.disk(Isolation::Vm)))
        })?;
        if let Some(modules) = &self.files.modules {
            client.put_drive(&Drive {
                is_read_only: true,
                io_engine: IoEngine::Async,
                ..Drive::new(MODULES_DRIVE, text(modules))
            })?;
        }
        client.put_vsock(&Vsock {
            guest_cid: GUEST_CID,
            uds_path: VSOCK_SOCKET.to_owned(),
            vsock_id: None,
        })?;
        client.put_entropy(&Entropy::default())?;
        if !self.spec.keeps_memory() {
            // Empty: what the tenant does not use goes back to the host by free page reporting.
            client.put_balloon(&Balloon {
                deflate_on_oom: true,
                free_page_reporting: true,
                stats_on_demand: true,
                ..Balloon::default()
            })?;
        }
        let users = self.give_devices(client)?;
        if let Some(network) = &self.network {
            let limiter = Some(self.spec.limits.net_limiter()).filter(RateLimiter::limits);
            client.put_network_interface(&NetworkInterface {
                guest_mac: Some(network.mac().to_string()),
                mtu: Some(u64::from(network.mtu)),
                rx_rate_limiter: limiter,
                tx_rate_limiter: limiter,
                ..NetworkInterface::new(INTERFACE, network::TAP)
            })?;
        }
        client.put_lifecycle(&Lifecycle {
            on_reboot: OnReboot::Restart,
        })?;
        // Pinning memory takes time.
        let client = match self.spec.devices.is_empty() {
            true => client,
            false => &client.clone().with_timeout(PINNING),
        };
        let started = client.start();
        if let Err(ClientError::Refused { .. }) = started {
            // No guest ran: what is in the devices is not this tenant's.
            users.map_or(Ok(()), |users| Registry::open()?.put_back(&users))?;
        }
        started?;
        // They come as they do to a running tenant, and can go again: what is there before the start stays.
        for disk in &self.spec.disks {
            client.put_drive(&extra_drive(&self.tenant, disk))?;
        }
        Ok(())
    }

    /// The devices that it is started with; who used them last.
    fn give_devices(&self, client: &Client) -> Result<Option<Users>, BackendError> {
        if self.spec.devices.is_empty() {
            return Ok(None);
        }
        let registry = Registry::open()?;
        let users = registry.users(&self.spec.devices)?;
        for device in &self.spec.devices {
            give_device(client, &registry, &self.tenant, device)?;
        }
        Ok(Some(users))
    }

    /// The kernel command line. Every value in it was checked to be one word.
    fn command_line(&self) -> String {
        // panic=-1: a kernel that panics has told the monitor so before (pvpanic); one that panics before it can, such
        // as one without its root, restarts rather than hangs for ever.
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 fief.root={IMAGE_DRIVE} fief.rootfstype={} fief.disk={DISK_DRIVE} \
             fief.agent=vsock",
            self.files.image_format
        );
        if self.files.modules.is_some() {
            line.push_str(&format!(" fief.modulesdrive={MODULES_DRIVE}"));
        }
        for word in agent_words(&self.spec, self.network.as_ref()) {
            line.push(' ');
            line.push_str(&word);
        }
        line
    }
}

impl Backend for Vm {
    fn spawn(&mut self) -> Result<Spawned, BackendError> {
        let events = self.within(EVENTS);
        nix::unistd::mkfifo(&events, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| failed("cannot make the event pipe")(errno.into()))?;
        // Opened for both directions, so that neither opening nor reading waits for the monitor.
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let events = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&events);
        let events = events.map_err(failed("cannot open the event pipe"))?;
        let lock = Held::try_take(&self.tenant.monitor_lock())
            .and_then(|held| held.ok_or(io::ErrorKind::WouldBlock.into()))
            .and_then(Held::hand_on)
            .map_err(failed("another monitor has this tenant's disk"))?;
        let mut command = Command::new(&self.files.monitor);
        command
            .args([
                "--api-sock",
                API_SOCKET,
                "--event-path",
                EVENTS,
                "--id",
                // Neither dots nor underscores may be in an id.
                &self.tenant.name.hostname(),
            ])
            .current_dir(self.tenant.run_directory())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let namespace = self.network.as_ref().map(network::open_namespace);
        let namespace = namespace.transpose();
        let namespace = namespace.map_err(failed("cannot open the tenant's network namespace"))?;
        settle(&mut command, lock.as_raw_fd(), namespace);
        let mut child = command.spawn().map_err(|source| BackendError::Spawn {
            path: self.files.monitor.clone(),
            source,
        })?;
        let missing = || failed("the monitor has no output")(io::ErrorKind::BrokenPipe.into());
        let console: OwnedFd = child.stdout.take().ok_or_else(missing)?.into();
        let messages: OwnedFd = child.stderr.take().ok_or_else(missing)?.into();
        Ok(Spawned {
            child: Child::of(child.id()).map_err(failed("cannot watch the monitor"))?,
            console,
            messages,
            events: Some(events),
            unlimited: Vec::new(),
        })
    }

    fn boot(&mut self, process: &mut Child) -> Result<(), BackendError> {
        let client = self.client();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match client.wait_until_ready(GLANCE) {
                Ok(_) => break,
                Err(error) => {
                    let ended = process
                        .try_wait()
                        .map_err(failed("cannot wait for the monitor"))?;
                    if let Some(status) = ended {
                        return Err(BackendError::Ended(format!(
                            "the monitor ended at once ({status})"
                        )));
                    }
                    if !matches!(error, ClientError::Connect { .. }) || Instant::now() >= deadline {
                        return Err(error.into());
                    }
                }
            }
        }
        self.configure(&client)
    }

    fn press_power_button(&self) -> Result<(), BackendError> {
        Ok(self
            .client()
            .with_timeout(Duration::from_secs(2))
            .press_power_button()?)
    }

    fn interpret(&self, line: &str) -> Option<Event> {
        parse_event(line)
    }
}

/// A client for the API of a running tenant's monitor; it works as long as the directory with it is kept.
///
/// # Errors
/// The tenant does not run.
pub fn api(tenant: &Tenant) -> io::Result<(File, Client)> {
    if tenant
        .spec()
        .is_ok_and(|spec| spec.isolation == Isolation::Container)
    {
        let none = "it is a container, which has no monitor (`fief inspect` shows the isolation)";
        return Err(io::Error::new(io::ErrorKind::Unsupported, none));
    }
    let (directory, path) = socket(tenant, API_SOCKET)?;
    Ok((directory, Client::new(path)))
}

/// Gives a device of this machine to a tenant's machine, and notes that the tenant had it.
///
/// # Errors
/// The monitor refused, or it cannot be noted.
pub fn give_device(
    client: &Client,
    registry: &Registry,
    tenant: &Tenant,
    device: &Device,
) -> Result<(), BackendError> {
    // What is in a device that no other tenant had is the tenant's own.
    let from_another = registry.was_anothers(tenant, device)?;
    client.put_device(&DevicePassthrough {
        companions: device.companions.clone(),
        allow_no_reset: device.allow_no_reset || !from_another,
        ..DevicePassthrough::function(device.id(), device.address)
    })?;
    Ok(registry.used(tenant, device)?)
}

/// The file behind a disk that the tenant has besides its own.
pub fn extra_file(tenant: &Tenant, disk: &Disk) -> PathBuf {
    match &disk.source {
        DiskSource::Own(_) => tenant.extra_disk(&disk.name),
        DiskSource::File(path) => path.clone(),
    }
}

/// A disk as the monitor knows it. Its name is the serial number that the guest finds it by.
pub fn extra_drive(tenant: &Tenant, disk: &Disk) -> Drive {
    Drive {
        is_read_only: disk.read_only,
        io_engine: IoEngine::Async,
        cache_type: CacheType::Writeback,
        ..Drive::new(disk.name.as_str(), text(&extra_file(tenant, disk)))
    }
}

/// Puts the process into the tenant's network, makes the kernel end it when this thread ends, and lets it keep `lock`.
fn settle(command: &mut Command, lock: RawFd, namespace: Option<File>) {
    let parent = std::process::id();
    // SAFETY: setns, fcntl, pthread_sigmask, prctl and getppid are async-signal-safe and touch no memory of this process;
    // `lock` stays open until the child was started, as its owner outlives the call of `spawn`.
    unsafe {
        command.pre_exec(move || {
            if let Some(namespace) = &namespace {
                nix::sched::setns(namespace, CloneFlags::CLONE_NEWNET)?;
            }
            let lock = BorrowedFd::borrow_raw(lock);
            fcntl(lock, FcntlArg::F_SETFD(FdFlag::empty()))?;
            // The shim reads its signals from a descriptor; a program begins with none blocked.
            SigSet::empty().thread_set_mask()?;
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The shim may have died between fork and prctl.
            if nix::unistd::getppid().as_raw().cast_unsigned() == parent {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Init;
    use crate::spec::tests::spec;

    #[test]
    fn the_kernel_command_line_says_what_the_spec_says() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let files = BootFiles {
            monitor: "m".into(),
            kernel: "k".into(),
            initramfs: "i".into(),
            image: "r".into(),
            image_format: "erofs".to_owned(),
            modules: None,
        };
        let tenant = Tenant::open(directory.path(), "alice".parse().unwrap());
        let spec = Spec {
            user: Some("user".to_owned()),
            init: Init::Image,
            hostname: "alice".to_owned(),
            ..spec()
        };
        let vm = Vm::new(tenant, spec, files, None).unwrap();
        let line = vm.command_line();
        for word in [
            "console=ttyS0",
            "fief.root=image",
            "fief.disk=disk",
            "fief.init=image",
            "fief.hostname=alice",
            "fief.agent=vsock",
            "fief.user=user",
            "fief.rootfstype=erofs",
        ] {
            assert!(
                line.split(' ').any(|found| found == word),
                "{word} in {line}"
            );
        }
    }
}
