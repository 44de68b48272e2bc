//! A VFIO container: the functions of one guest, and the memory that they reach by DMA.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fief_devices::GuestRam;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_TYPE1v2_IOMMU,
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::error::KernelError;
use super::ioctl::{self, Sized32, size_of_u32};
use super::sysfs;
use crate::remote::{DmaMemory, DmaSpace};

/// The container's device node; a group's is in the same directory and is named by its number.
const CONTAINER_NODE: &str = "/dev/vfio/vfio";
const NODES: &str = "/dev/vfio";

/// What of the machine VFIO has to do with.
pub trait Host: Send + Sync {
    /// Opens a device node for reading and writing.
    ///
    /// # Errors
    /// It cannot be opened.
    fn open(&self, path: &Path) -> io::Result<File>;

    /// The hypervisor is to know of a group (KVM_DEV_VFIO): it tells KVM whether DMA is coherent, and vGPUs ask for it.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn add_group(&self, group: &File) -> io::Result<()>;

    /// Undoes [`add_group`](Self::add_group), before the group is closed.
    fn remove_group(&self, group: &File);
}

/// The functions of one guest share it, and with it what they reach by DMA: all of the guest's RAM, at the guest's own
/// addresses, as long as one of them is there.
pub struct Container {
    file: File,
    host: Arc<dyn Host>,
    ram: GuestRam,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The RAM is mapped.
    mapped: bool,
    groups: Vec<(u32, Weak<Group>)>,
    /// Functions that are open, with the device of the guest that each is of.
    functions: Vec<(String, String)>,
}

/// An IOMMU group whose functions are the guest's.
pub struct Group {
    file: File,
    host: Arc<dyn Host>,
    /// Closed after the group: what is in it reaches nothing any more.
    _container: Arc<Container>,
}

impl Container {
    /// An empty container for a guest with this RAM.
    ///
    /// # Errors
    /// The host has no VFIO that could be used.
    pub fn new(host: Arc<dyn Host>, ram: GuestRam) -> Result<Arc<Self>, KernelError> {
        let file = open(host.as_ref(), CONTAINER_NODE)?;
        let version = ioctl::with_value(&file, ioctl::GET_API_VERSION, 0)
            .map_err(refused("tell its version"))?;
        if i64::from(version) != i64::from(VFIO_API_VERSION) {
            return Err(KernelError::Version(version));
        }
        let type1 = libc::c_ulong::from(VFIO_TYPE1v2_IOMMU);
        match ioctl::with_value(&file, ioctl::CHECK_EXTENSION, type1) {
            Ok(1..) => {}
            _ => return Err(KernelError::NoType1),
        }
        Ok(Arc::new(Self {
            file,
            host,
            ram,
            state: Mutex::default(),
        }))
    }

