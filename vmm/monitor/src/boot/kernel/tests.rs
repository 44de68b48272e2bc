use std::io::Write;

use elf_file::Elf;
use vm_memory::Bytes;

use super::*;

const RAM: u64 = 64 << 20;

/// Makes small ELF files.
mod elf_file {
    pub struct Elf {
        pub entry: u64,
        /// Type, offset in the file, physical address, bytes in the file, bytes in memory.
        pub segments: Vec<(u32, u64, u64, u64, u64)>,
        pub contents: Vec<u8>,
        pub machine: u16,
        pub class: u8,
        pub phentsize: u16,
    }

    pub const CONTENTS_AT: u64 = 0x1000;

    impl Elf {
        /// One segment of `contents` at `address`.
        pub fn new(entry: u64, address: u64, contents: &[u8]) -> Self {
            let size = contents.len() as u64;
            Self {
                entry,
                segments: vec![(1, CONTENTS_AT, address, size, size)],
                contents: contents.to_vec(),
                machine: 62,
                class: 2,
                phentsize: 56,
            }
        }

        pub fn bytes(&self) -> Vec<u8> {
            let mut b = vec![0; CONTENTS_AT as usize];
            b[..7].copy_from_slice(&[0x7F, b'E', b'L', b'F', self.class, 1, 1]);
            b[16..18].copy_from_slice(&2_u16.to_le_bytes());
            b[18..20].copy_from_slice(&self.machine.to_le_bytes());
            b[24..32].copy_from_slice(&self.entry.to_le_bytes());
            b[32..40].copy_from_slice(&64_u64.to_le_bytes());
            b[54..56].copy_from_slice(&self.phentsize.to_le_bytes());
            b[56..58].copy_from_slice(&(self.segments.len() as u16).to_le_bytes());
            for (i, (kind, offset, address, in_file, in_memory)) in self.segments.iter().enumerate()
            {
                let at = 64 + i * 56;
                b[at..at + 4].copy_from_slice(&kind.to_le_bytes());
                for (field, value) in [(8, offset), (24, address), (32, in_file), (40, in_memory)] {
                    b[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
                }
            }
            b.extend_from_slice(&self.contents);
            b
        }
    }
}

fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in [name.len() as u32, content.len() as u32, kind] {
        bytes.extend_from_slice(&value.to_le_bytes());
    }
    for part in [name, content] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn ram() -> GuestRam {
    fief_devices::ram::anonymous(&[(GuestAddress(0), RAM as usize)]).unwrap()
}

fn load_bytes(bytes: &[u8]) -> (Result<LoadedKernel, KernelError>, GuestRam) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let ram = ram();
    (load(&file, &ram, RAM), ram)
}

fn error(bytes: &[u8]) -> KernelError {
    load_bytes(bytes).0.unwrap_err()
}

#[test]
fn an_elf_is_where_its_segment_says_and_entered_in_64_bit_mode() {
    let (kernel, ram) = load_bytes(&Elf::new(0x100_0004, 0x100_0000, b"some kernel").bytes());
    let kernel = kernel.unwrap();
    assert_eq!(kernel.entry, EntryPoint::Linux64(0x100_0004));
    assert_eq!(kernel.end, 0x100_000B);
    let mut found = [0; 11];
    ram.read_slice(&mut found, GuestAddress(0x100_0000))
        .unwrap();
    assert_eq!(&found, b"some kernel");
}

/// A kernel at 16 MiB with `notes` behind its code.
fn with_notes(entry: u64, notes: &[u8]) -> Vec<u8> {
    let mut contents = vec![0x90; 64];
    contents.extend_from_slice(notes);
    let mut elf = Elf::new(entry, 0x100_0000, &contents);
    let at = elf_file::CONTENTS_AT + 64;
    elf.segments.push((4, at, 0, notes.len() as u64, 0));
    elf.bytes()
}

#[test]
fn a_kernel_with_a_pvh_note_is_entered_there_unless_it_is_linux() {
    let pvh = note(b"Xen\0", 18, &0x100_0020_u64.to_le_bytes());
    let linux = note(b"Linux\0", 0x100, &[1]);
    let entry = |notes: &[u8], entry| load_bytes(&with_notes(entry, notes)).0.unwrap().entry;
    assert_eq!(entry(&pvh, 0x100_0000), EntryPoint::Pvh(0x100_0020));
    let both = [linux.clone(), pvh.clone()].concat();
    assert_eq!(entry(&both, 0x100_0000), EntryPoint::Linux64(0x100_0000));
    assert_eq!(
        entry(&both, 0xFFFF_FFFF_8100_0000),
        EntryPoint::Pvh(0x100_0020)
    );
    assert_eq!(entry(&linux, 0x100_0000), EntryPoint::Linux64(0x100_0000));
}

#[test]
fn notes_that_lie_about_their_lengths_are_harmless() {
    for lengths in [[u32::MAX, 4], [4, u32::MAX], [u32::MAX, u32::MAX], [3, 0]] {
        let mut notes = Vec::new();
        for value in [lengths[0], lengths[1], 18] {
            notes.extend_from_slice(&value.to_le_bytes());
        }
        notes.extend_from_slice(b"Xen\0");
        let kernel = load_bytes(&with_notes(0x100_0000, &notes)).0.unwrap();
        assert_eq!(kernel.entry, EntryPoint::Linux64(0x100_0000));
    }
}

