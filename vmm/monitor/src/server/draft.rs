//! A machine in the making: wire types come in one by one, are checked, and become a [`VmConfig`].

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use fief_api::{
    Balloon, BootSource, Entropy, FullVmConfiguration, HugePages, Lifecycle, MachineConfiguration,
    MachineConfigurationUpdate, NetworkInterface, PartialNetworkInterface, RateLimiter, Serial,
    SerialDestination, Vsock,
};

use super::error::RequestError;
use super::limits::limits;
use crate::boot::cmdline::Cmdline;
use crate::config::{
    BalloonConfig, BootConfig, CpuConfig, DriveConfig, InterfaceConfig, MemoryBacking,
    MemoryConfig, OnReboot, PassthroughConfig, SerialConfig, VmConfig, VsockConfig,
    insert_interface,
};
use crate::machine::files::Files;

mod drives;
mod passthrough;

/// The command line of a boot source without one: on a reset use what every machine here has (the keyboard
/// controller), and do not stay in a panic.
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1";

/// What clients have configured so far. A request that is refused changes nothing.
pub struct Draft {
    files: Files,
    host_mib: u64,
    /// As it came, for `GET /vm/config`.
    wire: FullVmConfiguration,
    machine: MachineConfiguration,
    cpus: CpuConfig,
    memory: MemoryConfig,
    boot: Option<BootConfig>,
    drives: Vec<DriveConfig>,
    interfaces: Vec<InterfaceConfig>,
    vsock: Option<VsockConfig>,
    balloon: Option<BalloonConfig>,
    passthrough: Vec<PassthroughConfig>,
    serial: SerialConfig,
}

impl Draft {
    /// Nothing configured: one vCPU, 128 MiB, serial on standard output. `host_mib` is the host's memory.
    ///
    /// # Errors
    /// The host has less memory than the defaults ask for.
    pub fn new(files: Files, host_mib: u64) -> Result<Self, RequestError> {
        let machine = MachineConfiguration::default();
        let (cpus, memory) = machine_parts(&machine, host_mib)?;
        Ok(Self {
            files,
            host_mib,
            wire: FullVmConfiguration::default(),
            machine,
            cpus,
            memory,
            boot: None,
            drives: Vec::new(),
            interfaces: Vec::new(),
            vsock: None,
            balloon: None,
            passthrough: Vec::new(),
            serial: SerialConfig::Stdio,
        })
    }

    /// Everything in `config`, as if it had come in single requests; the logger is not part of the machine.
    ///
    /// # Errors
    /// The first thing in it that would be refused.
    pub fn put_all(&mut self, config: FullVmConfiguration) -> Result<(), RequestError> {
        if !config.releasing.is_empty() || !config.releasing_devices.is_empty() {
            return Err(RequestError::Unsupported(
                "a machine that does not run yet has nothing to release; leave releasing and releasing_devices out",
            ));
        }
        if let Some(machine) = config.machine_config {
            self.put_machine(machine)?;
        }
        if let Some(boot) = config.boot_source {
            self.put_boot(boot)?;
        }
        for drive in config.drives {
            if self.drives.iter().any(|other| other.id == drive.drive_id) {
                return Err(RequestError::Unsupported(
                    "two drives have the same drive_id; give each its own",
                ));
            }
            self.put_drive(drive)?;
        }
        for interface in config.network_interfaces {
            let id = &interface.iface_id;
            if self.interfaces.iter().any(|other| other.id == *id) {
                return Err(RequestError::Unsupported(
                    "two network interfaces have the same iface_id; give each its own",
                ));
            }
            self.put_interface(interface)?;
        }
        for device in config.device_passthrough {
            if self.passthrough.iter().any(|other| other.id == device.id) {
                return Err(RequestError::Unsupported(
                    "two passed-through devices have the same id; give each its own",
                ));
            }
            self.put_device(device)?;
        }
        if let Some(vsock) = config.vsock {
            self.put_vsock(vsock)?;
        }
        if let Some(entropy) = config.entropy {
            self.put_entropy(entropy)?;
        }
        if let Some(balloon) = config.balloon {
            self.put_balloon(balloon)?;
        }
        if let Some(serial) = config.serial {
            self.put_serial(serial)?;
        }
        if let Some(lifecycle) = config.lifecycle {
            self.put_lifecycle(lifecycle);
        }
        Ok(())
    }

