//! State of a virtio device and its transport, for snapshots. The configuration space is the PCI root's.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::QueueT;

use super::status::DRIVER_OK;
use super::{Phase, Platform, TransportError, VirtioPci};
use crate::pci::MsixState;
use crate::virtio::{DeviceId, DeviceState, VirtioDevice};

/// Everything but the configuration space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioPciState {
    pub id: DeviceId,
    pub device: DeviceState,
    pub msix: MsixState,
    pub status: u8,
    pub isr: u8,
    pub config_generation: u8,
    pub config_vector: u16,
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub driver_features: u64,
    pub queue_select: u16,
    pub queues: Vec<QueueRegistersState>,
    /// The device was serving its queues.
    pub active: bool,
}

/// One queue, as the driver set it and as far as the device had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegistersState {
    pub size: u16,
    pub enabled: bool,
    pub vector: u16,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
    pub next_avail: u16,
    pub next_used: u16,
}

impl VirtioPci {
    /// What a snapshot keeps. Taken after [`pause`](Self::pause).
    ///
    /// # Errors
    /// The device's workers are running.
    pub fn state(&self) -> Result<VirtioPciState, TransportError> {
        let control = self.lock();
        let taken = match &control.phase {
            Phase::Active => return Err(TransportError::Running),
            Phase::Idle => None,
            Phase::Paused(queues) => Some(queues),
        };
        let queues = (0..).zip(&control.common.queues).map(|(index, registers)| {
            let queue = taken.and_then(|queues| queues.iter().find(|queue| queue.index == index));
            QueueRegistersState {
                size: registers.size,
                enabled: registers.enabled,
                vector: self.interrupt.queue_vector(index),
                desc_table: registers.desc_table,
                avail_ring: registers.avail_ring,
                used_ring: registers.used_ring,
                next_avail: queue.map_or(0, |q| q.queue.next_avail()),
                next_used: queue.map_or(0, |q| q.queue.next_used()),
            }
        });
        Ok(VirtioPciState {
            id: self.id,
            device: control.device.state(),
            msix: self.msix.state(),
            status: self.interrupt.status(),
            isr: self.interrupt.isr(),
            config_generation: self.interrupt.generation(),
            config_vector: self.interrupt.config_vector(),
            device_feature_select: control.common.device_feature_select,
            driver_feature_select: control.common.driver_feature_select,
            driver_features: control.common.driver_features,
            queue_select: control.common.queue_select,
            queues: queues.collect(),
            active: taken.is_some(),
        })
    }

    /// Puts `device`, already restored from `state.device`, behind a transport as it was saved. It is paused until
    /// [`resume`](Self::resume); put it on the bus and restore that before.
    ///
    /// # Errors
    /// The state does not fit the device or guest RAM, or resources are missing.
    pub fn from_state(
        device: Box<dyn VirtioDevice>,
        platform: Platform<'_>,
        state: &VirtioPciState,
    ) -> Result<Arc<Self>, TransportError> {
        let function = Self::build(device, platform)?;
        if state.id != function.id {
            return Err(TransportError::BadState("it is another kind of device"));
        }
        {
            let mut control = function.lock();
            if state.queues.len() != control.common.queues.len() {
                return Err(TransportError::BadState("the number of queues differs"));
            }
            if state.driver_features & !control.offered != 0 {
                return Err(TransportError::BadState("a feature in use is not offered"));
            }
            let driver_ok = state.status & DRIVER_OK != 0;
            if state.active && !driver_ok {
                return Err(TransportError::BadState("it is active without a driver"));
            }
            let common = &mut control.common;
            common.device_feature_select = state.device_feature_select;
            common.driver_feature_select = state.driver_feature_select;
            common.driver_features = state.driver_features;
            common.queue_select = state.queue_select;
            for (registers, saved) in common.queues.iter_mut().zip(&state.queues) {
                if !saved.size.is_power_of_two() || saved.size > registers.max_size {
                    return Err(TransportError::BadState("the size of a queue is invalid"));
                }
                registers.size = saved.size;
                registers.enabled = saved.enabled;
                registers.desc_table = saved.desc_table;
                registers.avail_ring = saved.avail_ring;
                registers.used_ring = saved.used_ring;
            }
            if state.active {
                let positions: Vec<_> = state
                    .queues
                    .iter()
                    .map(|q| (q.next_avail, q.next_used))
                    .collect();
                let queues = function.saved_queues(&control, &positions)?;
                control.phase = Phase::Paused(queues);
            }
        }
        function.restore_interrupts(state)?;
        Ok(Arc::new(function))
    }

    fn restore_interrupts(&self, state: &VirtioPciState) -> Result<(), TransportError> {
        self.interrupt.reset();
        self.interrupt.add_status(state.status);
        self.interrupt.set_isr(state.isr);
        self.interrupt.set_generation(state.config_generation);
        self.interrupt.set_config_vector(state.config_vector);
        for (index, saved) in (0..).zip(&state.queues) {
            self.interrupt.set_queue_vector(index, saved.vector);
        }
        Ok(self.msix.restore(&state.msix)?)
    }
}
