//! Doorbells by ioeventfd: a guest write signals an eventfd inside KVM, without an exit to the monitor.

use std::io;
use std::sync::Arc;

use fief_devices::doorbell::Doorbells;
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

/// Connects guest-physical addresses of one VM.
pub struct IoEventDoorbells {
    vm: Arc<VmFd>,
}

impl IoEventDoorbells {
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm }
    }
}

impl Doorbells for IoEventDoorbells {
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        // No datamatch means length 0: writes of any width, on KVM's fast bus that does not decode the instruction.
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(Into::into)
    }

    fn disconnect(&self, address: u64, event: &EventFd) -> io::Result<()> {
        self.vm
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(Into::into)
    }
}
