//! The common configuration structure (virtio 1.3 §4.1.4.3): its registers and what the driver may write when.

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};
use super::{COMMON_LENGTH, Control, VirtioPci};

/// Offsets of the registers.
mod register {
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub const DEVICE_FEATURE: usize = 0x04;
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub const DRIVER_FEATURE: usize = 0x0C;
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    pub const NUM_QUEUES: usize = 0x12;
    pub const DEVICE_STATUS: usize = 0x14;
    pub const CONFIG_GENERATION: usize = 0x15;
    pub const QUEUE_SELECT: usize = 0x16;
    pub const QUEUE_SIZE: usize = 0x18;
    pub const QUEUE_MSIX_VECTOR: usize = 0x1A;
    pub const QUEUE_ENABLE: usize = 0x1C;
    pub const QUEUE_NOTIFY_OFF: usize = 0x1E;
    pub const QUEUE_DESC: usize = 0x20;
    pub const QUEUE_DRIVER: usize = 0x28;
    pub const QUEUE_DEVICE: usize = 0x30;
}

/// The registers that are not atomics in the interrupter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommonConfig {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) queues: Vec<QueueRegisters>,
}

/// What the driver has set for one queue; its vector is in the interrupter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueueRegisters {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) desc_table: u64,
    pub(super) avail_ring: u64,
    pub(super) used_ring: u64,
}

impl CommonConfig {
    pub(super) fn new(sizes: &[u16]) -> Self {
        let queue = |&max_size: &u16| QueueRegisters {
            max_size,
            size: max_size,
            enabled: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
        };
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: sizes.iter().map(queue).collect(),
        }
    }

    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|q| q.max_size).collect();
        *self = Self::new(&sizes);
    }

    fn selected(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue while the driver may still set it up.
    fn writable_queue(&mut self, status: u8) -> Option<&mut QueueRegisters> {
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!queue.enabled && status & DRIVER_OK == 0).then_some(queue)
    }
}

