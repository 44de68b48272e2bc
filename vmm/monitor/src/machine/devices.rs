//! The machine's devices and the buses that they are on.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fief_devices::bus::{Bus, BusDevice, BusError};
use fief_devices::legacy::{
    self, GuestEvent, I8042, Power, Pvpanic, SerialEnds, SerialHandler, Uart,
};
use fief_devices::limiter::Limits;
use fief_devices::pci::{
    CONFIG_PORT, CONFIG_PORT_COUNT, ECAM_SIZE, HostBridge, HotPlug, PciError, PciRoot, PciWindows,
    Window, hotplug,
};
use fief_devices::virtio::VirtioDevice;
use fief_devices::virtio::balloon::{self, Balloon, BalloonControl};
use fief_devices::virtio::entropy::Entropy;
use fief_devices::virtio::net::{Net, NetConfig, NetError, Tap, TapError};
use fief_devices::virtio::pci::{TransportError, VirtioPci};
use fief_devices::virtio::vsock::{Vsock, VsockError};
use fief_devices::worker::{Place, SharedWorker, ThreadKind};
use kvm_ioctls::VmFd;

use super::control::Control;
use super::drives::{self, DriveError, Drives, Transport};
use super::files::Files;
use super::passthrough::{self, AttachError, Opened, Opener, Passthroughs};
use super::{ExitReason, Released};
use crate::boot::layout::{self, PciWindow64};
use crate::config::{BalloonConfig, InterfaceConfig, SerialConfig, VmConfig};
use crate::kvm::doorbell::IoEventDoorbells;
use crate::kvm::irq::GsiTable;
use crate::kvm::memory::GuestMemory;
use crate::kvm::slots::KvmSlots;
use crate::kvm::vcpu::Buses;

/// How long the end of a machine waits for a full serial output to take more.
const SERIAL_PATIENCE: Duration = Duration::from_secs(1);

