//! The ELF kernel inside a bzImage (Documentation/arch/x86/boot.rst).

use std::io::{self, Read};

use crate::tool::{self, Tool};

/// Largest uncompressed kernel that is believed: a debug build of everything is about 200 MiB.
const ELF_MAX: u64 = 512 << 20;
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The protocol version that has the payload fields.
const VERSION_MIN: u16 = 0x0208;
const SECTOR: usize = 512;
/// LZ4's "legacy" frames (lz4_Frame_format.md): after the magic, blocks of at most 8 MiB with their compressed size before them.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_BLOCK_MAX: usize = 8 << 20;
/// The kernel's build puts the uncompressed size behind the payload where the format itself does not end with it.
const SIZE_FIELD: usize = 4;

const XZ: Tool = Tool {
    program: "xz",
    package: "xz-utils",
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this is no bzImage: {0}")]
    NotBzImage(&'static str),
    #[error("the kernel is compressed in a way that is not known (it begins with {0:02x?})")]
    Unknown(Vec<u8>),
    #[error("the compressed kernel is damaged")]
    Damaged(#[source] io::Error),
    #[error("what was compressed is no ELF file")]
    NotElf,
    #[error(transparent)]
    Tool(#[from] tool::Error),
}

/// Takes the ELF kernel out of a bzImage.
pub fn extract(bzimage: &[u8]) -> Result<Vec<u8>, Error> {
    let payload = find(bzimage)?;
    let elf = decompress(payload)?;
    if elf.starts_with(b"\x7fELF") {
        Ok(elf)
    } else {
        Err(Error::NotElf)
    }
}

/// Whether this is a bzImage of a protocol that names its payload.
fn find(bzimage: &[u8]) -> Result<&[u8], Error> {
    let word = |at: usize| -> Option<usize> {
        let bytes = bzimage.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if bzimage.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(Error::NotBzImage("it lacks the boot protocol's header"));
    }
    let version = bzimage
        .get(VERSION..VERSION + 2)
        .map(|v| u16::from_le_bytes([v[0], v[1]]));
    if version.is_none_or(|version| version < VERSION_MIN) {
        return Err(Error::NotBzImage("its boot protocol is older than 2.08"));
    }
    // 0 means 4, for kernels older than the field.
    let sectors = bzimage
        .get(SETUP_SECTS)
        .map(|&n| if n == 0 { 4 } else { usize::from(n) });
    let (sectors, offset, length) = match (sectors, word(PAYLOAD_OFFSET), word(PAYLOAD_LENGTH)) {
        (Some(sectors), Some(offset), Some(length)) => (sectors, offset, length),
        _ => return Err(Error::NotBzImage("it is truncated")),
    };
    let start = ((sectors + 1) * SECTOR).checked_add(offset);
    let end = start.and_then(|start| start.checked_add(length));
    start
        .zip(end)
        .and_then(|(start, end)| bzimage.get(start..end))
        .ok_or(Error::NotBzImage("it is truncated"))
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, Error> {
    let has = |magic: &[u8]| payload.starts_with(magic);
    if has(b"\x7fELF") {
        Ok(payload.to_vec())
    } else if has(&[0x1f, 0x8b]) {
        read_all(flate2::read::GzDecoder::new(payload))
    } else if has(&LZ4_MAGIC) {
        lz4(payload)
    } else if has(&[0x28, 0xb5, 0x2f, 0xfd]) {
        zstd(payload)
    } else if has(b"\xfd7zXZ\0") {
        xz(payload)
    } else if has(&[0x5d, 0, 0]) {
        let mut elf = Capped(Vec::new());
        let stream = &payload[..payload.len().saturating_sub(SIZE_FIELD)];
        lzma_rs::lzma_decompress(&mut &stream[..], &mut elf)
            .map_err(|e| Error::Damaged(io::Error::other(e)))?;
        Ok(elf.0)
    } else {
        Err(Error::Unknown(payload.iter().take(6).copied().collect()))
    }
}

fn read_all(reader: impl Read) -> Result<Vec<u8>, Error> {
    let mut elf = Vec::new();
    reader
        .take(ELF_MAX + 1)
        .read_to_end(&mut elf)
        .map_err(Error::Damaged)?;
    if elf.len() as u64 > ELF_MAX {
        Err(Error::Damaged(too_large()))
    } else {
        Ok(elf)
    }
}

fn zstd(payload: &[u8]) -> Result<Vec<u8>, Error> {
    // Kernels are packed with windows as large as themselves.
    let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(payload, ELF_MAX);
    read_all(decoder.map_err(|e| Error::Damaged(io::Error::other(e)))?)
}

fn lz4(payload: &[u8]) -> Result<Vec<u8>, Error> {
    let damaged = |e| Error::Damaged(io::Error::other(e));
    let mut elf = Vec::new();
    let mut rest = &payload[LZ4_MAGIC.len()..];
    let mut block = vec![0; LZ4_BLOCK_MAX];
    while rest.len() > SIZE_FIELD {
        let size = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        rest = &rest[4..];
        let compressed = rest
            .get(..size)
            .ok_or_else(|| Error::Damaged(io::ErrorKind::UnexpectedEof.into()))?;
        let n = lz4_flex::block::decompress_into(compressed, &mut block).map_err(damaged)?;
        elf.extend_from_slice(&block[..n]);
        if elf.len() as u64 > ELF_MAX {
            return Err(Error::Damaged(too_large()));
        }
        rest = &rest[size..];
    }
    Ok(elf)
}

/// Kernels are packed with xz's filter for x86 code, which the library lacks: then the program does it.
fn xz(payload: &[u8]) -> Result<Vec<u8>, Error> {
    let mut elf = Capped(Vec::new());
    if lzma_rs::xz_decompress(
        &mut &payload[..payload.len().saturating_sub(SIZE_FIELD)],
        &mut elf,
    )
    .is_ok()
    {
        return Ok(elf.0);
    }
    let mut file = tempfile::NamedTempFile::new().map_err(Error::Damaged)?;
    io::Write::write_all(&mut file, payload).map_err(Error::Damaged)?;
    // --single-stream: the size field behind the stream is not one.
    let arguments = ["--single-stream", "--decompress", "--stdout", "--quiet"];
    Ok(XZ.bytes(
        arguments
            .iter()
            .map(std::ffi::OsStr::new)
            .chain([file.path().as_os_str()]),
    )?)
}

fn too_large() -> io::Error {
    io::Error::other("it is larger than any kernel")
}

/// Refuses to grow beyond a kernel's size.
struct Capped(Vec<u8>);

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.0.len() + bytes.len()) as u64 > ELF_MAX {
            return Err(too_large());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
