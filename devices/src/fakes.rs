//! What the machine gives devices, for tests.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::doorbell::Doorbells;
use crate::irq::{ExternalVector, MsiAllocator, MsiMessage, MsiVector};

/// A vector that counts, and can refuse its route.
#[derive(Default)]
pub struct FakeVector {
    pub routes: Mutex<Vec<Option<MsiMessage>>>,
    pub triggers: AtomicUsize,
    pub refuse: AtomicBool,
}

impl FakeVector {
    pub fn triggers(&self) -> usize {
        self.triggers.load(Ordering::SeqCst)
    }

    pub fn routes(&self) -> usize {
        self.routes.lock().unwrap().len()
    }
}

impl MsiVector for FakeVector {
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()> {
        if self.refuse.load(Ordering::SeqCst) {
            return Err(io::Error::other("refused"));
        }
        self.routes.lock().unwrap().push(message);
        Ok(())
    }

    fn trigger(&self) -> io::Result<()> {
        self.triggers.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Hands out fake vectors and keeps them for looking at.
#[derive(Default)]
pub struct FakeMsi(pub Mutex<Vec<Arc<FakeVector>>>);

impl FakeMsi {
    /// The vector that was handed out `index`-th.
    pub fn vector(&self, index: usize) -> Arc<FakeVector> {
        self.0.lock().unwrap()[index].clone()
    }
}

impl MsiAllocator for FakeMsi {
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>> {
        let mut given = self.0.lock().unwrap();
        let fresh: Vec<_> = (0..count)
            .map(|_| Arc::new(FakeVector::default()))
            .collect();
        given.extend(fresh.iter().cloned());
        Ok(fresh.into_iter().map(|v| v as Arc<dyn MsiVector>).collect())
    }

    fn allocate_external(&self, _count: u16) -> io::Result<Vec<Arc<dyn ExternalVector>>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Doorbells by address; `ring` does what a guest's write does.
#[derive(Default)]
pub struct FakeDoorbells {
    connected: Mutex<Vec<(u64, EventFd, i32)>>,
    pub calls: AtomicUsize,
    pub refuse: AtomicBool,
}

impl FakeDoorbells {
    pub fn addresses(&self) -> Vec<u64> {
        let mut addresses: Vec<u64> = self.connected.lock().unwrap().iter().map(|c| c.0).collect();
        addresses.sort_unstable();
        addresses
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// A guest write at `address`; false if it would be an exit.
    pub fn ring(&self, address: u64) -> bool {
        let connected = self.connected.lock().unwrap();
        let found = connected.iter().find(|c| c.0 == address);
        found.map(|c| c.1.write(1).unwrap()).is_some()
    }
}

impl Doorbells for FakeDoorbells {
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.refuse.load(Ordering::SeqCst) {
            return Err(io::Error::other("refused"));
        }
        let mut connected = self.connected.lock().unwrap();
        assert!(connected.iter().all(|c| c.0 != address), "connected twice");
        connected.push((address, event.try_clone().unwrap(), event.as_raw_fd()));
        Ok(())
    }

    fn disconnect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut connected = self.connected.lock().unwrap();
        let same = |c: &(u64, EventFd, i32)| (c.0, c.2) == (address, event.as_raw_fd());
        let position = connected.iter().position(same).expect("was not connected");
        connected.remove(position);
        Ok(())
    }
}

/// A small generator of reproducible pseudo-random numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
