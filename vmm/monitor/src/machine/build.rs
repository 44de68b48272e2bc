//! Builds a machine, and brings it back to its start for a restart in place.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use kvm_ioctls::VmFd;

use super::control::Control;
use super::devices::{DeviceError, Devices, MachineBuses};
use super::files::Files;
use super::passthrough::{Opened, Opener};
use super::vcpus::{self, Late, Shared};
use super::{Machine, MachineError, OnEvent};
use crate::boot::acpi::{self, Platform};
use crate::boot::cmdline::Cmdline;
use crate::boot::{self, BootError, BootFiles, layout};
use crate::config::{BootConfig, VmConfig};
use crate::kvm::cpuid::{self, Topology};
use crate::kvm::irqchip;
use crate::kvm::memory::GuestMemory;
use crate::kvm::vcpu::Entry;
use crate::kvm::{Host, KVM_DEVICE};

/// Everything that a restart in place needs besides the vCPUs; run while they stand still.
pub struct Restart {
    vm: Arc<VmFd>,
    devices: Arc<Devices>,
    memory: Arc<GuestMemory>,
    boot: BootFiles,
}

impl Restart {
    /// Resets the devices and the interrupt controllers, empties RAM and loads the boot data again. The vCPUs have been
    /// reset by their own threads before: KVM no longer writes the old guest's clocks into RAM.
    ///
    /// # Errors
    /// A file can no longer be read, or the host refused.
    pub fn run(&self) -> Result<Entry, MachineError> {
        self.devices.reset();
        // After the devices: from now on none of them raises an interrupt that the old guest asked for.
        irqchip::reset(&self.vm)?;
        self.memory.clear()?;
        let entry = boot::load(&self.boot, self.memory.ram(), self.memory.size())?;
        Ok(entry)
    }
}

pub fn build(config: &VmConfig, files: &Files, on_event: OnEvent) -> Result<Machine, MachineError> {
    // Everything that a user can have got wrong comes before the costly steps.
    let cmdline = Cmdline::new(&config.boot.args, &config.drives).map_err(BootError::from)?;
    let mut boot_files = open_boot_files(&config.boot, files, cmdline)?;
    let host = Host::open(files, Path::new(KVM_DEVICE))?;
    let memory = Arc::new(GuestMemory::new(&config.memory, files)?);
    let vcpu_count = config.cpus.count();
    let vm = host.create_vm(&memory, vcpu_count)?;
    let vm_fd = Arc::clone(&vm.fd);
    let control = Arc::new(Control::new(vcpu_count, config.on_reboot, on_event));
    let shared = Arc::new(Shared::<MachineBuses> {
        vm,
        supported: host.supported_cpuid().clone(),
        topology: Topology::new(config.cpus),
        tsc_deadline: host.tsc_deadline(),
        control: Arc::clone(&control),
        late: OnceLock::new(),
    });
    // From here on threads are running: whatever fails, `unfinished` ends them and waits for them.
    let mut unfinished = Unfinished {
        control: &control,
        threads: Vec::new(),
    };
    for index in 0..vcpu_count {
        unfinished.threads.push(vcpus::spawn(&shared, index)?);
    }
    let opener = Opener::new(files, &memory, &vm_fd);
    let opened: Result<Vec<_>, _> = config.passthrough.iter().map(|d| opener.open(d)).collect();
    let opened = opened.map_err(DeviceError::from)?;
    let bars = opened
        .iter()
        .map(Opened::memory)
        .fold(0, u64::saturating_add);
    let bits = cpuid::physical_bits(host.supported_cpuid());
    let window = layout::pci_window_64(memory.size(), bars, bits);
    let wired_interrupts = opened.iter().any(Opened::is_wired);
    let passthrough = (opener, opened);
    let (devices, buses) = Devices::new(
        config,
        files,
        &memory,
        &vm_fd,
        window,
        &control,
        passthrough,
    )?;
    boot_files.vcpus = vcpu_count;
    boot_files.acpi = acpi::tables(Platform {
        vcpus: vcpu_count,
        pci_window_64: window,
        wired_interrupts,
    });
    let entry = boot::load(&boot_files, memory.ram(), memory.size())?;
    let restart = Restart {
        vm: vm_fd,
        devices: Arc::clone(&devices),
        memory,
        boot: boot_files,
    };
    let _ = shared.late.set(Late { buses, restart });
    control.set_start(entry);
    control.wait_ready()?;
    let threads = std::mem::take(&mut unfinished.threads);
    drop(unfinished);
    Ok(Machine {
        control,
        devices,
        threads,
    })
}

/// vCPU threads of a machine whose building may still fail.
struct Unfinished<'a> {
    control: &'a Control,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.threads.is_empty() {
            return;
        }
        self.control.abandon();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

fn open_boot_files(
    config: &BootConfig,
    files: &Files,
    cmdline: Cmdline,
) -> Result<BootFiles, BootError> {
    let open = |what, path: &Path| {
        files.open_read(path).map_err(|source| BootError::Open {
            what,
            path: path.to_owned(),
            source,
        })
    };
    let kernel = open("kernel", &config.kernel)?;
    let initrd = match &config.initrd {
        None => None,
        Some(path) => Some((path.clone(), open("initrd", path)?)),
    };
    Ok(BootFiles {
        kernel_path: config.kernel.clone(),
        kernel,
        initrd,
        cmdline,
        acpi: Vec::new(),
        vcpus: 0,
    })
}