#[test]
fn what_is_no_kernel_is_refused_as_such() {
    for bytes in [&b""[..], b"x", b"#!/bin/sh\n", &[0; 10_000]] {
        assert!(
            matches!(error(bytes), KernelError::UnknownFormat),
            "{bytes:?}"
        );
    }
    let mut elf = Elf::new(0x100_0000, 0x100_0000, b"k");
    elf.machine = 183;
    assert!(matches!(error(&elf.bytes()), KernelError::WrongElf));
    elf.machine = 62;
    elf.class = 1;
    assert!(matches!(error(&elf.bytes()), KernelError::WrongElf));
    elf.class = 2;
    elf.phentsize = 32;
    assert!(matches!(error(&elf.bytes()), KernelError::Damaged(_)));
    elf.phentsize = 56;
    elf.segments.clear();
    assert!(matches!(error(&elf.bytes()), KernelError::NothingToLoad));
}

#[test]
fn an_elf_cut_off_anywhere_is_refused() {
    let whole = Elf::new(0x100_0000, 0x100_0000, &[7; 100]).bytes();
    for length in [4, 63, 64, 100, 0x1000, whole.len() - 1] {
        assert!(
            matches!(error(&whole[..length]), KernelError::Damaged(_)),
            "{length} bytes"
        );
    }
}

#[test]
fn segments_outside_the_ram_for_kernels_are_refused() {
    for (address, size) in [
        (0, 16),
        (0x8_0000, 16),
        (0xF_FFFF, 16),
        (RAM - 8, 16),
        (RAM, 16),
        (1 << 32, 16),
        (u64::MAX - 3, 16),
        (0x10_0000, u64::MAX),
    ] {
        let mut elf = Elf::new(address, address, &[1; 16]);
        elf.segments[0].4 = size;
        let error = error(&elf.bytes());
        assert!(
            matches!(error, KernelError::OutsideRam { .. }),
            "{address:#x}: {error}"
        );
    }
}

#[test]
fn segments_with_impossible_sizes_are_refused() {
    let mut elf = Elf::new(0x100_0000, 0x100_0000, &[1; 16]);
    elf.segments[0].4 = 15;
    assert!(matches!(error(&elf.bytes()), KernelError::Damaged(_)));
    elf.segments[0].4 = 16;
    for (offset, in_file) in [(0x1000, u64::MAX), (u64::MAX, 16), (0x1001, 16)] {
        elf.segments[0].1 = offset;
        elf.segments[0].3 = in_file;
        assert!(
            matches!(error(&elf.bytes()), KernelError::Damaged(_)),
            "{offset:#x}"
        );
    }
}

#[test]
fn an_entry_point_in_nothing_that_is_loaded_is_refused() {
    for entry in [0, 0x100_0010, u64::MAX] {
        let elf = Elf::new(entry, 0x100_0000, &[1; 16]);
        assert!(matches!(error(&elf.bytes()), KernelError::Entry(found) if found == entry));
    }
}

/// A bzImage's real-mode part with a setup header of boot protocol 2.15, and 4 KiB of "kernel".
fn bzimage(init_size: u32, xloadflags: u16, version: u16) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    bytes[0x1F1] = 1;
    bytes[0x1F4..0x1F8].copy_from_slice(&(4096_u32 / 16).to_le_bytes());
    bytes[0x200..0x202].copy_from_slice(&[0xEB, 0x6A]);
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes[0x206..0x208].copy_from_slice(&version.to_le_bytes());
    bytes[0x211] = 1;
    bytes[0x22C..0x230].copy_from_slice(&0x7FFF_FFFF_u32.to_le_bytes());
    bytes[0x236..0x238].copy_from_slice(&xloadflags.to_le_bytes());
    bytes[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    bytes[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    bytes.extend_from_slice(&[0xCC; 4096]);
    bytes
}

#[test]
fn a_bzimage_is_at_1_mib_and_keeps_room_for_what_it_unpacks() {
    let (kernel, ram) = load_bytes(&bzimage(0x10_0000, 1, 0x20F));
    let kernel = kernel.unwrap();
    assert_eq!(kernel.entry, EntryPoint::Linux64(0x10_0200));
    assert_eq!(kernel.end, 0x110_0000);
    assert!(kernel.setup_header.is_some());
    assert_eq!(ram.read_obj::<u8>(GuestAddress(0x10_0000)).unwrap(), 0xCC);
}

#[test]
fn bzimages_that_cannot_be_entered_or_unpacked_are_refused() {
    assert!(matches!(
        error(&bzimage(0x10_0000, 0, 0x20F)),
        KernelError::No64BitEntry
    ));
    assert!(matches!(
        error(&bzimage(0x10_0000, 1, 0x20B)),
        KernelError::No64BitEntry
    ));
    assert!(matches!(
        error(&bzimage(u32::MAX, 1, 0x20F)),
        KernelError::OutsideRam { .. }
    ));
    assert!(matches!(
        error(&bzimage(0x10_0000, 1, 0x20F)[..0x300]),
        KernelError::BzImage(_)
    ));
}

#[test]
fn a_bzimage_that_is_cut_off_is_refused_and_a_signature_behind_it_is_not() {
    let mut kernel = bzimage(0x10_0000, 1, 0x20F);
    assert!(matches!(
        error(&kernel[..kernel.len() - 1]),
        KernelError::Damaged(_)
    ));
    kernel.extend_from_slice(b"signature");
    load_bytes(&kernel).0.unwrap();
}
