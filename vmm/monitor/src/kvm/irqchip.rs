//! The interrupt controllers that KVM keeps for the whole machine: an I/O APIC and the two 8259 of a PC.
//!
//! A kernel on hardware-reduced ACPI programs the I/O APIC only, but the 8259s are there too: their ports answer, and wired
//! interrupts leave marks in them.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pic_state,
};
use kvm_ioctls::VmFd;

use super::{KvmError, refused};

/// A redirection entry after a reset: masked, and all else zero (Intel 82093AA §3.2.4).
const MASKED: u64 = 1 << 16;

/// Brings them to their state after power-on, while the vCPUs stand still.
///
/// # Errors
/// KVM refused.
pub fn reset(vm: &VmFd) -> Result<(), KvmError> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        reset_chip(vm, chip_id, |chip| {
            // SAFETY: KVM has filled this member of the union, as `chip_id` is that of an 8259 (api.rst, KVM_GET_IRQCHIP).
            let elcr_mask = unsafe { chip.chip.pic.elcr_mask };
            // Zero as KVM begins, but for which lines can be switched to level-triggered: the wiring, not a register.
            chip.chip.pic = kvm_pic_state {
                elcr_mask,
                ..Default::default()
            };
        })?;
    }
    reset_chip(vm, KVM_IRQCHIP_IOAPIC, |chip| {
        // SAFETY: as above, for the I/O APIC.
        let io_apic = unsafe { &mut chip.chip.ioapic };
        // Its address stays: no register of the 82093AA changes it.
        io_apic.ioregsel = 0;
        io_apic.id = 0;
        io_apic.irr = 0;
        for entry in &mut io_apic.redirtbl {
            entry.bits = MASKED;
        }
    })
}

fn reset_chip(
    vm: &VmFd,
    chip_id: u32,
    change: impl FnOnce(&mut kvm_irqchip),
) -> Result<(), KvmError> {
    let what = "reset the interrupt controllers";
    let mut chip = kvm_irqchip {
        chip_id,
        ..Default::default()
    };
    vm.get_irqchip(&mut chip).map_err(refused(what))?;
    change(&mut chip);
    vm.set_irqchip(&chip).map_err(refused(what))
}
