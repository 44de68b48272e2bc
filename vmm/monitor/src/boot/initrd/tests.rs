use std::io::Write;

use linux_loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::boot::kernel::EntryPoint;

const RAM: u64 = 32 << 20;

fn kernel(end: u64) -> LoadedKernel {
    LoadedKernel {
        entry: EntryPoint::Linux64(0x100_0000),
        end,
        setup_header: None,
    }
}

fn load_bytes(
    bytes: &[u8],
    kernel: &LoadedKernel,
) -> (Result<LoadedInitrd, InitrdError>, GuestRam) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let ram = fief_devices::ram::anonymous(&[(GuestAddress(0), RAM as usize)]).unwrap();
    (load(&file, &ram, RAM, kernel), ram)
}

#[test]
fn an_initrd_is_page_aligned_at_the_end_of_ram() {
    let (initrd, ram) = load_bytes(&[7; 5000], &kernel(0x200_0000 - 8192));
    let initrd = initrd.unwrap();
    assert_eq!(
        initrd,
        LoadedInitrd {
            start: RAM - 8192,
            size: 5000
        }
    );
    assert_eq!(
        ram.read_obj::<u8>(GuestAddress(initrd.start + 4999))
            .unwrap(),
        7
    );
    assert_eq!(
        ram.read_obj::<u8>(GuestAddress(initrd.start + 5000))
            .unwrap(),
        0
    );
}

#[test]
fn an_initrd_that_would_overlap_the_kernel_is_refused() {
    let (result, _) = load_bytes(&[7; 5000], &kernel(RAM - 8191));
    assert!(matches!(
        result,
        Err(InitrdError::TooLarge { size: 5000, .. })
    ));
    let (result, _) = load_bytes(&vec![7; RAM as usize + 1], &kernel(0x100_0000));
    assert!(matches!(result, Err(InitrdError::TooLarge { .. })));
}

#[test]
fn an_empty_initrd_is_refused() {
    assert!(matches!(
        load_bytes(&[], &kernel(0x100_0000)).0,
        Err(InitrdError::Empty)
    ));
}

#[test]
fn a_bzimages_highest_initrd_address_is_kept() {
    let mut kernel = kernel(0x100_0000);
    kernel.setup_header = Some(setup_header {
        initrd_addr_max: 0x17F_FFFF,
        ..Default::default()
    });
    let initrd = load_bytes(&[7; 4096], &kernel).0.unwrap();
    assert_eq!(initrd.start, 0x17F_F000);
}
