//! virtio-net: frames of an ethertype for experiments, IPv4 frames with offloads, and a driver that stops receiving.

use alloc::boxed::Box;
use alloc::vec::Vec;

use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::DeviceType;

use crate::Failure;
use crate::console::print;
use crate::memory::Payload;
use crate::pci::{Pci, explain, open};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const QUEUE: usize = 16;
const HEADER: usize = 12;
const BUFFER: usize = 2048;
/// Ethertype for local experiments (IEEE 802).
const EXPERIMENT: [u8; 2] = [0x88, 0xB5];
const IPV4: [u8; 2] = [8, 0];
/// What begins the payload of the frame that ends a check.
const END: &[u8] = b"END";

type Driver = VirtIONetRaw<Payload, Pci, QUEUE>;

fn start() -> Result<Driver, Failure> {
    let driver = Driver::new(open(DeviceType::Network, 0, false)?).map_err(explain)?;
    if driver.mac_address() != MAC {
        return Err(alloc::format!("the MAC is {:x?}", driver.mac_address()));
    }
    Ok(driver)
}

/// Says that the host may begin.
fn ready() {
    print(format_args!("READY\n"));
}

/// The frame in a buffer behind its header, if that says that there is nothing to do for the driver.
fn plain(buffer: &mut [u8], length: usize) -> Result<&mut [u8], Failure> {
    let (header, frame) = buffer.split_at_mut(HEADER);
    if header[..HEADER] != [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] {
        return Err(alloc::format!("a frame comes with the header {header:x?}"));
    }
    Ok(&mut frame[..length])
}

/// Sends every experimental frame back to where it came from.
pub fn check() -> Result<(), Failure> {
    let mut driver = start()?;
    let mut buffer = [0; BUFFER];
    ready();
    loop {
        let (_, length) = driver.receive_wait(&mut buffer).map_err(explain)?;
        let frame = plain(&mut buffer, length)?;
        if frame[12..14] != EXPERIMENT {
            continue;
        }
        for i in 0..6 {
            frame.swap(i, i + 6);
        }
        driver.send(frame).map_err(explain)?;
        if frame[14..].starts_with(END) {
            return Ok(());
        }
    }
}

/// Receives a TCP stream that the host sent as one large segment, which this driver cannot take, and sends the host one.
pub fn check_offload() -> Result<(), Failure> {
    let mut driver = start()?;
    let mut buffer = [0; BUFFER];
    let mut stream = Vec::new();
    let mut segments = 0;
    ready();
    while !stream.ends_with(END) {
        let (_, length) = driver.receive_wait(&mut buffer).map_err(explain)?;
        let frame = plain(&mut buffer, length)?;
        if frame[12..14] == IPV4 && frame[23] == 6 {
            stream.extend(segment(&frame[14..])?);
            segments += 1;
        }
    }
    if stream.len() != 14_000 || segments != 10 {
        return Err(alloc::format!(
            "{} bytes came in {segments} segments",
            stream.len()
        ));
    }
    // One large segment of 1400-byte ones, its checksum left to the host.
    let payload = 14_000_usize;
    let mut message = alloc::vec![0; HEADER + 54 + payload];
    let fields = [
        (0, &[1, 1, 54, 0][..]),
        (4, &1400_u16.to_le_bytes()),
        (6, &[34, 0, 16, 0]),
        (HEADER, &[0xFF; 6]),
        (HEADER + 6, &MAC),
        (HEADER + 12, &IPV4),
        (HEADER + 14, &[0x45, 0]),
        (HEADER + 16, &(payload as u16 + 40).to_be_bytes()),
        (HEADER + 22, &[64, 6]),
        (HEADER + 26, &[10, 0, 0, 2, 10, 0, 0, 1]),
        (HEADER + 46, &[0x50, 0x10]),
    ];
    for (at, bytes) in fields {
        message[at..at + bytes.len()].copy_from_slice(bytes);
    }
    // SAFETY: `message` lives until it was returned, which is waited for, and nobody touches it meanwhile.
    unsafe {
        let token = driver.transmit_begin(&message).map_err(explain)?;
        while driver.poll_transmit() != Some(token) {
            core::hint::spin_loop();
        }
        driver.transmit_complete(token, &message).map_err(explain)?;
    }
    Ok(())
}

/// The TCP payload of an IPv4 packet whose checksum is right.
fn segment(packet: &[u8]) -> Result<&[u8], Failure> {
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let tcp = &packet[20..total];
    let mut sum = 6 + tcp.len() as u32;
    for pair in packet[12..20].chunks(2).chain(tcp.chunks(2)) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    if sum != 0xFFFF {
        return Err(alloc::format!("a segment's checksum sums up to {sum:x}"));
    }
    Ok(&tcp[usize::from(tcp[12] >> 4) * 4..])
}

/// Takes a queue full of frames, then none while the host sends many, then all that come.
pub fn check_flood() -> Result<(), Failure> {
    let mut driver = start()?;
    let mut disk =
        VirtIOBlk::<Payload, Pci>::new(open(DeviceType::Block, 0, false)?).map_err(explain)?;
    let mut buffers: Vec<Box<[u8; BUFFER]>> = (0..QUEUE).map(|_| Box::new([0; BUFFER])).collect();
    let mut tokens = [0; QUEUE];
    for (buffer, token) in buffers.iter_mut().zip(&mut tokens) {
        // SAFETY: the buffer lives in `buffers` until it was returned, and nobody touches it meanwhile.
        *token = unsafe { driver.receive_begin(&mut buffer[..]) }.map_err(explain)?;
    }
    ready();
    let mut next = 0;
    while next < QUEUE {
        take(&mut driver, &mut buffers, &tokens)?;
        next += 1;
    }
    // No buffer is left. The other direction works; the host hears it and sends more than anybody keeps.
    tell(&mut driver, b"FULL")?;
    let mut sector = [0; 512];
    while !sector.starts_with(b"FLOODED") {
        disk.read_blocks(0, &mut sector).map_err(explain)?;
    }
    let mut buffer = [0; BUFFER];
    loop {
        let (_, length) = driver.receive_wait(&mut buffer).map_err(explain)?;
        let frame = plain(&mut buffer, length)?;
        if frame[12..14] == EXPERIMENT && frame[14..].starts_with(END) {
            return tell(&mut driver, END);
        }
    }
}

/// Waits for a frame in any of the buffers.
fn take(
    driver: &mut Driver,
    buffers: &mut [Box<[u8; BUFFER]>],
    tokens: &[u16; QUEUE],
) -> Result<(), Failure> {
    let token = loop {
        if let Some(token) = driver.poll_receive() {
            break token;
        }
        core::hint::spin_loop();
    };
    let place = tokens.iter().position(|&t| t == token);
    let buffer = &mut buffers[place.ok_or("a buffer came back that is not there")?];
    // SAFETY: this is the buffer that the token is of.
    let (_, length) =
        unsafe { driver.receive_complete(token, &mut buffer[..]) }.map_err(explain)?;
    plain(&mut buffer[..], length)?;
    Ok(())
}

/// Sends the host a word.
fn tell(driver: &mut Driver, word: &[u8]) -> Result<(), Failure> {
    let mut frame = [0; 60];
    frame[..6].fill(0xFF);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&EXPERIMENT);
    frame[14..14 + word.len()].copy_from_slice(word);
    driver.send(&frame).map_err(explain)
}
