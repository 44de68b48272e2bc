//! What the guest sees before it talks to the device: identity, capabilities, and what lies where in the BAR.

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::{DeviceId, MAX_QUEUES};
use crate::pci::msix::ENTRY_SIZE;
use crate::pci::{Bar, ConfigError, ConfigSpace, Identity, Msix, capability};

/// The BAR with everything in it: 64-bit memory, placed below 4 GiB.
pub const VIRTIO_BAR: u8 = 0;
/// Its size.
pub const BAR_SIZE: u64 = 0x4000;
/// Common configuration.
pub const COMMON_OFFSET: u32 = 0x0000;
/// Its length: up to and including queue_device (virtio 1.3 §4.1.4.3); what follows belongs to features not offered.
pub const COMMON_LENGTH: u32 = 0x38;
/// ISR status, one byte.
pub const ISR_OFFSET: u32 = 0x0800;
/// Device configuration.
pub const DEVICE_OFFSET: u32 = 0x1000;
/// Its length; bytes that a device does not have read as zero.
pub const DEVICE_LENGTH: u32 = 0x1000;
/// Doorbell of queue 0; queue n's is n × [`NOTIFY_MULTIPLIER`] further.
pub const NOTIFY_OFFSET: u32 = 0x2000;
/// notify_off_multiplier.
pub const NOTIFY_MULTIPLIER: u32 = 4;
/// MSI-X table.
pub const TABLE_OFFSET: u32 = 0x3000;
/// MSI-X pending bits.
pub const PBA_OFFSET: u32 = 0x3800;

const ISR_LENGTH: u32 = 1;
const PBA_LENGTH: u32 = 0x10;
const NOTIFY_LENGTH: u32 = 0x100;
const TABLE_LENGTH: u32 = PBA_OFFSET - TABLE_OFFSET;
const _: () = assert!(NOTIFY_LENGTH as usize >= MAX_QUEUES * NOTIFY_MULTIPLIER as usize);
const _: () = assert!(TABLE_LENGTH as usize >= (MAX_QUEUES + 1) * ENTRY_SIZE as usize);
const _: () = assert!(PBA_LENGTH as usize * 8 > MAX_QUEUES);

/// Feature bits that the transport adds to the device's.
pub(super) const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Vendor id of virtio devices (virtio 1.3 §4.1.2).
const VENDOR: u16 = 0x1AF4;
/// Added to the virtio device id (virtio 1.3 §4.1.2).
const FIRST_DEVICE: u16 = 0x1040;

/// cfg_type of the virtio capabilities (virtio 1.3 §4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

/// Where some capabilities are in configuration space.
pub(super) struct Capabilities {
    pub(super) msix: u16,
    pci_cfg: u16,
}

/// Places in the PCI configuration access capability (virtio 1.3 §4.1.4.9), from its start.
mod pci_cfg {
    pub const BAR: u16 = 4;
    pub const OFFSET: u16 = 8;
    pub const LENGTH: u16 = 12;
    pub const DATA: u16 = 16;
}

impl Capabilities {
    /// Offset and length (1, 2 or 4) of the BAR access that an access to pci_cfg_data at `offset` stands for; `None` if
    /// `offset` is elsewhere or the driver has asked for something impossible.
    pub(super) fn cfg_access(&self, space: &ConfigSpace, offset: u16) -> Option<(u64, usize)> {
        if offset & !3 != self.pci_cfg + pci_cfg::DATA {
            return None;
        }
        let [bar, ..] = space.dword(self.pci_cfg + pci_cfg::BAR).to_le_bytes();
        let at = space.dword(self.pci_cfg + pci_cfg::OFFSET);
        let length = space.dword(self.pci_cfg + pci_cfg::LENGTH);
        let possible =
            bar == VIRTIO_BAR && matches!(length, 1 | 2 | 4) && at.is_multiple_of(length);
        let length = usize::try_from(length).ok()?;
        possible.then_some((u64::from(at), length))
    }
}

