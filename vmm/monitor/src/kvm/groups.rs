//! KVM's own look at VFIO groups (Documentation/virt/kvm/devices/vfio.rst): it learns whether their DMA is coherent with the
//! CPU's caches, and mediated devices ask it for the guest.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_DEV_VFIO_GROUP, KVM_DEV_VFIO_GROUP_ADD, KVM_DEV_VFIO_GROUP_DEL, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_VFIO,
};
use kvm_ioctls::{DeviceFd, VmFd};

/// The groups of one VM.
pub struct KvmGroups {
    vm: Arc<VmFd>,
    /// Made for the first group.
    device: Mutex<Option<DeviceFd>>,
}

impl KvmGroups {
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            device: Mutex::new(None),
        }
    }

    /// # Errors
    /// KVM has no such device, or refused the group.
    pub fn add(&self, group: &File) -> io::Result<()> {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let device = match &mut *device {
            Some(device) => device,
            None => {
                let mut create = kvm_create_device {
                    type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
                    fd: 0,
                    flags: 0,
                };
                device.insert(self.vm.create_device(&mut create)?)
            }
        };
        change(device, KVM_DEV_VFIO_GROUP_ADD, group)
    }

    pub fn remove(&self, group: &File) {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = device
            .as_ref()
            .map(|device| change(device, KVM_DEV_VFIO_GROUP_DEL, group))
        {
            tracing::warn!("KVM does not forget a VFIO group: {error}");
        }
    }
}

fn change(device: &DeviceFd, what: u32, group: &File) -> io::Result<()> {
    let descriptor = group.as_raw_fd();
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_DEV_VFIO_GROUP,
        attr: u64::from(what),
        addr: (&raw const descriptor).addr() as u64,
    };
    device.set_device_attr(&attribute).map_err(Into::into)
}
