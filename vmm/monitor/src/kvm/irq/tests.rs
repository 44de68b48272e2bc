use super::*;

#[test]
fn wired_interrupts_stay_in_the_table_beside_msis() {
    let message = MsiMessage {
        address: 0x1_FEE0_1000,
        data: 0x41,
    };
    let entries = routing_entries(&[Route::Free, Route::Unrouted, Route::Msi(message)]);
    let wired = entries
        .iter()
        .filter(|entry| entry.type_ == KVM_IRQ_ROUTING_IRQCHIP);
    assert_eq!(wired.count(), 40);
    let msis: Vec<_> = entries
        .iter()
        .filter(|entry| entry.type_ == KVM_IRQ_ROUTING_MSI)
        .collect();
    assert_eq!(msis.len(), 1, "only a routed vector has an entry");
    assert_eq!(msis[0].gsi, IO_APIC_PINS + 2);
    // SAFETY: the entry's type says that it holds an MSI.
    let route = unsafe { msis[0].u.msi };
    assert_eq!(
        (route.address_lo, route.address_hi, route.data),
        (0xFEE0_1000, 1, 0x41)
    );
}

#[test]
fn every_wired_gsi_reaches_the_io_apic_input_of_its_number() {
    for gsi in 0..IO_APIC_PINS {
        let pins: Vec<_> = routing_entries(&[])
            .into_iter()
            .filter(|entry| entry.gsi == gsi)
            // SAFETY: there are only wired entries in this table.
            .map(|entry| unsafe { entry.u.irqchip })
            .filter(|route| route.irqchip == KVM_IRQCHIP_IOAPIC)
            .map(|route| route.pin)
            .collect();
        assert_eq!(pins, [gsi]);
    }
}