/// Base class, subclass and interface. Virtio does not say; these are what people know from QEMU, and no driver of the
/// class itself claims them.
fn class(id: DeviceId) -> u32 {
    match id {
        DeviceId::Net => 0x02_00_00,
        DeviceId::Block => 0x01_80_00,
        DeviceId::Vsock => 0x07_80_00,
        DeviceId::Entropy | DeviceId::Balloon => 0xFF_00_00,
    }
}

/// Builds the configuration space. Every capability costs the guest config reads at each of its searches, so there is
/// only what virtio asks for, in the order in which Linux looks.
pub(super) fn build(id: DeviceId, msix: &Msix) -> Result<(ConfigSpace, Capabilities), ConfigError> {
    let device = FIRST_DEVICE + id as u16;
    let mut space = ConfigSpace::new(Identity {
        vendor: VENDOR,
        device,
        class: class(id),
        // 1 or higher for devices without a legacy interface (virtio 1.3 §4.1.2.1).
        revision: 1,
        subsystem_vendor: VENDOR,
        subsystem: device,
    });
    space.add_bar(VIRTIO_BAR, Bar::memory64(BAR_SIZE))?;
    let msix = msix.add_capability(&mut space, VIRTIO_BAR, TABLE_OFFSET, PBA_OFFSET)?;
    add(
        &mut space,
        CFG_COMMON,
        COMMON_OFFSET,
        COMMON_LENGTH,
        &[],
        &[],
    )?;
    add(&mut space, CFG_ISR, ISR_OFFSET, ISR_LENGTH, &[], &[])?;
    let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
    add(
        &mut space,
        CFG_NOTIFY,
        NOTIFY_OFFSET,
        NOTIFY_LENGTH,
        &multiplier,
        &[],
    )?;
    // Entropy devices have no configuration (virtio 1.3 §5.4.4).
    if id != DeviceId::Entropy {
        add(
            &mut space,
            CFG_DEVICE,
            DEVICE_OFFSET,
            DEVICE_LENGTH,
            &[],
            &[],
        )?;
    }
    let pci_cfg = add_pci_cfg(&mut space)?;
    Ok((space, Capabilities { msix, pci_cfg }))
}

fn add_pci_cfg(space: &mut ConfigSpace) -> Result<u16, ConfigError> {
    // From cap_len on: bar, offset and length are the driver's; pci_cfg_data is answered by the access itself.
    let writable = [
        0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF,
    ];
    add(space, CFG_PCI, 0, 0, &[0; 4], &writable)
}

/// Adds a struct virtio_pci_cap (virtio 1.3 §4.1.4) with `rest` behind it.
fn add(
    space: &mut ConfigSpace,
    kind: u8,
    offset: u32,
    length: u32,
    rest: &[u8],
    writable: &[u8],
) -> Result<u16, ConfigError> {
    const HEADER: u8 = 16;
    let total = HEADER.saturating_add(u8::try_from(rest.len()).unwrap_or(u8::MAX));
    let mut body = vec![total, kind, VIRTIO_BAR, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(rest);
    space.add_capability(capability::VENDOR, &body, writable)
}

/// What lies at some place of the BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Region {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pba,
}

/// The region that all `size` bytes at `offset` are in, and the offset in it.
pub(super) fn locate(offset: u64, size: usize) -> Option<(Region, u64)> {
    const REGIONS: [(Region, u32, u32); 6] = [
        (Region::Common, COMMON_OFFSET, COMMON_LENGTH),
        (Region::Isr, ISR_OFFSET, ISR_LENGTH),
        (Region::Device, DEVICE_OFFSET, DEVICE_LENGTH),
        (Region::Notify, NOTIFY_OFFSET, NOTIFY_LENGTH),
        (Region::Table, TABLE_OFFSET, TABLE_LENGTH),
        (Region::Pba, PBA_OFFSET, PBA_LENGTH),
    ];
    let end = offset.checked_add(u64::try_from(size).ok()?)?;
    REGIONS.iter().find_map(|&(region, start, length)| {
        let (start, length) = (u64::from(start), u64::from(length));
        (start <= offset && end <= start + length).then(|| (region, offset - start))
    })
}