    pub fn machine(&self) -> &MachineConfiguration {
        &self.machine
    }

    /// The description, for `GET /vm/config`.
    pub fn whole(&self) -> FullVmConfiguration {
        FullVmConfiguration {
            machine_config: Some(self.machine.clone()),
            ..self.wire.clone()
        }
    }

    pub fn put_machine(&mut self, machine: MachineConfiguration) -> Result<(), RequestError> {
        let (cpus, memory) = machine_parts(&machine, self.host_mib)?;
        if let Some(balloon) = &self.balloon {
            balloon.check(memory.size_mib)?;
        }
        (self.cpus, self.memory) = (cpus, memory);
        self.machine = machine;
        Ok(())
    }

    pub fn patch_machine(
        &mut self,
        update: MachineConfigurationUpdate,
    ) -> Result<(), RequestError> {
        if update.is_empty() {
            return Err(RequestError::EmptyUpdate);
        }
        self.put_machine(update.apply_to(&self.machine))
    }

    pub fn put_boot(&mut self, source: BootSource) -> Result<(), RequestError> {
        let readable = |what, path: &str| {
            let path = PathBuf::from(path);
            match self.files.open_read(&path) {
                Ok(_) => Ok(path),
                Err(source) => Err(RequestError::File { what, path, source }),
            }
        };
        let kernel = readable("kernel", &source.kernel_image_path)?;
        let initrd = source.initrd_path.as_deref();
        let initrd = initrd.map(|path| readable("initrd", path)).transpose()?;
        let args = source.boot_args.as_deref().unwrap_or(DEFAULT_BOOT_ARGS);
        // What it drops (pci=off) it tells once, here, and not again when the machine is built.
        let checked = Cmdline::new(args, &[])?;
        let args = String::from_utf8_lossy(checked.as_bytes());
        self.boot = Some(BootConfig {
            kernel,
            initrd,
            args: args.trim_end_matches('\0').to_owned(),
        });
        self.wire.boot_source = Some(source);
        Ok(())
    }

    fn check_disk(&self, drive: &DriveConfig) -> Result<(), RequestError> {
        let opened = self
            .files
            .open_disk(&drive.path, drive.read_only, drive.direct)
            .and_then(|file| file.metadata())
            .and_then(|meta| {
                let kind = meta.file_type();
                if kind.is_file() || kind.is_block_device() {
                    return Ok(());
                }
                let why = "it is neither a regular file nor a block device";
                Err(io::Error::new(io::ErrorKind::InvalidInput, why))
            });
        opened.map_err(|source| RequestError::File {
            what: match (drive.read_only, drive.direct) {
                (true, false) => "drive (read-only)",
                (false, false) => "drive (for reading and writing)",
                (_, true) => "drive (with direct_io, which not every file system can do)",
            },
            path: drive.path.clone(),
            source,
        })
    }

    pub fn put_interface(&mut self, interface: NetworkInterface) -> Result<(), RequestError> {
        let mac = interface.guest_mac.as_deref();
        let config = InterfaceConfig {
            id: interface.iface_id.clone(),
            tap: interface.host_dev_name.clone(),
            mac: mac.map(InterfaceConfig::mac).transpose()?,
            mtu: interface.mtu.map(InterfaceConfig::mtu).transpose()?,
            rx_limits: limits(interface.rx_rate_limiter),
            tx_limits: limits(interface.tx_rate_limiter),
        };
        let mut interfaces = self.interfaces.clone();
        insert_interface(&mut interfaces, config)?;
        // Detached again until the start: nobody is to send into a machine that is not there yet.
        let opened = self.files.open_tap(&interface.host_dev_name);
        opened.map_err(|source| RequestError::Tap {
            name: interface.host_dev_name.clone(),
            source,
        })?;
        self.interfaces = interfaces;
        self.remember_interface(interface);
        Ok(())
    }

