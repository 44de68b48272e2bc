use super::*;

#[test]
fn linux_gets_the_selectors_its_boot_protocol_names() {
    let mut sregs = kvm_sregs::default();
    set_segments(&mut sregs, true);
    assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
    assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
    assert_eq!(usize::from(sregs.gdt.limit) + 1, gdt(true).len() * 8);
}

#[test]
fn descriptors_in_memory_say_what_the_registers_say() {
    for long in [true, false] {
        let mut sregs = kvm_sregs::default();
        set_segments(&mut sregs, long);
        for segment in [sregs.cs, sregs.ds, sregs.tr] {
            let descriptor = gdt(long)[usize::from(segment.selector) / 8];
            assert_eq!((descriptor >> 40 & 0xF) as u8, segment.type_);
            assert_eq!((descriptor >> 47 & 1) as u8, segment.present);
            assert_eq!((descriptor >> 53 & 1) as u8, segment.l);
            assert_eq!((descriptor >> 54 & 1) as u8, segment.db);
        }
    }
}

#[test]
fn a_reset_local_apic_keeps_its_id_and_masks_every_local_vector() {
    let mut lapic = kvm_lapic_state::default();
    lapic.regs.fill(0x55);
    reset_local_apic(&mut lapic);
    let register = |offset: usize| {
        let bytes: Vec<u8> = lapic.regs[offset..offset + 4]
            .iter()
            .map(|b| *b as u8)
            .collect();
        u32::from_le_bytes(bytes.try_into().unwrap())
    };
    assert_eq!(register(0x20), 0x5555_5555);
    assert_eq!(register(0x30), 0x5555_5555);
    assert_eq!(register(0xF0), 0xFF);
    assert_eq!(register(0x320), 1 << 16);
    assert_eq!(register(0x80), 0, "task priority");
    assert_eq!(register(0x100), 0, "in service");
}
