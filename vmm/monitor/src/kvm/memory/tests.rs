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

/// KiB of a mapping that are in the host's memory (proc(5), smaps).
fn resident_kib(memory: &GuestMemory) -> u64 {
    let start = memory.ram().iter().next().unwrap().as_ptr().addr();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps
        .lines()
        .skip_while(|line| !line.starts_with(&format!("{start:x}-")));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Writes the offset of each page into it, so that all are there.
fn fill(memory: &GuestMemory) {
    for page in (0..memory.size()).step_by(4096) {
        let value = 0x5000_0000 + page;
        memory.ram().write_obj(value, GuestAddress(page)).unwrap();
    }
}

#[test]
fn pages_that_are_given_back_leave_the_hosts_memory_and_only_they_do() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&vec![0x5A; 4 << 20]).unwrap();
    for (backing, left) in [
        (MemoryBacking::Anonymous { huge: true }, 0),
        (MemoryBacking::Anonymous { huge: false }, 0),
        (MemoryBacking::Memfd, 0),
        // The guest's own old contents.
        (
            MemoryBacking::File(file.path().to_owned()),
            0x5A5A_5A5A_5A5A_5A5A_u64,
        ),
    ] {
        let memory = new(4, backing.clone()).unwrap();
        fill(&memory);
        assert_eq!(resident_kib(&memory), 4096, "{backing:?}");
        memory.release(GuestAddress(0x10_0000), 0x20_0000).unwrap();
        memory.release(GuestAddress(0x1000), 0x1000).unwrap();
        assert_eq!(resident_kib(&memory), 4096 - 2048 - 4, "{backing:?}");
        for page in (0..memory.size()).step_by(4096) {
            let is_gone = page == 0x1000 || (0x10_0000..0x30_0000).contains(&page);
            let expected = if is_gone { left } else { 0x5000_0000 + page };
            let got: u64 = memory.ram().read_obj(GuestAddress(page)).unwrap();
            assert_eq!(got, expected, "{backing:?} {page:#x}");
        }
        fill(&memory);
        assert_eq!(resident_kib(&memory), 4096, "{backing:?}");
    }
}

#[test]
fn what_is_not_ram_is_not_given_back() {
    let memory = new(1, MemoryBacking::Anonymous { huge: false }).unwrap();
    for (start, length) in [
        (1 << 20, 4096),
        ((1 << 20) - 4096, 8192),
        (u64::MAX - 4095, 4096),
        (0, u64::MAX - 4095),
    ] {
        assert!(memory.release(GuestAddress(start), length).is_err());
    }
    memory.release(GuestAddress(0), 1 << 20).unwrap();
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