    /// The interface that `update` is for, with other limits.
    ///
    /// # Errors
    /// There is no such interface, or nothing is to change.
    pub fn limited_interface(
        &self,
        update: PartialNetworkInterface,
    ) -> Result<NetworkInterface, RequestError> {
        let mut interfaces = self.wire.network_interfaces.iter();
        let interface = interfaces.find(|interface| interface.iface_id == update.iface_id);
        let mut interface =
            (interface.cloned()).ok_or(RequestError::NoInterface(update.iface_id))?;
        let merge = |old: &mut Option<RateLimiter>, update: Option<RateLimiter>| {
            if let Some(update) = update {
                *old = Some(old.unwrap_or_default().updated(update));
            }
        };
        merge(&mut interface.rx_rate_limiter, update.rx_rate_limiter);
        merge(&mut interface.tx_rate_limiter, update.tx_rate_limiter);
        Ok(interface)
    }

    /// For `GET /vm/config`.
    pub fn remember_interface(&mut self, interface: NetworkInterface) {
        let interfaces = &mut self.wire.network_interfaces;
        match interfaces
            .iter_mut()
            .find(|other| other.iface_id == interface.iface_id)
        {
            Some(other) => *other = interface,
            None => interfaces.push(interface),
        }
    }

    pub fn put_vsock(&mut self, vsock: Vsock) -> Result<(), RequestError> {
        let config = VsockConfig::new(vsock.guest_cid, PathBuf::from(&vsock.uds_path))?;
        if config.uds_path.symlink_metadata().is_ok() {
            return Err(RequestError::Place {
                what: "uds_path",
                path: config.uds_path,
                why: "something is there already; remove it or choose another path",
            });
        }
        check_directory("uds_path", &config.uds_path)?;
        self.vsock = Some(config);
        self.wire.vsock = Some(vsock);
        Ok(())
    }

    pub fn put_entropy(&mut self, entropy: Entropy) -> Result<(), RequestError> {
        self.wire.entropy = Some(entropy);
        Ok(())
    }

    pub fn put_balloon(&mut self, balloon: Balloon) -> Result<(), RequestError> {
        if balloon.free_page_hinting {
            return Err(RequestError::Unsupported(
                "free_page_hinting is not supported; take free_page_reporting, which needs no runs",
            ));
        }
        self.balloon = Some(BalloonConfig {
            target_mib: BalloonConfig::target(balloon.amount_mib, self.memory.size_mib)?,
            deflate_on_oom: balloon.deflate_on_oom,
            reporting: balloon.free_page_reporting,
            statistics: balloon.has_statistics(),
            interval_s: BalloonConfig::interval(balloon.stats_polling_interval_s)?,
        });
        self.wire.balloon = Some(balloon);
        Ok(())
    }

    /// The balloon as it is configured.
    ///
    /// # Errors
    /// There is none.
    pub fn balloon(&self) -> Result<&Balloon, RequestError> {
        self.wire.balloon.as_ref().ok_or(RequestError::NoBalloon)
    }

    /// Reads another amount for the balloon, in MiB.
    ///
    /// # Errors
    /// There is no balloon, or it cannot hold so much.
    pub fn balloon_target(&self, amount_mib: u64) -> Result<u32, RequestError> {
        self.balloon()?;
        Ok(BalloonConfig::target(amount_mib, self.memory.size_mib)?)
    }

    /// The balloon as it is configured, if it has statistics.
    ///
    /// # Errors
    /// There is no balloon, or it has none.
    pub fn balloon_with_statistics(&self) -> Result<&Balloon, RequestError> {
        match self.balloon()? {
            balloon if balloon.has_statistics() => Ok(balloon),
            _ => Err(RequestError::NoStatistics),
        }
    }

    /// Reads another interval for statistics, in seconds.
    ///
    /// # Errors
    /// There is no balloon with statistics, or the interval would end them.
    pub fn balloon_interval(&self, asked: u64) -> Result<u16, RequestError> {
        let balloon = self.balloon_with_statistics()?;
        let interval = BalloonConfig::interval(asked)?;
        if interval == 0 && !balloon.stats_on_demand {
            return Err(RequestError::EndOfStatistics);
        }
        Ok(interval)
    }

    /// The running balloon was changed: `GET /balloon` and `GET /vm/config` tell.
    pub fn remember_balloon(&mut self, change: impl FnOnce(&mut Balloon)) {
        if let Some(balloon) = &mut self.wire.balloon {
            change(balloon);
        }
    }

