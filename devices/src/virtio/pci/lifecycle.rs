//! Activation, reset, pause and resume, and the doorbells that go with them.

use std::io;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueState, QueueT};

use super::common::QueueRegisters;
use super::{Control, NOTIFY_MULTIPLIER, NOTIFY_OFFSET, Phase, TransportError, VirtioPci};
use crate::GuestRam;
use crate::virtio::{ActivateError, Activation, ActiveQueue, VirtioInterrupt};

impl VirtioPci {
    /// The driver has set DRIVER_OK: gives the enabled queues to the device. If they cannot be trusted or the device
    /// cannot start, the driver learns by DEVICE_NEEDS_RESET.
    pub(super) fn activate(&self, control: &mut Control) {
        let queues = match self.enabled_queues(control) {
            Ok(queues) => queues,
            Err(reason) => {
                tracing::warn!(
                    "{:?}: the driver's queues cannot be used: {reason}",
                    self.id
                );
                return self.interrupt.needs_reset();
            }
        };
        match self.start(control, queues) {
            Ok(()) => self.connect_doorbells(control),
            Err(error) => {
                tracing::error!("{:?}: not activated: {error}", self.id);
                self.interrupt.needs_reset();
            }
        }
    }

    /// Hands `queues` to the device's workers.
    fn start(&self, control: &mut Control, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        control.device.activate(Activation {
            memory: control.memory.clone(),
            features: control.common.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
        })?;
        control.phase = Phase::Active;
        Ok(())
    }

    /// The queues that the driver has enabled, with nothing used yet.
    fn enabled_queues(&self, control: &Control) -> Result<Vec<ActiveQueue>, String> {
        let numbered = (0..).zip(&control.common.queues).zip(&self.kicks);
        let enabled = numbered.filter(|((_, registers), _)| registers.enabled);
        let queues = enabled.map(|((index, registers), kick)| {
            let queue = build_queue(
                registers,
                control.common.driver_features,
                (0, 0),
                &control.memory,
            )
            .map_err(|reason| format!("queue {index}: {reason}"))?;
            let kick = kick
                .try_clone()
                .map_err(|error| format!("queue {index}: {error}"))?;
            Ok(ActiveQueue { index, queue, kick })
        });
        queues.collect()
    }

    /// Takes the queues from `saved` positions: (next_avail, next_used) by queue number.
    pub(super) fn saved_queues(
        &self,
        control: &Control,
        positions: &[(u16, u16)],
    ) -> Result<Vec<ActiveQueue>, TransportError> {
        let numbered = (0..)
            .zip(&control.common.queues)
            .zip(&self.kicks)
            .zip(positions);
        let enabled = numbered.filter(|(((_, registers), _), _)| registers.enabled);
        let queues = enabled.map(|(((index, registers), kick), &position)| {
            let features = control.common.driver_features;
            let queue = build_queue(registers, features, position, &control.memory)
                .map_err(TransportError::BadState)?;
            let kick = kick.try_clone()?;
            Ok(ActiveQueue { index, queue, kick })
        });
        queues.collect()
    }

    /// The driver has written 0 to the status, or the machine is reset: everything the driver had set up is gone
    /// (virtio 1.3 §2.4).
    pub(super) fn reset_device(&self, control: &mut Control) {
        drop(control.device.suspend());
        control.phase = Phase::Idle;
        control.device.reset();
        self.connect_doorbells(control);
        control.common.reset();
        self.interrupt.reset();
        for kick in &self.kicks {
            // Nothing to read: nothing to forget.
            let _ = kick.read();
        }
    }

    /// Stops the device's workers with every request in flight completed; the driver's kicks wait. The vCPUs must stand
    /// still. Does nothing if the device is not active.
    pub fn pause(&self) {
        let mut control = self.lock();
        if matches!(control.phase, Phase::Active) {
            control.phase = Phase::Paused(control.device.suspend());
        }
    }