/// Why a device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("two devices want the same addresses: {0}")]
    Bus(#[from] BusError),
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error("cannot set up the serial port{at}: {source}")]
    Serial { at: String, source: io::Error },
    #[error("cannot start the worker of the slow devices: {0}")]
    Worker(io::Error),
    #[error(transparent)]
    Drive(#[from] DriveError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("cannot make the source of random numbers: {0}; raise the limit of open files")]
    Entropy(io::Error),
    #[error("cannot attach interface {id} to {tap}: {source}")]
    OpenTap {
        id: String,
        tap: String,
        source: io::Error,
    },
    #[error("interface {id} cannot use {tap}: {source}")]
    Tap {
        id: String,
        tap: String,
        source: TapError,
    },
    #[error("interface {id}: {source}")]
    Interface { id: String, source: NetError },
    #[error("there is no interface {0}")]
    NoInterface(String),
    #[error(transparent)]
    Vsock(#[from] VsockError),
    #[error("cannot set up the balloon: {0}")]
    Balloon(io::Error),
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// Port and memory bus of a machine. Fixed once the machine is built, so looking up takes no lock.
pub struct MachineBuses {
    ports: Bus,
    memory: Bus,
}

impl Buses for MachineBuses {
    fn port_in(&self, port: u16, data: &mut [u8]) {
        self.ports.read(u64::from(port), data);
    }

    fn port_out(&self, port: u16, data: &[u8]) {
        self.ports.write(u64::from(port), data);
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        self.memory.read(address, data);
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        self.memory.write(address, data);
    }
}

/// What the control side needs of the devices.
pub struct Devices {
    power: Arc<Power>,
    uart: Arc<Uart>,
    pci: PciBuses,
    hot_plug: Arc<HotPlug>,
    drives: Drives,
    passthrough: Passthroughs,
    /// The virtio functions that stay.
    virtio: Vec<Arc<VirtioPci>>,
    serial: Mutex<Serial>,
    slow: Arc<SharedWorker>,
}

/// Where the serial port's host side is.
enum Serial {
    /// Before the first start, or paused.
    Idle(SerialHandler),
    Running(Place<SerialHandler>),
    /// Its worker is gone.
    Lost,
}

impl Devices {
    /// Makes every device of `config` and puts it on its bus. Those that are passed through were `opened` before.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn new(
        config: &VmConfig,
        files: &Files,
        ram: &Arc<GuestMemory>,
        vm: &Arc<VmFd>,
        window: Option<PciWindow64>,
        control: &Arc<Control>,
        (opener, opened): (Opener, Vec<Opened>),
    ) -> Result<(Arc<Self>, MachineBuses), DeviceError> {
        let gsis = GsiTable::new(Arc::clone(vm));
        let mut ports = Bus::new();
        let mut memory = Bus::new();

        let sink = event_sink(control);
        let power = Arc::new(Power::new(Arc::clone(&sink), gsis.line(legacy::POWER_GSI)));
        ports.insert(
            legacy::POWER_PORT,
            legacy::POWER_PORT_COUNT,
            Arc::clone(&power) as _,
        )?;
        ports.insert(
            legacy::I8042_PORT,
            1,
            Arc::new(I8042::new(Arc::clone(&sink))),
        )?;
        ports.insert(legacy::PVPANIC_PORT, 1, Arc::new(Pvpanic::new(sink)))?;

        let failed = |source| DeviceError::Serial {
            at: String::new(),
            source,
        };
        let uart = Arc::new(Uart::new(gsis.line(legacy::SERIAL_GSI)).map_err(failed)?);
        ports.insert(
            legacy::SERIAL_PORT,
            legacy::SERIAL_PORT_COUNT,
            Arc::clone(&uart) as _,
        )?;
        let serial = SerialHandler::new(Arc::clone(&uart), serial_ends(&config.serial, files)?);

        let pci = PciBuses::new(window, &mut ports, &mut memory)?;
        let slow = SharedWorker::spawn(ThreadKind::Slow, "slow").map_err(DeviceError::Worker)?;
        let transport = Transport {
            memory: ram.ram().clone(),
            vectors: gsis.msi_allocator(),
            doorbells: Arc::new(IoEventDoorbells::new(Arc::clone(vm))),
        };
        let tables = Tables::default();
        let hot_plug = tables.hot_plug(&pci.hot_plug, &power, control);
        ports.insert(
            hotplug::HOT_PLUG_PORT,
            hotplug::HOT_PLUG_PORT_COUNT,
            Arc::clone(&hot_plug) as _,
        )?;
        let drives = Drives::new(files, transport, Arc::clone(&hot_plug), tables.drives);
        let passthrough = Passthroughs::new(passthrough::Parts {
            opener,
            slots: Arc::new(KvmSlots::new(Arc::clone(vm), ram.slot_count())),
            gsis: Arc::clone(&gsis),
            hot_plug: Arc::clone(&hot_plug),
            worker: Arc::clone(&slow),
            control: Arc::clone(control),
            table: tables.passthrough,
        });
        // Drives first, so that the root device is the guest's first disk.
        for drive in &config.drives {
            drives.insert(drive, &pci.fixed)?;
        }
        let mut virtio = Vec::new();
        for model in virtio_models(config, files, ram, &slow)? {
            let function = drives.transport().function(model)?;
            pci.fixed.add(Arc::clone(&function) as _)?;
            virtio.push(function);
        }
        for device in opened {
            passthrough.insert(device, &pci.fixed)?;
        }
        let devices = Arc::new(Self {
            power,
            uart,
            pci,
            hot_plug,
            drives,
            passthrough,
            virtio,
            serial: Mutex::new(Serial::Idle(serial)),
            slow,
        });
        Ok((devices, MachineBuses { ports, memory }))
    }

    pub fn press_power_button(&self) {
        self.power.press_power_button();
    }

    /// The drives, to add, change and release them.
    pub fn drives(&self) -> &Drives {
        &self.drives
    }

    /// The passed-through devices, to add and release them.
    pub fn passthrough(&self) -> &Passthroughs {
        &self.passthrough
    }

    fn functions(&self) -> impl Iterator<Item = Arc<VirtioPci>> {
        let drives = self.drives.functions().into_iter();
        drives.chain(self.virtio.iter().cloned())
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<BalloonControl> {
        let control = |balloon: &mut Balloon| balloon.control();
        self.virtio
            .iter()
            .find_map(|function| function.with_model(control))
    }

    /// Other limits for a network interface, from now on.
    ///
    /// # Errors
    /// There is no such interface, or it cannot go on.
    pub fn limit_interface(&self, id: &str, rx: Limits, tx: Limits) -> Result<(), DeviceError> {
        let limit = |net: &mut Net| (net.name() == id).then(|| net.set_limits(rx, tx));
        let found = self
            .virtio
            .iter()
            .find_map(|function| function.with_model(limit).flatten());
        let done = found.ok_or_else(|| DeviceError::NoInterface(id.to_owned()))?;
        done.map_err(|source| DeviceError::Interface {
            id: id.to_owned(),
            source,
        })
    }

    /// Lets the workers of the devices work.
    ///
    /// # Errors
    /// A worker could not be started.
    pub fn resume(&self) -> Result<(), DeviceError> {
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *serial, Serial::Lost) {
            Serial::Idle(handler) => {
                let place = self.slow.add(handler).map_err(DeviceError::Worker)?;
                *serial = Serial::Running(place);
            }
            other => *serial = other,
        }
        for function in self.functions() {
            function.resume()?;
        }
        Ok(())
    }

    /// Stops the workers of the devices.
    pub fn pause(&self) {
        for function in self.functions() {
            function.pause();
        }
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *serial, Serial::Lost) {
            Serial::Running(place) => {
                if let Some(handler) = place.remove() {
                    *serial = Serial::Idle(handler);
                }
            }
            other => *serial = other,
        }
    }

    /// Stops the workers for good and writes what is left of the serial output.
    pub fn finish(&self) {
        self.pause();
        let mut serial = self.serial.lock().unwrap_or_else(PoisonError::into_inner);
        if let Serial::Idle(handler) = &mut *serial {
            handler.flush(SERIAL_PATIENCE);
        }
        drop(serial);
        self.passthrough.finish();
    }

    /// Brings all devices to their state after power-on, while the vCPUs stand still. The serial port's host side works on.
    pub fn reset(&self) {
        self.hot_plug.reset();
        self.pci.fixed.reset();
        self.pci.hot_plug.reset();
        self.power.reset();
        self.uart.reset();
    }
}

