use std::io::Write;

use super::*;

fn elf() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.extend((0..3_000_000u32).flat_map(|n| (n / 7).to_le_bytes()));
    elf
}

/// A bzImage as small as the boot protocol allows, around a packed kernel.
fn bzimage(packed: &[u8], elf_size: usize) -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    image[0x1f1] = 2;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(packed.len() as u32 + 4).to_le_bytes());
    image.extend([0xcc; 64]);
    image.extend(packed);
    image.extend((elf_size as u32).to_le_bytes());
    image.extend([0xcc; 100]);
    image
}

fn gzip(elf: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(elf).unwrap();
    encoder.finish().unwrap()
}

fn lz4_legacy(elf: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    for block in elf.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    packed
}

fn xz(elf: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    lzma_rs::xz_compress(&mut &elf[..], &mut packed).unwrap();
    packed
}

fn lzma(elf: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    lzma_rs::lzma_compress(&mut &elf[..], &mut packed).unwrap();
    packed
}

fn zstd(elf: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(elf, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn the_elf_comes_out_of_a_bzimage_of_every_compression() {
    let elf = elf();
    for (name, pack) in [
        ("gzip", gzip as fn(&[u8]) -> Vec<u8>),
        ("lz4", lz4_legacy),
        ("zstd", zstd),
        ("xz", xz),
        ("lzma", lzma),
        ("none", <[u8]>::to_vec),
    ] {
        let extracted = payload::extract(&bzimage(&pack(&elf), elf.len())).unwrap();
        // Uncompressed, the size field behind it stays: nothing that loads an ELF looks there.
        assert!(
            extracted.starts_with(&elf) && extracted.len() <= elf.len() + 4,
            "{name}"
        );
    }
}

#[test]
fn a_truncated_or_foreign_file_is_an_error_for_every_compression() {
    let elf = elf();
    assert!(payload::extract(b"").is_err());
    assert!(payload::extract(&[0; 10_000]).is_err());
    for pack in [gzip as fn(&[u8]) -> Vec<u8>, lz4_legacy, zstd, xz] {
        let image = bzimage(&pack(&elf), elf.len());
        assert!(payload::extract(&image[..image.len() / 2]).is_err());
        let mut damaged = image.clone();
        let middle = image.len() / 2;
        damaged[middle..middle + 2000].fill(0xff);
        assert!(payload::extract(&damaged).map_or(true, |found| found != elf));
        assert!(payload::extract(&bzimage(&pack(b"no elf"), 6)).is_err());
    }
}

#[test]
fn a_header_that_points_outside_the_file_is_an_error() {
    let mut image = bzimage(&gzip(&elf()), 0);
    for (offset, length) in [
        (u32::MAX, 16),
        (16, u32::MAX),
        (u32::MAX, u32::MAX),
        (0x7fff_ffff, 1),
    ] {
        image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        assert!(matches!(
            payload::extract(&image),
            Err(payload::Error::NotBzImage(_))
        ));
    }
}

#[test]
fn an_unknown_kernel_names_those_there_are() {
    let message = "foo".parse::<KernelKind>().unwrap_err().to_string();
    assert!(
        message.contains("`foo`") && message.contains("debian, debian-full, tuned, micro"),
        "{message}"
    );
    for kind in KernelKind::ALL {
        assert_eq!(kind.to_string().parse::<KernelKind>().unwrap(), kind);
    }
}
