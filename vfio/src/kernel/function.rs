//! A function of the host, opened through VFIO.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    vfio_device_info, vfio_irq_info, vfio_region_info,
};
use vmm_sys_util::eventfd::EventFd;

use super::container::{Container, Group};
use super::error::KernelError;
use super::ioctl::{self, Sized32, size_of_u32};
use super::{reset, sysfs};
use crate::mapping::Mapping;
use crate::region::{Region, RegionInfo};
use crate::remote::{Interrupt, RemoteFunction};

/// Kinds of interrupts, by number.
const KINDS: [Interrupt; 5] = [
    Interrupt::Intx,
    Interrupt::Msi,
    Interrupt::Msix,
    Interrupt::Error,
    Interrupt::Request,
];

/// A function of the host.
pub struct KernelFunction {
    address: String,
    /// The guest's name of the device that it is a function of.
    of: String,
    device: File,
    regions: Vec<RegionInfo>,
    interrupts: [u16; KINDS.len()],
    /// It has a reset of its own.
    resets: bool,
    /// Closed after the function.
    _group: Arc<Group>,
    container: Arc<Container>,
}

impl KernelFunction {
    /// Opens the function at `address` (`dddd:bb:dd.f`), whose IOMMU group is `group`, or is looked up. It is one of the
    /// guest's device `of`: with the others of that it is reset, where it has no reset of its own.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn open(
        container: &Arc<Container>,
        address: &str,
        of: &str,
        group: Option<u32>,
    ) -> Result<Arc<Self>, KernelError> {
        let number = match group {
            Some(number) => number,
            None => sysfs::group_of(Path::new(sysfs::SYSFS), address)?,
        };
        let group = container.group(number, address)?;
        let device = group.device(address)?;
        let refused = |what| move |source| KernelError::Refused { what, source };
        let mut info = vfio_device_info {
            argsz: size_of_u32::<vfio_device_info>(),
            ..Default::default()
        };
        // SAFETY: the call writes a structure of the size that `argsz` says.
        unsafe { ioctl::with(&device, ioctl::DEVICE_GET_INFO, &mut info) }
            .map_err(refused("describe the function"))?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(KernelError::NotPci(address.to_owned()));
        }
        let regions: io::Result<Vec<_>> = Region::ALL
            .map(|region| region_info(&device, region))
            .into_iter()
            .collect();
        let function = Arc::new(Self {
            address: address.to_owned(),
            of: of.to_owned(),
            regions: regions.map_err(refused("describe a region of the function"))?,
            interrupts: KINDS.map(|kind| interrupt_count(&device, kind)),
            resets: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            device,
            _group: group,
            container: Arc::clone(container),
        });
        container.opened(address, of);
        Ok(function)
    }

    /// Sets, changes or ends interrupts (struct vfio_irq_set). Gives what the kernel answered: 0, or how many vectors there
    /// are if that is fewer.
    fn set_interrupts(
        &self,
        kind: Interrupt,
        flags: u32,
        events: &[&EventFd],
    ) -> io::Result<usize> {
        let count = u32::try_from(events.len()).map_err(io::Error::other)?;
        let mut fields = vec![flags, kind.index(), 0, count];
        let descriptors = events.iter().map(|event| event.as_raw_fd().cast_unsigned());
        fields.extend(descriptors);
        let mut set = Sized32::new(&fields, 0);
        // SAFETY: the call reads as much as `argsz`, the first word, says.
        let answer = unsafe { ioctl::with(&self.device, ioctl::DEVICE_SET_IRQS, set.as_mut()) }?;
        usize::try_from(answer).map_err(io::Error::other)
    }
}

impl RemoteFunction for KernelFunction {
    fn region(&self, region: Region) -> &RegionInfo {
        const NONE: &RegionInfo = &RegionInfo {
            size: 0,
            readable: false,
            writable: false,
            mappable: Vec::new(),
            offset: 0,
        };
        self.regions.get(region.place()).unwrap_or(NONE)
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let start = self.region(region).offset;
        self.device
            .read_exact_at(data, start.saturating_add(offset))
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = self.region(region).offset;
        self.device.write_all_at(data, start.saturating_add(offset))
    }

    fn map(&self, region: Region, area: Range<u64>) -> io::Result<Mapping> {
        let start = self.region(region).offset;
        let size = area.end.saturating_sub(area.start);
        let offset = start.saturating_add(area.start);
        Mapping::new(&self.device, offset, size, area.start, true)
    }