    pub fn put_serial(&mut self, serial: Serial) -> Result<(), RequestError> {
        if serial.rate_limiter.is_some_and(|bucket| bucket.limits()) {
            return Err(NO_RATE_LIMITS);
        }
        let path = serial.serial_out_path.as_deref();
        self.serial = match (serial.destination, path) {
            (None, None) | (Some(SerialDestination::Stdio), None) => SerialConfig::Stdio,
            (Some(SerialDestination::Pty), None) => SerialConfig::Pty,
            (Some(SerialDestination::File) | None, Some(path)) => {
                let path = PathBuf::from(path);
                check_directory("serial_out_path", &path)?;
                SerialConfig::File(path)
            }
            (Some(SerialDestination::File), None) => return Err(RequestError::NoSerialPath),
            (Some(SerialDestination::Stdio), Some(_)) => {
                return Err(RequestError::SerialPathUnused("Stdio"));
            }
            (Some(SerialDestination::Pty), Some(_)) => {
                return Err(RequestError::SerialPathUnused("Pty"));
            }
        };
        self.wire.serial = Some(serial);
        Ok(())
    }

    pub fn put_lifecycle(&mut self, lifecycle: Lifecycle) {
        self.wire.lifecycle = Some(lifecycle);
    }

    /// The logger was configured; only `GET /vm/config` wants to know.
    pub fn remember_logger(&mut self, logger: fief_api::Logger) {
        self.wire.logger = Some(logger);
    }

    /// The machine that was described.
    ///
    /// # Errors
    /// There is no kernel, or the parts do not fit together.
    pub fn finish(&self) -> Result<VmConfig, RequestError> {
        let config = VmConfig {
            cpus: self.cpus,
            memory: MemoryConfig {
                backing: self.backing()?,
                ..self.memory
            },
            boot: self.boot.clone().ok_or(RequestError::NoKernel)?,
            drives: self.drives.clone(),
            interfaces: self.interfaces.clone(),
            vsock: self.vsock.clone(),
            entropy: (self.wire.entropy).map(|entropy| limits(entropy.rate_limiter)),
            balloon: self.balloon,
            passthrough: self.passthrough.clone(),
            serial: self.serial.clone(),
            on_reboot: match self.wire.lifecycle.unwrap_or_default().on_reboot {
                fief_api::OnReboot::Exit => OnReboot::Exit,
                fief_api::OnReboot::Restart => OnReboot::Restart,
            },
        };
        config.check()?;
        Ok(config)
    }
}

const NO_RATE_LIMITS: RequestError = RequestError::Unsupported(
    "rate limits of the serial port are not supported; leave rate_limiter out",
);

fn machine_parts(
    machine: &MachineConfiguration,
    host_mib: u64,
) -> Result<(CpuConfig, MemoryConfig), RequestError> {
    if machine
        .cpu_template
        .as_deref()
        .is_some_and(|name| name != "None")
    {
        return Err(RequestError::Unsupported(
            "CPU templates are not supported; leave cpu_template out or set it to None",
        ));
    }
    if machine.track_dirty_pages {
        return Err(RequestError::Unsupported(
            "track_dirty_pages is not supported yet; leave it out or set it to false",
        ));
    }
    let backing = match machine.huge_pages {
        HugePages::None => MemoryBacking::Anonymous { huge: false },
        HugePages::Transparent => MemoryBacking::Anonymous { huge: true },
        HugePages::Hugetlbfs2M => MemoryBacking::HugeTlb,
    };
    let cpus = CpuConfig::new(machine.vcpu_count, machine.smt)?;
    let memory = MemoryConfig::new(machine.mem_size_mib, backing, host_mib)?;
    Ok((cpus, memory))
}

/// Something is to be made at `path`: its directory must be there.
fn check_directory(what: &'static str, path: &Path) -> Result<(), RequestError> {
    let refuse = |why| {
        Err(RequestError::Place {
            what,
            path: path.to_owned(),
            why,
        })
    };
    if path.file_name().is_none() {
        return refuse("it has no file name");
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            refuse("its directory does not exist; make it first")
        }
        _ => Ok(()),
    }
}
