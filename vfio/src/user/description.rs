//! What a device process tells about its function, once, before anything else.

use std::fs::File;
use std::time::Instant;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_IRQ_INFO_EVENTFD, vfio_region_info,
};

use super::error::{Gone, UserError};
use super::exchange::{Connection, Request};
use super::message::{Body, Command, Fields};
use super::shared;
use crate::region::{Region, RegionInfo};
use crate::remote::Interrupt;

/// Longest answer about a region: more areas than [`RegionInfo::parse`] takes.
const LONGEST: u32 = 4096;

/// Least configuration space of a PCI function, bytes (PCI 3.0 §6.1).
const LEAST_CONFIG: u64 = 256;

/// All kinds of interrupts, in the order of their numbers.
const KINDS: [Interrupt; 5] = [
    Interrupt::Intx,
    Interrupt::Msi,
    Interrupt::Msix,
    Interrupt::Error,
    Interrupt::Request,
];

/// A function as its process describes it.
#[derive(Debug)]
pub struct Description {
    /// By [`Region::place`].
    pub regions: [RegionInfo; 8],
    /// The memory of the regions that can be mapped.
    pub files: [Option<File>; 8],
    /// By [`Interrupt::index`].
    pub interrupts: [u16; 5],
    pub can_reset: bool,
}

/// Asks for all of it.
///
/// # Errors
/// The process is gone, refused, or has no PCI function.
pub fn describe(connection: &Connection, deadline: Instant) -> Result<Description, UserError> {
    let asking = Asking {
        connection,
        deadline,
    };
    let device = asking.device()?;
    if device.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
        return Err(UserError::NotPci("it says so"));
    }
    let mut regions: [RegionInfo; 8] = Default::default();
    let mut files: [Option<File>; 8] = Default::default();
    let places = regions.iter_mut().zip(&mut files);
    for (region, (info, file)) in Region::ALL.into_iter().zip(places) {
        if region.index() < device.regions {
            (*info, *file) = asking.region(region)?;
        }
    }
    let config = regions.get(Region::Config.place());
    if config.is_none_or(|config| config.size < LEAST_CONFIG) {
        return Err(UserError::NotPci("it has no configuration space"));
    }
    let mut interrupts = [0; 5];
    for (kind, count) in KINDS.into_iter().zip(&mut interrupts) {
        if kind.index() < device.interrupts {
            *count = asking.interrupts(kind)?;
        }
    }
    Ok(Description {
        regions,
        files,
        interrupts,
        can_reset: device.flags & VFIO_DEVICE_FLAGS_RESET != 0,
    })
}

struct Asking<'a> {
    connection: &'a Connection,
    deadline: Instant,
}

struct Device {
    flags: u32,
    regions: u32,
    interrupts: u32,
}

impl Asking<'_> {
    fn device(&self) -> Result<Device, UserError> {
        // argsz, flags, num_regions, num_irqs: struct vfio_device_info without what Linux added later.
        let body = Body::new().u32(16).u32(0).u32(0).u32(0);
        let request = Request::new(Command::DeviceGetInfo, body, 64);
        let reply = self.connection.exchange(self.deadline, request)?;
        let mut fields = Fields(&reply.body);
        let (_argsz, flags) = (fields.u32(), fields.u32());
        let (regions, interrupts) = (fields.u32(), fields.u32());
        if let (Some(flags), Some(regions), Some(interrupts)) = (flags, regions, interrupts) {
            return Ok(Device {
                flags,
                regions,
                interrupts,
            });
        }
        Err(Gone::Nonsense(Command::DeviceGetInfo, "it is too short").into())
    }

    fn region(&self, region: Region) -> Result<(RegionInfo, Option<File>), UserError> {
        // struct vfio_region_info: argsz, flags, index, cap_offset, size, offset.
        let body = Body::new().u32(LONGEST).u32(0).u32(region.index()).u32(0);
        let body = body.u64(0).u64(0);
        let longest = usize::try_from(LONGEST).unwrap_or(0);
        let request = Request::new(Command::DeviceGetRegionInfo, body, longest);
        let reply = self.connection.exchange(self.deadline, request)?;
        let head = region_info(&reply.body)
            .filter(|head| head.index == region.index())
            .ok_or(Gone::Nonsense(
                Command::DeviceGetRegionInfo,
                "it is too short, or of another region",
            ))?;
        let mut info = RegionInfo::parse(&head, &reply.body);
        if info.mappable.is_empty() {
            return Ok((info, None));
        }
        let shared = reply.descriptors.into_iter().next().map(shared::accept);
        let file = shared.unwrap_or_else(|| Err(shared::NotShared::Nothing));
        if let Err(error) = &file {
            tracing::warn!("{region:?} of the device process cannot be mapped: {error}");
            info.mappable.clear();
        }
        Ok((info, file.ok()))
    }

    fn interrupts(&self, kind: Interrupt) -> Result<u16, UserError> {
        // struct vfio_irq_info: argsz, flags, index, count.
        let body = Body::new().u32(16).u32(0).u32(kind.index()).u32(0);
        let request = Request::new(Command::DeviceGetIrqInfo, body, 64);
        let reply = match self.connection.exchange(self.deadline, request) {
            Ok(reply) => reply,
            // A kind that it does not know.
            Err(UserError::Refused { .. }) => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut fields = Fields(&reply.body);
        let (_argsz, flags) = (fields.u32(), fields.u32());
        let (_index, count) = (fields.u32(), fields.u32());
        let (Some(flags), Some(count)) = (flags, count) else {
            return Err(Gone::Nonsense(Command::DeviceGetIrqInfo, "it is too short").into());
        };
        if flags & VFIO_IRQ_INFO_EVENTFD == 0 {
            return Ok(0);
        }
        // What the capabilities can say at most (PCI 3.0 §6.8.1.3, §6.8.2.3).
        let most = match kind {
            Interrupt::Msi => 32,
            Interrupt::Msix => 2048,
            Interrupt::Intx | Interrupt::Error | Interrupt::Request => 1,
        };
        Ok(u16::try_from(count).map_or(most, |count| count.min(most)))
    }
}

/// The fixed part of an answer about a region.
fn region_info(body: &[u8]) -> Option<vfio_region_info> {
    let mut fields = Fields(body);
    Some(vfio_region_info {
        argsz: fields.u32()?,
        flags: fields.u32()?,
        index: fields.u32()?,
        cap_offset: fields.u32()?,
        size: fields.u64()?,
        offset: fields.u64()?,
    })
}
