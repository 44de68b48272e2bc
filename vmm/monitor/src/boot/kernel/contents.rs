//! Which parts of an ELF file have contents.
//!
//! Linux aligns text, read-only data and data to 2 MiB each, so that a sixth of its file is padding that no section
//! covers. Guest RAM is zero already; the padding need not be read.

use std::fs::File;

use std::os::unix::fs::FileExt;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Shdr, SHF_ALLOC, SHT_NOBITS};

/// Most sections that are looked at; a Linux kernel has fewer than 100.
const MAX_SECTIONS: u16 = 1024;
/// Smaller gaps are read along.
const MIN_GAP: u64 = 64 << 10;

/// The ranges of a file that sections cover: start and end, in order, not overlapping.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents(Vec<(u64, u64)>);

impl Contents {
    /// Reads the section headers. Whatever is wrong with them, the result is right: without them all is contents.
    pub fn read(file: &File, header: &Elf64_Ehdr) -> Self {
        let size = size_of::<Elf64_Shdr>();
        if usize::from(header.e_shentsize) != size || header.e_shnum > MAX_SECTIONS {
            return Self::default();
        }
        let mut bytes = vec![0; size.saturating_mul(usize::from(header.e_shnum))];
        if file.read_exact_at(&mut bytes, header.e_shoff).is_err() {
            return Self::default();
        }
        let sections = bytes.chunks_exact(size).filter_map(section);
        let mut ranges: Vec<(u64, u64)> = sections
            .filter(|s| s.sh_flags & SHF_ALLOC != 0 && s.sh_type != SHT_NOBITS && s.sh_size > 0)
            .map(|s| (s.sh_offset, s.sh_offset.saturating_add(s.sh_size)))
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some(last) if start.saturating_sub(last.1) < MIN_GAP => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// The pieces with contents of the `length` bytes at `offset`: offset and length of each. All of it if no section
    /// is in it.
    pub fn pieces(&self, offset: u64, length: u64) -> Vec<(u64, u64)> {
        let end = offset.saturating_add(length);
        let clipped = self
            .0
            .iter()
            .map(|(from, to)| ((*from).max(offset), (*to).min(end)));
        let mut pieces: Vec<(u64, u64)> = clipped.filter(|(from, to)| from < to).collect();
        match pieces.first_mut() {
            None => return vec![(offset, length)],
            Some(first) if first.0.saturating_sub(offset) < MIN_GAP => first.0 = offset,
            Some(_) => {}
        }
        if let Some(last) = pieces.last_mut()
            && end.saturating_sub(last.1) < MIN_GAP
        {
            last.1 = end;
        }
        let sized = pieces
            .into_iter()
            .map(|(from, to)| (from, to.saturating_sub(from)));
        sized.collect()
    }
}

/// Reads a section header (ELF-64 §5), little-endian.
fn section(bytes: &[u8]) -> Option<Elf64_Shdr> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    Some(Elf64_Shdr {
        sh_type: word(4)?,
        sh_flags: long(8)?,
        sh_offset: long(24)?,
        sh_size: long(32)?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests;
