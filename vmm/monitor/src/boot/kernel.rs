//! Loads a kernel: a 64-bit ELF (Linux's vmlinux, or anything with a PVH note) or a bzImage.

mod contents;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use fief_devices::GuestRam;
use linux_loader::bootparam::setup_header;
use linux_loader::elf::{ELFMAG0, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, ReadVolatile};

use super::{copy, layout};

/// Most program headers that are looked at; Linux has 5.
const MAX_PROGRAM_HEADERS: u16 = 64;
/// Most bytes of notes that are looked at; Linux has about 100.
const MAX_NOTES: u64 = 64 << 10;
/// EM_X86_64 of the ELF specification.
const MACHINE_X86_64: u16 = 62;
/// ELFCLASS64 and ELFDATA2LSB: 64-bit, little-endian.
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h): the PVH entry.
const NOTE_PVH: u32 = 18;
/// Where a bzImage has the magic of its setup header (Documentation/arch/x86/boot.rst).
const SETUP_MAGIC_AT: u64 = 0x202;
const SETUP_MAGIC: [u8; 4] = *b"HdrS";
/// Protocol 2.12 brought xloadflags.
const PROTOCOL_2_12: u16 = 0x20C;
/// XLF_KERNEL_64: there is a 64-bit entry, 0x200 behind the load address.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;

/// Why a file is no kernel for this machine.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    #[error("it is neither an ELF file nor a bzImage; give a vmlinux or a bzImage")]
    UnknownFormat,
    #[error("it is an ELF file, but not a little-endian 64-bit one for x86-64")]
    WrongElf,
    #[error("it is truncated or damaged: {0}; copy or build it again")]
    Damaged(&'static str),
    #[error("it has nothing to load")]
    NothingToLoad,
    #[error(
        "it wants to be at {start:#x}..{end:#x}, but the memory free for a kernel is {:#x}..{ram_end:#x}; give the guest more memory",
        layout::HIGH_RAM_START
    )]
    OutsideRam { start: u64, end: u64, ram_end: u64 },
    #[error("its entry point {0:#x} is in nothing that it loads")]
    Entry(u64),
    #[error(
        "it is a bzImage without a 64-bit entry; build the kernel for x86-64, version 3.8 or newer"
    )]
    No64BitEntry,
    #[error("the bzImage could not be loaded: {0}")]
    BzImage(String),
}

/// Where a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// Linux's 64-bit boot protocol.
    Linux64(u64),
    /// PVH: 32-bit, no paging.
    Pvh(u32),
}

/// A kernel in guest RAM.
#[derive(Debug, Clone)]
pub struct LoadedKernel {
    pub entry: EntryPoint,
    /// First address behind what the kernel needs before it has read its memory map.
    pub end: u64,
    /// Of a bzImage.
    pub setup_header: Option<setup_header>,
}

/// Loads the kernel in `file` into the RAM of a guest with `size` bytes of it.
///
/// # Errors
/// See [`KernelError`]; parts of the kernel may then be in RAM.
pub fn load(file: &File, ram: &GuestRam, size: u64) -> Result<LoadedKernel, KernelError> {
    let length = file.metadata()?.len();
    let mut magic = [0; 4];
    if length < 4 {
        return Err(KernelError::UnknownFormat);
    }
    file.read_exact_at(&mut magic, 0)?;
    let ram_end = layout::low_ram_end(size);
    if magic.first() == Some(&ELFMAG0) && magic.get(1..) == Some(b"ELF") {
        return load_elf(file, length, ram, ram_end);
    }
    if length > SETUP_MAGIC_AT.saturating_add(4) {
        file.read_exact_at(&mut magic, SETUP_MAGIC_AT)?;
        if magic == SETUP_MAGIC {
            return load_bzimage(file, length, ram, ram_end);
        }
    }
    Err(KernelError::UnknownFormat)
}

/// Checks that `length` bytes at `start` are in the RAM that a kernel may have; returns their end.
fn inside_ram(start: u64, length: u64, ram_end: u64) -> Result<u64, KernelError> {
    let end = start.saturating_add(length);
    if start < layout::HIGH_RAM_START || end > ram_end {
        return Err(KernelError::OutsideRam {
            start,
            end,
            ram_end,
        });
    }
    Ok(end)
}

