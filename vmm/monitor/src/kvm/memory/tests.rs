use std::io::Write;

use vm_memory::Bytes;

use super::*;

fn config(size_mib: u64, backing: MemoryBacking) -> MemoryConfig {
    MemoryConfig { size_mib, backing }
}

fn new(size_mib: u64, backing: MemoryBacking) -> Result<GuestMemory, MemoryError> {
    GuestMemory::new(&config(size_mib, backing), &Files::new())
}

#[test]
fn ram_is_aligned_to_2_mib_in_the_host() {
    for backing in [
        MemoryBacking::Anonymous { huge: true },
        MemoryBacking::Anonymous { huge: false },
        MemoryBacking::Memfd,
    ] {
        let memory = new(5, backing).unwrap();
        for region in memory.ram().iter() {
            assert_eq!(region.as_ptr() as usize % HUGE_PAGE, 0);
        }
        assert_eq!(memory.size(), 5 << 20);
    }
}

#[test]
fn ram_around_the_hole_is_writable_and_the_hole_is_not_there() {
    let memory = new(3 * 1024 + 2, MemoryBacking::Memfd).unwrap();
    let ram = memory.ram();
    for address in [0, layout::RAM_HOLE_START - 1, layout::RAM_HOLE_END] {
        ram.write_obj(7_u8, GuestAddress(address)).unwrap();
        assert_eq!(ram.read_obj::<u8>(GuestAddress(address)).unwrap(), 7);
    }
    assert!(
        ram.write_obj(7_u8, GuestAddress(layout::RAM_HOLE_START))
            .is_err()
    );
    assert!(
        ram.write_obj(7_u8, GuestAddress(layout::RAM_HOLE_END + (2 << 20)))
            .is_err()
    );
}

#[test]
fn clearing_makes_ram_of_every_backing_zero() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0x5A; 1 << 20]).unwrap();
    for backing in [
        MemoryBacking::Anonymous { huge: true },
        MemoryBacking::Memfd,
        MemoryBacking::File(file.path().to_owned()),
    ] {
        let memory = new(1, backing).unwrap();
        memory
            .ram()
            .write_obj(0x1234_u32, GuestAddress(0x8000))
            .unwrap();
        memory.clear().unwrap();
        for address in [0, 0x8000, 0xF_FFF8] {
            assert_eq!(
                memory.ram().read_obj::<u64>(GuestAddress(address)).unwrap(),
                0
            );
        }
    }
}

#[test]
fn writes_to_a_private_file_mapping_do_not_reach_the_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0x5A; 1 << 20]).unwrap();
    let memory = new(1, MemoryBacking::File(file.path().to_owned())).unwrap();
    assert_eq!(memory.ram().read_obj::<u8>(GuestAddress(9)).unwrap(), 0x5A);
    memory.ram().write_obj(1_u8, GuestAddress(9)).unwrap();
    assert!(
        std::fs::read(file.path())
            .unwrap()
            .iter()
            .all(|byte| *byte == 0x5A)
    );
}

#[test]
fn a_truncated_memory_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len((1 << 20) - 1).unwrap();
    let error = new(1, MemoryBacking::File(file.path().to_owned()))
        .err()
        .unwrap();
    assert!(
        matches!(
            error,
            MemoryError::FileSize {
                got: 1_048_575,
                need: 1_048_576,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn sizes_beyond_the_address_space_are_refused_without_overflow() {
    for size in [u64::MAX, u64::MAX >> 20, 1 << 43] {
        let error = new(size, MemoryBacking::Anonymous { huge: true })
            .err()
            .unwrap();
        assert!(
            matches!(error, MemoryError::TooLarge(_) | MemoryError::Map { .. }),
            "{error}"
        );
    }
}