    fn interrupts(&self, kind: Interrupt) -> u16 {
        let place = KINDS.iter().position(|k| *k == kind);
        place
            .and_then(|n| self.interrupts.get(n))
            .copied()
            .unwrap_or(0)
    }

    fn enable(&self, kind: Interrupt, events: &[&EventFd]) -> io::Result<usize> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        match self.set_interrupts(kind, flags, events)? {
            0 => Ok(events.len()),
            // Nothing was enabled: the host has this many vectors left.
            fewer => {
                let events = events.get(..fewer).ok_or(io::ErrorKind::InvalidData)?;
                match self.set_interrupts(kind, flags, events)? {
                    0 => Ok(fewer),
                    _ => Err(io::ErrorKind::QuotaExceeded.into()),
                }
            }
        }
    }

    fn disable(&self, kind: Interrupt) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.set_interrupts(kind, flags, &[]).map(drop)
    }

    fn unmask_by(&self, event: &EventFd) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
        self.set_interrupts(Interrupt::Intx, flags, &[event])
            .map(drop)
    }

    fn can_reset(&self) -> bool {
        self.resets || reset::affected(&self.device).is_ok_and(|all| self.own(&all))
    }

    fn reset(&self) -> io::Result<()> {
        if self.resets {
            return ioctl::with_value(&self.device, ioctl::DEVICE_RESET, 0).map(drop);
        }
        let all = reset::affected(&self.device)?;
        let groups = all.iter().map(|function| function.group);
        let mut numbers: Vec<u32> = groups.collect();
        numbers.sort_unstable();
        numbers.dedup();
        match self.container.groups(&numbers).filter(|_| self.own(&all)) {
            Some(groups) => {
                let files: Vec<&File> = groups.iter().map(|group| group.file()).collect();
                reset::hot(&self.device, &files)
            }
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "it has no reset of its own, and a reset of its bus would reset others too ({}); give those to the same \
                     guest",
                    reset::addresses(&all)
                ),
            )),
        }
    }
}

impl KernelFunction {
    /// Whether all that a reset of the bus would reset are functions of the same device, in the host and in the guest: others
    /// may be at work.
    fn own(&self, affected: &[reset::Affected]) -> bool {
        let device = |address: &str| {
            address
                .rsplit_once('.')
                .map(|(device, _)| device.to_owned())
        };
        let own = device(&self.address);
        let groups: Vec<u32> = affected.iter().map(|function| function.group).collect();
        let mut all = affected.iter().map(reset::Affected::address);
        all.all(|f| device(&f) == own && !self.container.is_of_another(&f, &self.of))
            && self.container.groups(&groups).is_some()
    }
}

impl Drop for KernelFunction {
    fn drop(&mut self) {
        self.container.closed(&self.address);
    }
}

/// What VFIO says of a region; nothing if it has none of that number (VGA, or beyond what the function has).
fn region_info(device: &File, region: Region) -> io::Result<RegionInfo> {
    let mut needed = size_of::<vfio_region_info>();
    loop {
        let mut buffer = Sized32::new(&[0, region.index()], needed);
        let room = buffer.words().len() * 4;
        // SAFETY: the call writes at most as much as `argsz`, the first word, says.
        match unsafe { ioctl::with(device, ioctl::DEVICE_GET_REGION_INFO, buffer.as_mut()) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Ok(RegionInfo::default());
            }
            Err(error) => return Err(error),
        }
        if buffer.needed() > room {
            needed = buffer.needed();
            continue;
        }
        let word = |n: usize| buffer.words().get(n).copied().unwrap_or(0);
        let wide = |n: usize| u64::from(word(n + 1)) << 32 | u64::from(word(n));
        let info = vfio_region_info {
            argsz: word(0),
            flags: word(1),
            index: word(2),
            cap_offset: word(3),
            size: wide(4),
            offset: wide(6),
        };
        return Ok(RegionInfo::parse(&info, &buffer.bytes()));
    }
}

/// How many interrupts of a kind there are; none if VFIO does not know the kind.
fn interrupt_count(device: &File, kind: Interrupt) -> u16 {
    let mut info = vfio_irq_info {
        argsz: size_of_u32::<vfio_irq_info>(),
        index: kind.index(),
        ..Default::default()
    };
    // SAFETY: the call writes a structure of the size that `argsz` says.
    let known = unsafe { ioctl::with(device, ioctl::DEVICE_GET_IRQ_INFO, &mut info) };
    known.map_or(0, |_| u16::try_from(info.count).unwrap_or(u16::MAX))
}