/// What comes to the hot-plug bus and goes from it.
#[derive(Default)]
struct Tables {
    drives: Arc<drives::Table>,
    passthrough: Arc<passthrough::Table>,
}

impl Tables {
    /// The controller of `bus`. Releases are reported to `control`.
    fn hot_plug(
        &self,
        bus: &Arc<PciRoot>,
        power: &Arc<Power>,
        control: &Arc<Control>,
    ) -> Arc<HotPlug> {
        let (drives, passthrough) = (Arc::clone(&self.drives), Arc::clone(&self.passthrough));
        let control = Arc::clone(control);
        let on_ejected = Box::new(move |slot| {
            if let Some(id) = drives.ejected(slot) {
                control.released(Released::Drive(id));
            } else if let Some(id) = passthrough.ejected(slot) {
                control.released(Released::Device(id));
            }
        });
        let hot_plug = HotPlug::new(Arc::clone(bus), Arc::clone(power), on_ejected);
        Arc::new(hot_plug)
    }
}

/// The virtio devices of `config` besides drives, in the order in which they get their slots.
fn virtio_models(
    config: &VmConfig,
    files: &Files,
    ram: &Arc<GuestMemory>,
    slow: &Arc<SharedWorker>,
) -> Result<Vec<Box<dyn VirtioDevice>>, DeviceError> {
    let mut models: Vec<Box<dyn VirtioDevice>> = Vec::new();
    for interface in &config.interfaces {
        models.push(Box::new(net(interface, files)?));
    }
    if let Some(vsock) = &config.vsock {
        models.push(Box::new(Vsock::new(vsock.guest_cid, &vsock.uds_path)?));
    }
    if let Some(limits) = config.entropy {
        let entropy = Entropy::new(Arc::clone(slow), limits).map_err(DeviceError::Entropy)?;
        models.push(Box::new(entropy));
    }
    if let Some(config) = config.balloon {
        let model = balloon_model(config, ram, slow).map_err(DeviceError::Balloon)?;
        models.push(Box::new(model));
    }
    Ok(models)
}

fn balloon_model(
    config: BalloonConfig,
    ram: &Arc<GuestMemory>,
    slow: &Arc<SharedWorker>,
) -> io::Result<Balloon> {
    if !ram.can_release() {
        tracing::warn!(
            "the balloon gives nothing back to the host: with huge_pages 2M memory is reserved"
        );
    }
    let offered = balloon::BalloonConfig {
        deflate_on_oom: config.deflate_on_oom,
        statistics: config.statistics,
        reporting: config.reporting,
    };
    let release = Arc::clone(ram) as Arc<_>;
    let model = Balloon::new(offered, release, Arc::clone(slow))?;
    model.control().set_target(config.target_mib);
    model.control().set_interval(config.interval_s);
    Ok(model)
}