    /// The group of the function at `address`, put into this container if it is not there. The first one pins the guest's
    /// RAM.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn group(self: &Arc<Self>, number: u32, address: &str) -> Result<Arc<Group>, KernelError> {
        let mut state = self.lock();
        state.groups.retain(|(_, group)| group.strong_count() > 0);
        let mut groups = state.groups.iter();
        let there = groups.find(|(n, _)| *n == number);
        if let Some(group) = there.and_then(|(_, group)| group.upgrade()) {
            return Ok(group);
        }
        // With its last group a container loses its IOMMU and all that was mapped.
        if state.groups.is_empty() {
            state.mapped = false;
        }
        let path = format!("{NODES}/{number}");
        let file = open(self.host.as_ref(), &path).map_err(|error| match error {
            KernelError::Open { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                KernelError::Busy { group: number }
            }
            KernelError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                KernelError::NotBound(address.to_owned())
            }
            other => other,
        })?;
        let first = !state.mapped;
        self.enter(&file, number, address, first)?;
        let joined = match first {
            true => self.map_ram(),
            false => Ok(()),
        };
        let known = |()| {
            self.host
                .add_group(&file)
                .map_err(refused("tell KVM of the group"))
        };
        joined.and_then(known).inspect_err(|_| leave(&file))?;
        state.mapped = true;
        let group = Arc::new(Group {
            file,
            host: Arc::clone(&self.host),
            _container: Arc::clone(self),
        });
        state.groups.push((number, Arc::downgrade(&group)));
        Ok(group)
    }

    /// Puts a group that was opened into the container; the first one decides on the kind of IOMMU.
    fn enter(
        &self,
        group: &File,
        number: u32,
        address: &str,
        first: bool,
    ) -> Result<(), KernelError> {
        let mut status = vfio_group_status {
            argsz: size_of_u32::<vfio_group_status>(),
            flags: 0,
        };
        // SAFETY: the call writes a structure of the size that `argsz` says.
        unsafe { ioctl::with(group, ioctl::GROUP_GET_STATUS, &mut status) }
            .map_err(refused("tell the state of the group"))?;
        if status.flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(KernelError::NotViable {
                group: number,
                others: sysfs::hindering(Path::new(sysfs::SYSFS), address),
            });
        }
        let mut container = self.file.as_raw_fd();
        // SAFETY: the call reads one descriptor number.
        unsafe { ioctl::with(group, ioctl::GROUP_SET_CONTAINER, &mut container) }
            .map_err(|error| attach_error(error, number, "take the group"))?;
        if first {
            let type1 = libc::c_ulong::from(VFIO_TYPE1v2_IOMMU);
            ioctl::with_value(&self.file, ioctl::SET_IOMMU, type1)
                .inspect_err(|_| leave(group))
                .map_err(|error| attach_error(error, number, "set up the IOMMU"))?;
        }
        Ok(())
    }

    /// Lets the functions reach all of the guest's RAM.
    fn map_ram(&self) -> Result<(), KernelError> {
        let usable = self.usable()?;
        let total: u64 = self.ram.iter().map(|region| region.len()).sum();
        raise_lock_limit(total);
        for region in self.ram.iter() {
            let start = region.start_addr().0;
            let range = start..start.saturating_add(region.len());
            let inside =
                |usable: &Range<u64>| usable.start <= range.start && range.end <= usable.end;
            if !usable.is_empty() && !usable.iter().any(inside) {
                return Err(KernelError::Reserved { range });
            }
            let memory = DmaMemory {
                address: region.as_ptr(),
                size: region.len(),
                file: None,
            };
            // SAFETY: `self` keeps the RAM, and the mapping ends with the container's file.
            unsafe { self.map(start, memory) }.map_err(|source| KernelError::Pin {
                mib: region.len() >> 20,
                source,
            })?;
        }
        Ok(())
    }

    /// Address ranges that the IOMMU can translate; none if the kernel does not say.
    fn usable(&self) -> Result<Vec<Range<u64>>, KernelError> {
        // struct vfio_iommu_type1_info: argsz, flags, page sizes (2 words), offset of the capabilities.
        let mut info = Sized32::new(&[0], 24);
        loop {
            let room = info.words().len() * 4;
            // SAFETY: the call writes at most as much as `argsz`, the first word, says.
            unsafe { ioctl::with(&self.file, ioctl::IOMMU_GET_INFO, info.as_mut()) }
                .map_err(refused("describe the IOMMU"))?;
            if info.needed() <= room {
                return Ok(iova_ranges(info.words()));
            }
            info = Sized32::new(&[0], info.needed());
        }
    }

    /// The function at `address` is open, as one of the guest's `device`.
    pub(super) fn opened(&self, address: &str, device: &str) {
        let function = (address.to_owned(), device.to_owned());
        self.lock().functions.push(function);
    }

    /// It is no longer.
    pub(super) fn closed(&self, address: &str) {
        self.lock().functions.retain(|(open, _)| open != address);
    }

    /// Whether the function at `address` is one of another device of the guest than `device`.
    pub(super) fn is_of_another(&self, address: &str, device: &str) -> bool {
        let state = self.lock();
        let mut open = state.functions.iter();
        open.any(|(open, of)| open == address && of != device)
    }

    /// Descriptors of the groups with these numbers, if all of them are here.
    pub(super) fn groups(&self, numbers: &[u32]) -> Option<Vec<Arc<Group>>> {
        let state = self.lock();
        let find = |number: &u32| {
            let group = state.groups.iter().find(|(n, _)| n == number);
            group.and_then(|(_, group)| group.upgrade())
        };
        numbers.iter().map(find).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DmaSpace for Container {
    unsafe fn map(&self, iova: u64, memory: DmaMemory<'_>) -> io::Result<()> {
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of_u32::<vfio_iommu_type1_dma_map>(),
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: memory.address.addr() as u64,
            iova,
            size: memory.size,
        };
        // SAFETY: the call reads the structure; the caller promises that the memory stays.
        unsafe { ioctl::with(&self.file, ioctl::IOMMU_MAP_DMA, &mut map) }.map(drop)
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let mut unmap = vfio_iommu_type1_dma_unmap {
            argsz: size_of_u32::<vfio_iommu_type1_dma_unmap>(),
            flags: 0,
            iova,
            size,
            ..Default::default()
        };
        // SAFETY: the call reads and writes the structure, whose size is in `argsz`.
        unsafe { ioctl::with(&self.file, ioctl::IOMMU_UNMAP_DMA, &mut unmap) }.map(drop)
    }
}