impl VirtioPci {
    /// Any width at any offset reads the bytes that are there; no register has a side effect.
    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        let image = self.common_image(&self.lock());
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let source = image.get(from..).and_then(|rest| rest.get(..data.len()));
        match source {
            Some(source) => data.copy_from_slice(source),
            None => data.fill(0xFF),
        }
    }

    fn common_image(&self, control: &Control) -> [u8; COMMON_LENGTH as usize] {
        use register as r;
        let mut image = [0; COMMON_LENGTH as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            image
                .iter_mut()
                .skip(at)
                .zip(bytes)
                .for_each(|(to, from)| *to = *from);
        };
        let common = &control.common;
        let queues = u16::try_from(common.queues.len()).unwrap_or(u16::MAX);
        put(
            r::DEVICE_FEATURE_SELECT,
            &common.device_feature_select.to_le_bytes(),
        );
        put(
            r::DEVICE_FEATURE,
            &word(control.offered, common.device_feature_select),
        );
        put(
            r::DRIVER_FEATURE_SELECT,
            &common.driver_feature_select.to_le_bytes(),
        );
        put(
            r::DRIVER_FEATURE,
            &word(common.driver_features, common.driver_feature_select),
        );
        put(
            r::CONFIG_MSIX_VECTOR,
            &self.interrupt.config_vector().to_le_bytes(),
        );
        put(r::NUM_QUEUES, &queues.to_le_bytes());
        put(r::DEVICE_STATUS, &[self.interrupt.status()]);
        put(r::CONFIG_GENERATION, &[self.interrupt.generation()]);
        put(r::QUEUE_SELECT, &common.queue_select.to_le_bytes());
        let vector = self.interrupt.queue_vector(common.queue_select);
        put(r::QUEUE_MSIX_VECTOR, &vector.to_le_bytes());
        // A queue that does not exist has size 0 (virtio 1.3 §4.1.4.3.1).
        if let Some(queue) = common.selected() {
            put(r::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(r::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(r::QUEUE_NOTIFY_OFF, &common.queue_select.to_le_bytes());
            put(r::QUEUE_DESC, &queue.desc_table.to_le_bytes());
            put(r::QUEUE_DRIVER, &queue.avail_ring.to_le_bytes());
            put(r::QUEUE_DEVICE, &queue.used_ring.to_le_bytes());
        }
        image
    }

    /// Only whole registers can be written (halves of the 64-bit ones too); anything else is ignored.
    pub(super) fn write_common(&self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let mut control = self.lock();
        let control = &mut *control;
        match *data {
            [value] if offset == register::DEVICE_STATUS => self.write_status(control, value),
            [a, b] => self.write_word(control, offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_dword(control, offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h]
                if offset.is_multiple_of(8) && offset >= register::QUEUE_DESC =>
            {
                self.write_dword(control, offset, u32::from_le_bytes([a, b, c, d]));
                self.write_dword(control, offset + 4, u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
    }

    fn write_word(&self, control: &mut Control, offset: usize, value: u16) {
        let status = self.interrupt.status();
        let common = &mut control.common;
        let selected = common.queue_select;
        match offset {
            register::CONFIG_MSIX_VECTOR => self.interrupt.set_config_vector(value),
            register::QUEUE_SELECT => common.queue_select = value,
            register::QUEUE_SIZE => {
                if let Some(queue) = common.writable_queue(status)
                    && value.is_power_of_two()
                    && value <= queue.max_size
                {
                    queue.size = value;
                }
            }
            register::QUEUE_MSIX_VECTOR if common.writable_queue(status).is_some() => {
                self.interrupt.set_queue_vector(selected, value);
            }
            // Nothing but 1 may be written, and features come first (virtio 1.3 §4.1.4.3.2, §3.1.1).
            register::QUEUE_ENABLE if value == 1 && status & FEATURES_OK != 0 => {
                if let Some(queue) = common.writable_queue(status) {
                    queue.enabled = true;
                }
            }
            _ => {}
        }
    }

    fn write_dword(&self, control: &mut Control, offset: usize, value: u32) {
        let status = self.interrupt.status();
        let common = &mut control.common;
        match offset {
            register::DEVICE_FEATURE_SELECT => common.device_feature_select = value,
            register::DRIVER_FEATURE_SELECT => common.driver_feature_select = value,
            register::DRIVER_FEATURE if status & FEATURES_OK == 0 => {
                match common.driver_feature_select {
                    0 => set_half(&mut common.driver_features, false, value),
                    1 => set_half(&mut common.driver_features, true, value),
                    _ => {}
                }
            }
            register::QUEUE_DESC..COMMON_END if offset.is_multiple_of(4) => {
                let high = offset % 8 == 4;
                let Some(queue) = common.writable_queue(status) else {
                    return;
                };
                let address = match offset & !7 {
                    register::QUEUE_DESC => &mut queue.desc_table,
                    register::QUEUE_DRIVER => &mut queue.avail_ring,
                    _ => &mut queue.used_ring,
                };
                set_half(address, high, value);
            }
            _ => {}
        }
    }

    /// The status state machine (virtio 1.3 §2.1, §3.1.1). 0 resets; otherwise bits can only be added.
    fn write_status(&self, control: &mut Control, value: u8) {
        if value == 0 {
            return self.reset_device(control);
        }
        let before = self.interrupt.status();
        let added = value & !before;
        self.interrupt
            .add_status(added & (ACKNOWLEDGE | DRIVER | FAILED));
        if added & FEATURES_OK != 0 && acceptable(control) {
            self.interrupt.add_status(FEATURES_OK);
        }
        let ready = before & (FEATURES_OK | FAILED) == FEATURES_OK;
        if added & DRIVER_OK != 0 && ready && added & FAILED == 0 {
            self.interrupt.add_status(DRIVER_OK);
            self.activate(control);
        }
    }
}

/// Whether the driver accepted nothing that was not offered, and VERSION_1 (virtio 1.3 §2.2.2, §6.1).
fn acceptable(control: &Control) -> bool {
    let accepted = control.common.driver_features;
    accepted & !control.offered == 0 && accepted & (1 << VIRTIO_F_VERSION_1) != 0
}

const COMMON_END: usize = COMMON_LENGTH as usize;

/// The 32 feature bits that `select` chooses.
fn word(features: u64, select: u32) -> [u8; 4] {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => [a, b, c, d],
        1 => [e, f, g, h],
        _ => [0; 4],
    }
}

fn set_half(target: &mut u64, high: bool, value: u32) {
    let shift = if high { 32 } else { 0 };
    *target = *target & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
}
