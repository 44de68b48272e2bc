use super::*;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn the_pointer_leads_to_the_table() {
    let pointer = pointer();
    assert_eq!(&pointer[..4], b"_MP_");
    assert_eq!(sum(&pointer), 0);
    let address = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
    assert_eq!(u64::from(address), layout::MP_TABLE_START);
    assert!(POINTER_START < 0x400 && POINTER_START.is_multiple_of(16));
}

#[test]
fn the_table_lists_every_vcpu_and_fits_its_place() {
    for vcpus in 1..=32 {
        let table = table(vcpus);
        assert_eq!(&table[..4], b"PCMP");
        assert_eq!(sum(&table), 0);
        assert_eq!(
            usize::from(u16::from_le_bytes([table[4], table[5]])),
            table.len()
        );
        assert!(layout::MP_TABLE_START + table.len() as u64 <= layout::HIGH_RAM_START);
        let count = u16::from_le_bytes([table[34], table[35]]);
        let (mut at, mut seen, mut cpus) = (HEADER_BYTES, 0, Vec::new());
        while at < table.len() {
            if table[at] == 0 {
                cpus.push(table[at + 1]);
                at += 20;
            } else {
                at += 8;
            }
            seen += 1;
        }
        assert_eq!((at, seen), (table.len(), count));
        assert_eq!(cpus, (0..vcpus).collect::<Vec<_>>());
    }
}