fn read_struct<T: ByteValued + Default>(
    file: &File,
    at: u64,
    what: &'static str,
) -> Result<T, KernelError> {
    let mut value = T::default();
    file.read_exact_at(value.as_mut_slice(), at)
        .map_err(|error| damaged(error, what))?;
    Ok(value)
}

fn damaged(error: io::Error, what: &'static str) -> KernelError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => KernelError::Damaged(what),
        _ => KernelError::Read(error),
    }
}

fn load_elf(
    file: &File,
    length: u64,
    ram: &GuestRam,
    ram_end: u64,
) -> Result<LoadedKernel, KernelError> {
    let header: Elf64_Ehdr = read_struct(file, 0, "the ELF header is cut off")?;
    let [_, _, _, _, class, data, ..] = header.e_ident;
    if class != CLASS_64 || data != LITTLE_ENDIAN || header.e_machine != MACHINE_X86_64 {
        return Err(KernelError::WrongElf);
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>()
        || header.e_phnum > MAX_PROGRAM_HEADERS
    {
        return Err(KernelError::Damaged(
            "program headers of an unknown size or number",
        ));
    }
    let mut segments = Vec::new();
    let mut notes = Notes::default();
    for index in 0..u64::from(header.e_phnum) {
        let at = header
            .e_phoff
            .saturating_add(index.saturating_mul(size_of::<Elf64_Phdr>() as u64));
        let segment: Elf64_Phdr = read_struct(file, at, "the program headers are cut off")?;
        if segment.p_offset.saturating_add(segment.p_filesz) > length {
            return Err(KernelError::Damaged("a segment is cut off"));
        }
        match segment.p_type {
            PT_NOTE => notes.read(file, &segment)?,
            PT_LOAD if segment.p_memsz > 0 => segments.push(segment),
            _ => {}
        }
    }
    let mut end = 0;
    for segment in &segments {
        if segment.p_filesz > segment.p_memsz {
            return Err(KernelError::Damaged(
                "a segment is larger in the file than in memory",
            ));
        }
        end = inside_ram(segment.p_paddr, segment.p_memsz, ram_end)?.max(end);
    }
    if segments.is_empty() {
        return Err(KernelError::NothingToLoad);
    }
    let entry = notes.entry_point(&header, &segments)?;
    let contents = contents::Contents::read(file, &header);
    for segment in &segments {
        for (offset, length) in contents.pieces(segment.p_offset, segment.p_filesz) {
            let address = segment
                .p_paddr
                .saturating_add(offset.saturating_sub(segment.p_offset));
            copy::into_ram(file, offset, length, ram, address)?;
        }
    }
    Ok(LoadedKernel {
        entry,
        end,
        setup_header: None,
    })
}

/// What the ELF notes say.
#[derive(Default)]
struct Notes {
    linux: bool,
    pvh: Option<u32>,
}

impl Notes {
    fn read(&mut self, file: &File, segment: &Elf64_Phdr) -> Result<(), KernelError> {
        let size = segment.p_filesz.min(MAX_NOTES);
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact_at(&mut bytes, segment.p_offset)
            .map_err(|error| damaged(error, "the notes are cut off"))?;
        let mut rest = bytes.as_slice();
        while let Some((header, after)) = rest.split_at_checked(size_of::<Elf64_Nhdr>()) {
            let mut note = Elf64_Nhdr::default();
            note.as_mut_slice().copy_from_slice(header);
            let Some((name, after)) = take_padded(after, note.n_namesz) else {
                break;
            };
            let Some((content, after)) = take_padded(after, note.n_descsz) else {
                break;
            };
            self.linux |= name == b"Linux\0";
            if name == b"Xen\0" && note.n_type == NOTE_PVH {
                // 4 bytes in Linux, 8 in others; the address is a 32-bit one.
                self.pvh = content
                    .first_chunk::<4>()
                    .map(|bytes| u32::from_le_bytes(*bytes));
            }
            rest = after;
        }
        Ok(())
    }

    /// Linux has its 64-bit entry, which is nearer to where it wants to be than its PVH entry; other kernels have PVH's,
    /// and what has neither note is entered like Linux.
    fn entry_point(
        &self,
        header: &Elf64_Ehdr,
        segments: &[Elf64_Phdr],
    ) -> Result<EntryPoint, KernelError> {
        let loaded = |address: u64| {
            segments.iter().any(|s| {
                address
                    .checked_sub(s.p_paddr)
                    .is_some_and(|offset| offset < s.p_memsz)
            })
        };
        match self.pvh {
            Some(eip) if !self.linux || !loaded(header.e_entry) => {
                if loaded(u64::from(eip)) {
                    Ok(EntryPoint::Pvh(eip))
                } else {
                    Err(KernelError::Entry(u64::from(eip)))
                }
            }
            _ if loaded(header.e_entry) => Ok(EntryPoint::Linux64(header.e_entry)),
            _ => Err(KernelError::Entry(header.e_entry)),
        }
    }
}

/// Splits off `length` bytes and their padding to 4.
fn take_padded(bytes: &[u8], length: u32) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(length).ok()?;
    let (content, _) = bytes.split_at_checked(length)?;
    let padded = length.checked_next_multiple_of(4)?;
    Some((content, bytes.get(padded..).unwrap_or_default()))
}