    /// Lets the device go on after [`pause`](Self::pause) or a restore. Kicks and interrupts that may have been lost
    /// meanwhile are repeated: one too many is harmless, one too few stops a queue.
    ///
    /// # Errors
    /// The device cannot start its workers; the driver then finds DEVICE_NEEDS_RESET.
    pub fn resume(&self) -> Result<(), TransportError> {
        let mut control = self.lock();
        let queues = match std::mem::replace(&mut control.phase, Phase::Idle) {
            Phase::Paused(queues) => queues,
            other => {
                control.phase = other;
                return Ok(());
            }
        };
        let indices: Vec<u16> = queues.iter().map(|queue| queue.index).collect();
        if let Err(error) = self.start(&mut control, queues) {
            self.connect_doorbells(&mut control);
            self.interrupt.needs_reset();
            return Err(error.into());
        }
        self.connect_doorbells(&mut control);
        for index in indices {
            if let Some(kick) = self.kicks.get(usize::from(index)) {
                // A full counter says the same.
                let _ = kick.write(1);
            }
            self.interrupt.queue(index);
        }
        Ok(())
    }

    /// Connects the doorbells of enabled queues where the BAR is now, if the device is active and they are not; undoes
    /// other connections. A kick whose doorbell cannot be connected comes as an access instead.
    pub(super) fn connect_doorbells(&self, control: &mut Control) {
        let serving = !matches!(control.phase, Phase::Idle);
        let base = control.bar.filter(|_| serving);
        let base = base.map(|bar| bar.saturating_add(u64::from(NOTIFY_OFFSET)));
        let stays =
            |address: u64, index: usize| Some(address) == base.map(|base| doorbell(base, index));
        let (kept, dropped) = std::mem::take(&mut control.connected)
            .into_iter()
            .partition(|&(address, index)| stays(address, index));
        control.connected = kept;
        for (address, index) in dropped {
            self.report(index, |kick| control.doorbells.disconnect(address, kick));
        }
        let Some(base) = base.filter(|_| control.connected.is_empty()) else {
            return;
        };
        let enabled = control
            .common
            .queues
            .iter()
            .enumerate()
            .filter(|(_, q)| q.enabled);
        for (index, _) in enabled {
            let address = doorbell(base, index);
            if self.report(index, |kick| control.doorbells.connect(address, kick)) {
                control.connected.push((address, index));
            }
        }
    }

    /// Does something with the doorbell of queue `index`; false, and a log line, if that fails.
    fn report(
        &self,
        index: usize,
        action: impl FnOnce(&vmm_sys_util::eventfd::EventFd) -> io::Result<()>,
    ) -> bool {
        let Some(kick) = self.kicks.get(index) else {
            return false;
        };
        match action(kick) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!("{:?}: doorbell of queue {index}: {error}", self.id);
                false
            }
        }
    }
}

/// Address of the doorbell of queue `index` in the notification structure at `base`.
fn doorbell(base: u64, index: usize) -> u64 {
    let offset = u64::try_from(index)
        .unwrap_or(u64::MAX)
        .saturating_mul(u64::from(NOTIFY_MULTIPLIER));
    base.saturating_add(offset)
}

/// Builds the queue that `registers` describe and checks that its rings are aligned and inside RAM.
fn build_queue(
    registers: &QueueRegisters,
    features: u64,
    (next_avail, next_used): (u16, u16),
    memory: &GuestRam,
) -> Result<Queue, &'static str> {
    let state = QueueState {
        max_size: registers.max_size,
        next_avail,
        next_used,
        event_idx_enabled: features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
        size: registers.size,
        ready: true,
        desc_table: registers.desc_table,
        avail_ring: registers.avail_ring,
        used_ring: registers.used_ring,
    };
    let queue =
        Queue::try_from(state).map_err(|_| "the size is invalid or a ring is not aligned")?;
    // An address of 0 counts as not set in virtio-queue.
    if queue.avail_ring() == 0 || !queue.is_valid(memory) {
        return Err("a ring lies outside RAM");
    }
    Ok(queue)
}