impl Group {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Opens the function at `address`.
    ///
    /// # Errors
    /// It is not bound to VFIO, or in use.
    pub(super) fn device(&self, address: &str) -> Result<File, KernelError> {
        let mut name = address.as_bytes().to_vec();
        name.push(0);
        // SAFETY: the call reads a string with its terminating zero.
        let fd =
            unsafe { ioctl::with(&self.file, ioctl::GROUP_GET_DEVICE_FD, name.as_mut_slice()) };
        let fd = fd.map_err(|source| match source.raw_os_error() {
            Some(libc::ENODEV) => KernelError::NotBound(address.to_owned()),
            _ => KernelError::Refused {
                what: "open the function",
                source,
            },
        })?;
        // SAFETY: the descriptor was just made for this call and is nobody else's.
        Ok(unsafe { File::from_raw_fd(fd) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.host.remove_group(&self.file);
        leave(&self.file);
    }
}

/// Takes a group out of its container. Closing does it too, but not where another descriptor of the group stays open, such as
/// one that was passed to this process.
fn leave(group: &File) {
    if let Err(error) = ioctl::with_value(group, ioctl::GROUP_UNSET_CONTAINER, 0) {
        tracing::debug!("a VFIO group does not leave its container: {error}");
    }
}

fn open(host: &dyn Host, path: &str) -> Result<File, KernelError> {
    host.open(Path::new(path))
        .map_err(|source| KernelError::Open {
            path: path.to_owned(),
            source,
        })
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> KernelError {
    move |source| KernelError::Refused { what, source }
}

fn attach_error(source: io::Error, group: u32, what: &'static str) -> KernelError {
    match source.raw_os_error() {
        Some(libc::EPERM) => KernelError::NoInterruptRemapping,
        Some(libc::EBUSY) => KernelError::Busy { group },
        _ => KernelError::Refused { what, source },
    }
}

/// The ranges in the answer to IOMMU_GET_INFO, ends exclusive.
fn iova_ranges(words: &[u32]) -> Vec<Range<u64>> {
    let flags = words.get(1).copied().unwrap_or(0);
    if flags & VFIO_IOMMU_INFO_CAPS == 0 {
        return Vec::new();
    }
    let mut at = words.get(4).map_or(0, |offset| offset / 4);
    for _ in 0..64 {
        let place = usize::try_from(at).unwrap_or(usize::MAX);
        let Some([header, next, count, _, ranges @ ..]) = words.get(place..) else {
            break;
        };
        if header & 0xFFFF == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let count = usize::try_from(*count).unwrap_or(0);
            let (ranges, _) = ranges.as_chunks::<4>();
            let wide = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
            let range = |[a, b, c, d]: &[u32; 4]| wide(*a, *b)..wide(*c, *d).saturating_add(1);
            return ranges.iter().take(count).map(range).collect();
        }
        if *next == 0 {
            break;
        }
        at = next / 4;
    }
    Vec::new()
}

/// Raises the limit of locked memory, which pinned memory counts against, as far as this process may.
fn raise_lock_limit(bytes: u64) {
    // Room for the BARs of other functions besides.
    let wanted = bytes.saturating_mul(2);
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call writes the structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } != 0 || limit.rlim_cur >= wanted
    {
        return;
    }
    let raised = libc::rlimit {
        rlim_cur: wanted,
        rlim_max: limit.rlim_max.max(wanted),
    };
    // SAFETY: the call reads the structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raised) } != 0 {
        let as_far = libc::rlimit {
            rlim_cur: limit.rlim_max,
            ..limit
        };
        // Whether it is enough shows when the memory is pinned.
        // SAFETY: as above.
        let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &as_far) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_kernel_writes_them() {
        // argsz, flags, page sizes, capability offset, padding; then another capability, then the ranges.
        let mut words = vec![72, 2, 0x1000, 0, 24, 0];
        words.extend([2 | 1 << 16, 40, 0, 0]);
        words.extend([1 | 1 << 16, 0, 2, 0]);
        words.extend([0, 0, 0xFEDF_FFFF, 0, 0xFEF0_0000, 0, 0xFFFF_FFFF, 0xFC]);
        assert_eq!(
            iova_ranges(&words),
            [0..0xFEE0_0000, 0xFEF0_0000..0xFD_0000_0000]
        );
        for length in 0..words.len() {
            let _ = iova_ranges(&words[..length]);
        }
        words[1] = 0;
        assert!(iova_ranges(&words).is_empty());
    }

    #[test]
    fn a_host_without_vfio_says_what_to_do() {
        struct Bare;
        impl Host for Bare {
            fn open(&self, _path: &Path) -> io::Result<File> {
                Err(io::Error::from_raw_os_error(libc::ENOENT))
            }
            fn add_group(&self, _group: &File) -> io::Result<()> {
                Ok(())
            }
            fn remove_group(&self, _group: &File) {}
        }
        let error = Container::new(Arc::new(Bare), GuestRam::default())
            .err()
            .unwrap();
        assert!(
            error
                .to_string()
                .contains("load the kernel module vfio-pci"),
            "{error}"
        );
    }
}