fn load_bzimage(
    file: &File,
    length: u64,
    ram: &GuestRam,
    ram_end: u64,
) -> Result<LoadedKernel, KernelError> {
    // Before the loader reads megabytes: the whole file must fit where it goes.
    inside_ram(layout::HIGH_RAM_START, length, ram_end)?;
    let mut reader = BorrowedFile(file);
    let loaded = BzImage::load(
        ram,
        Some(GuestAddress(layout::HIGH_RAM_START)),
        &mut reader,
        None,
    )
    .map_err(|error| KernelError::BzImage(error.to_string()))?;
    let mut header = loaded
        .setup_header
        .ok_or_else(|| KernelError::BzImage("it has no setup header".into()))?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < PROTOCOL_2_12 || flags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::No64BitEntry);
    }
    // The header ends where the jump over it goes (boot.rst, "the first step"); what the loader read behind is code.
    let header_end = usize::from(header.jump >> 8).saturating_add(0x202 - 0x1F1);
    for byte in header.as_mut_slice().iter_mut().skip(header_end) {
        *byte = 0;
    }
    if length < bzimage_length(&header) {
        return Err(KernelError::Damaged("the kernel in the bzImage is cut off"));
    }
    let start = layout::HIGH_RAM_START.max(header.pref_address);
    let end = inside_ram(start, u64::from(header.init_size), ram_end)?;
    Ok(LoadedKernel {
        entry: EntryPoint::Linux64(layout::HIGH_RAM_START + ENTRY_64_OFFSET),
        end: end.max(loaded.kernel_end),
        setup_header: Some(header),
    })
}

/// Bytes that the file must have (boot.rst: the boot sector, `setup_sects` sectors of 512 bytes, then `syssize` paragraphs
/// of 16). A signature may follow.
fn bzimage_length(header: &setup_header) -> u64 {
    // For historical reasons 0 means 4.
    let sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let paragraphs = header.syssize;
    (sectors + 1) * 512 + u64::from(paragraphs) * 16
}

/// A shared file as the loader wants one: `File` itself could not be read through a shared reference.
struct BorrowedFile<'a>(&'a File);

impl Read for BorrowedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for BorrowedFile<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.0.seek(position)
    }
}

impl ReadVolatile for BorrowedFile<'_> {
    fn read_volatile<B: vm_memory::bitmap::BitmapSlice>(
        &mut self,
        buffer: &mut vm_memory::VolatileSlice<B>,
    ) -> Result<usize, vm_memory::VolatileMemoryError> {
        self.0.read_volatile(buffer)
    }
}

#[cfg(test)]
mod tests;
