//! The way from the device's workers to the driver. Atomics only.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use crate::pci::Msix;
use crate::virtio::VirtioInterrupt;

use super::status::{DRIVER_OK, NEEDS_RESET};

/// "No vector" (virtio 1.3 §4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xFFFF;

/// ISR status: a queue has used buffers (virtio 1.3 §4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
/// ISR status: the device configuration changed.
const ISR_CONFIG: u8 = 1 << 1;

/// What workers and the control path share: status, ISR and the choice of vectors.
pub(super) struct Interrupter {
    msix: Arc<Msix>,
    status: AtomicU8,
    isr: AtomicU8,
    generation: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
}

impl Interrupter {
    pub(super) fn new(msix: Arc<Msix>, queues: usize) -> Self {
        Self {
            msix,
            status: AtomicU8::new(0),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
        }
    }

    /// Status, ISR and vectors as after a reset of the device.
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.isr.store(0, Ordering::SeqCst);
        self.set_config_vector(NO_VECTOR);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
    }

    pub(super) fn status(&self) -> u8 {
        self.status.load(Ordering::SeqCst)
    }

    /// Sets bits; a worker may set DEVICE_NEEDS_RESET at the same time.
    pub(super) fn add_status(&self, bits: u8) {
        self.status.fetch_or(bits, Ordering::SeqCst);
    }

    /// ISR status, which reading clears (virtio 1.3 §4.1.4.5).
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(super) fn isr(&self) -> u8 {
        self.isr.load(Ordering::SeqCst)
    }

    pub(super) fn set_isr(&self, isr: u8) {
        self.isr
            .store(isr & (ISR_QUEUE | ISR_CONFIG), Ordering::SeqCst);
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    pub(super) fn set_generation(&self, generation: u8) {
        self.generation.store(generation, Ordering::SeqCst);
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    /// NO_VECTOR instead of a vector that does not exist: the driver reads back that it failed.
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector
            .store(self.existing(vector), Ordering::SeqCst);
    }

    /// NO_VECTOR for a queue that does not exist.
    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |v| v.load(Ordering::SeqCst))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(place) = self.queue_vectors.get(usize::from(queue)) {
            place.store(self.existing(vector), Ordering::SeqCst);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.count() {
            vector
        } else {
            NO_VECTOR
        }
    }
}

impl VirtioInterrupt for Interrupter {
    fn queue(&self, index: u16) {
        if self.msix.enabled() {
            self.msix.trigger(self.queue_vector(index));
        } else {
            self.isr.fetch_or(ISR_QUEUE, Ordering::SeqCst);
        }
    }

    fn config(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        // With MSI-X too (virtio 1.3 §4.1.5.4.1).
        self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
        self.msix.trigger(self.config_vector());
    }

    fn needs_reset(&self) {
        let before = self.status.fetch_or(NEEDS_RESET, Ordering::SeqCst);
        // The driver is told once, and only after DRIVER_OK (virtio 1.3 §2.1.2).
        if before & DRIVER_OK != 0 && before & NEEDS_RESET == 0 {
            self.isr.fetch_or(ISR_CONFIG, Ordering::SeqCst);
            self.msix.trigger(self.config_vector());
        }
    }
}
