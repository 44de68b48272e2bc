use std::io::Write;

use super::*;

fn files(kernel: &[u8], initrd: Option<&[u8]>) -> BootFiles {
    let file = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    };
    BootFiles {
        kernel_path: "/boot/vmlinux".into(),
        kernel: file(kernel),
        initrd: initrd.map(|bytes| ("/boot/initrd".into(), file(bytes))),
        cmdline: cmdline::Cmdline::new("quiet", &[]).unwrap(),
        acpi: vec![0xAC; 100],
        vcpus: 1,
    }
}

#[test]
fn a_bad_kernel_and_a_bad_initrd_are_named_with_their_path() {
    let ram = fief_devices::ram::anonymous(&[(GuestAddress(0), 32 << 20)]).unwrap();
    let error = load(&files(b"nothing", None), &ram, 32 << 20).unwrap_err();
    assert!(
        error.to_string().starts_with("/boot/vmlinux is no kernel"),
        "{error}"
    );
}

#[test]
fn acpi_tables_larger_than_their_place_are_refused() {
    let ram = fief_devices::ram::anonymous(&[(GuestAddress(0), 32 << 20)]).unwrap();
    let mut files = files(&tiny_kernel(), None);
    files.acpi = vec![0; 0x1_0001];
    let error = load(&files, &ram, 32 << 20).unwrap_err();
    assert!(
        matches!(
            error,
            BootError::AcpiTooLarge {
                got: 0x1_0001,
                room: 0x1_0000
            }
        ),
        "{error}"
    );
}

#[test]
fn loading_twice_into_cleared_ram_gives_the_same_memory() {
    let files = files(&tiny_kernel(), Some(&[5; 10_000]));
    let image = || {
        let ram = fief_devices::ram::anonymous(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let entry = load(&files, &ram, 4 << 20).unwrap();
        let mut bytes = vec![0; 4 << 20];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        (entry, bytes)
    };
    let first = image();
    assert_eq!(first, image());
    assert_eq!(
        first.0,
        Entry::Linux64 {
            rip: 0x10_0000,
            boot_params: layout::BOOT_PARAMS_START
        }
    );
    let line = layout::CMDLINE_START as usize;
    assert_eq!(&first.1[line..line + 6], b"quiet\0");
}

#[test]
fn a_jump_to_the_bios_finds_code_that_writes_the_acpi_reset_register() {
    let ram = fief_devices::ram::anonymous(&[(GuestAddress(0), 4 << 20)]).unwrap();
    load(&files(&tiny_kernel(), None), &ram, 4 << 20).unwrap();
    let mut code = [0; 6];
    ram.read_slice(&mut code, GuestAddress((0xF000 << 4) + 0xFFF0))
        .unwrap();
    // mov dx, 0x602; mov al, 1; out dx, al
    assert_eq!(code, [0xBA, 0x02, 0x06, 0xB0, 0x01, 0xEE]);
}

/// The smallest ELF: one segment of one page at 1 MiB.
fn tiny_kernel() -> Vec<u8> {
    let mut bytes = vec![0; 0x2000];
    bytes[..7].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1, 1]);
    bytes[18] = 62;
    for (at, value) in [
        (24, 0x10_0000_u64),
        (32, 64),
        (72, 0x1000),
        (88, 0x10_0000),
        (96, 0x1000),
        (104, 0x1000),
    ] {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes[54] = 56;
    bytes[56] = 1;
    bytes[64] = 1;
    bytes[0x1000] = 0xF4;
    bytes
}