fn net(interface: &InterfaceConfig, files: &Files) -> Result<Net, DeviceError> {
    let (id, tap) = (interface.id.clone(), interface.tap.clone());
    let file = files
        .open_tap(&interface.tap)
        .map_err(|source| DeviceError::OpenTap {
            id: id.clone(),
            tap: tap.clone(),
            source,
        })?;
    let tap = Tap::new(file).map_err(|source| DeviceError::Tap {
        id: id.clone(),
        tap,
        source,
    })?;
    let config = NetConfig {
        id: id.clone(),
        mac: interface.mac,
        mtu: interface.mtu,
        rx_limits: interface.rx_limits,
        tx_limits: interface.tx_limits,
    };
    Net::new(tap, config).map_err(|source| DeviceError::Interface { id, source })
}

/// What the guest asks for or reports, as the control understands it.
fn event_sink(control: &Arc<Control>) -> legacy::EventSink {
    let control = Arc::clone(control);
    Arc::new(move |event| match event {
        GuestEvent::PowerOff => control.end(ExitReason::PowerOff),
        GuestEvent::Reset => control.reset(),
        GuestEvent::Panicked => control.end(ExitReason::Panic),
        GuestEvent::CrashLoaded => {
            tracing::warn!("the guest's kernel panicked; its crash kernel takes over")
        }
    })
}

fn serial_ends(config: &SerialConfig, files: &Files) -> Result<SerialEnds, DeviceError> {
    let failed = |at: String| move |source| DeviceError::Serial { at, source };
    match config {
        SerialConfig::Stdio => {
            SerialEnds::stdio().map_err(failed(" on standard input and output".into()))
        }
        SerialConfig::File(path) => files
            .open_output(path)
            .and_then(SerialEnds::file)
            .map_err(failed(format!(" at {}", path.display()))),
        SerialConfig::Pty => {
            let (ends, name) = SerialEnds::pty().map_err(failed(" on a pseudo-terminal".into()))?;
            tracing::info!("the serial port is at {name}");
            Ok(ends)
        }
    }
}

/// The PCI buses, and everything on the port and memory bus that leads to them.
struct PciBuses {
    /// Bus 0, with its host bridge and the functions that stay.
    fixed: Arc<PciRoot>,
    /// Bus 1, whose functions come and go.
    hot_plug: Arc<PciRoot>,
}

impl PciBuses {
    fn new(
        window: Option<PciWindow64>,
        ports: &mut Bus,
        memory: &mut Bus,
    ) -> Result<Self, DeviceError> {
        let ports_of = |io: Range<u16>| u64::from(io.start)..u64::from(io.end);
        let halves = window.map(PciWindow64::halves);
        let fixed = PciWindows {
            io: ports_of(layout::PCI_IO_WINDOW),
            mmio32: layout::PCI_WINDOW_32,
            mmio64: halves.map_or(0..0, |(w, _)| w.start..w.end),
        };
        let hot_plug = PciWindows {
            io: ports_of(layout::HOT_PLUG_IO_WINDOW),
            mmio32: layout::HOT_PLUG_WINDOW,
            mmio64: halves.map_or(0..0, |(_, w)| w.start..w.end),
        };
        let fixed = Arc::new(PciRoot::new(fixed));
        let hot_plug = Arc::new(PciRoot::new(hot_plug));
        fixed.add(Arc::new(HostBridge))?;
        let config_ports = fixed.config_ports(&[&hot_plug]);
        ports.insert(CONFIG_PORT, CONFIG_PORT_COUNT, config_ports)?;
        let second = layout::ECAM_START.saturating_add(ECAM_SIZE);
        memory.insert(layout::ECAM_START, ECAM_SIZE, fixed.ecam())?;
        memory.insert(second, ECAM_SIZE, hot_plug.ecam())?;
        for bus in [&fixed, &hot_plug] {
            let windows = bus.windows();
            connect(ports, &windows.io, bus.window(Window::Io))?;
            connect(memory, &windows.mmio32, bus.window(Window::Mmio32))?;
            connect(memory, &windows.mmio64, bus.window(Window::Mmio64))?;
        }
        Ok(Self { fixed, hot_plug })
    }
}

/// Puts a window on a bus, unless it is empty.
fn connect(bus: &mut Bus, range: &Range<u64>, window: Arc<dyn BusDevice>) -> Result<(), BusError> {
    match range.end.checked_sub(range.start) {
        Some(length) if length > 0 => bus.insert(range.start, length, window),
        _ => Ok(()),
    }
}
