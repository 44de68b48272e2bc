//! Bytes to the host's port 52, which reads them, then bytes from there.

use alloc::vec;

use virtio_drivers::Error;
use virtio_drivers::device::socket::{
    SocketError, VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType,
};
use virtio_drivers::transport::DeviceType;

use super::device::{Device, open};
use super::measure;
use crate::Failure;
use crate::memory::Payload;
use crate::pci::explain;

const HOST: VsockAddr = VsockAddr {
    cid: VMADDR_CID_HOST,
    port: 52,
};
const LOCAL_PORT: u32 = 4000;
/// Bytes of a receive buffer: 4 KiB behind the header.
const BUFFER: usize = 4096 + 44;
/// Room for what comes, as Linux has it.
const ROOM: u32 = 256 << 10;
/// Bytes of a measurement.
const TOTAL: usize = 64 << 20;

type Sockets = VsockConnectionManager<Payload, Device, BUFFER>;

/// Sends in packets of 4 and 64 KiB, then receives.
pub fn run(line: &str) -> Result<(), Failure> {
    let transport = open(line, DeviceType::Socket)?;
    let driver = VirtIOSocket::<Payload, Device, BUFFER>::new(transport).map_err(explain)?;
    let mut sockets = Sockets::new_with_capacity(driver, ROOM);
    sockets.connect(HOST, LOCAL_PORT).map_err(explain)?;
    while !connected(&mut sockets)? {}
    for (name, packet) in [("send-4k", 4096), ("send-64k", 65_536)] {
        let data = vec![0x5A; packet];
        measure(name, TOTAL / packet, TOTAL, || {
            (0..TOTAL / packet).try_for_each(|_| send(&mut sockets, &data))
        })?;
    }
    measure("receive", TOTAL / 4096, TOTAL, || receive(&mut sockets))
}

fn connected(sockets: &mut Sockets) -> Result<bool, Failure> {
    let event = sockets.wait_for_event().map_err(explain)?.event_type;
    if let VsockEventType::Disconnected { .. } = event {
        return Err("the host ends the connection".into());
    }
    Ok(event == VsockEventType::Connected)
}

/// Sends a packet once the host has room for it. What the host has said of its room is heard first: where there seems to be
/// too little, the driver asks, and each question has an answer that is in the way of the next.
fn send(sockets: &mut Sockets, packet: &[u8]) -> Result<(), Failure> {
    loop {
        while sockets.poll().map_err(explain)?.is_some() {}
        match sockets.send(HOST, LOCAL_PORT, packet) {
            Ok(()) => return Ok(()),
            Err(Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => {
                connected(sockets)?;
            }
            Err(error) => return Err(explain(error)),
        }
    }
}

fn receive(sockets: &mut Sockets) -> Result<(), Failure> {
    let mut buffer = vec![0; ROOM as usize];
    // The host sends once it is told to.
    send(sockets, b"send")?;
    let (mut received, mut told) = (0, 0);
    while received < TOTAL {
        connected(sockets)?;
        let count = sockets
            .recv(HOST, LOCAL_PORT, &mut buffer)
            .map_err(explain)?;
        if buffer[..count]
            .iter()
            .step_by(4096)
            .any(|&byte| byte != 0xA5)
        {
            return Err("other bytes come".into());
        }
        received += count;
        if received - told >= ROOM as usize / 2 {
            told = received;
            sockets.update_credit(HOST, LOCAL_PORT).map_err(explain)?;
        }
    }
    Ok(())
}
