//! virtio-vsock: an echo server on port 1234 that serves one connection; and a connection to the host's port 52, to which
//! it sends a greeting first.

use alloc::vec;

use virtio_drivers::device::socket::{
    VMADDR_CID_HOST, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType,
};
use virtio_drivers::transport::DeviceType;

use crate::Failure;
use crate::console::print;
use crate::memory::Payload;
use crate::pci::{Pci, explain, open};

const HOST_PORT: u32 = 52;
const LOCAL_PORT: u32 = 4000;
const ECHO_PORT: u32 = 1234;

/// Greets the host, then echoes until the host's connection ends.
pub fn check() -> Result<(), Failure> {
    let driver =
        VirtIOSocket::<Payload, Pci>::new(open(DeviceType::Socket, 0, false)?).map_err(explain)?;
    if driver.guest_cid() != 42 {
        return Err(alloc::format!("the guest's cid is {}", driver.guest_cid()));
    }
    let mut sockets = VsockConnectionManager::new(driver);
    let host = VsockAddr {
        cid: VMADDR_CID_HOST,
        port: HOST_PORT,
    };
    sockets.connect(host, LOCAL_PORT).map_err(explain)?;
    loop {
        match sockets.wait_for_event().map_err(explain)?.event_type {
            VsockEventType::Connected => break,
            VsockEventType::Disconnected { .. } => return Err("the host refused port 52".into()),
            _ => {}
        }
    }
    sockets
        .send(host, LOCAL_PORT, b"greetings from the payload")
        .map_err(explain)?;
    sockets.shutdown(host, LOCAL_PORT).map_err(explain)?;
    sockets.listen(ECHO_PORT);
    print(format_args!("LISTENING\n"));
    echo(&mut sockets)
}

fn echo(sockets: &mut VsockConnectionManager<Payload, Pci>) -> Result<(), Failure> {
    let mut buffer = vec![0; 1024];
    loop {
        let event = sockets.wait_for_event().map_err(explain)?;
        if event.destination.port != ECHO_PORT {
            continue;
        }
        match event.event_type {
            VsockEventType::Received { .. } => loop {
                let count = sockets
                    .recv(event.source, ECHO_PORT, &mut buffer)
                    .map_err(explain)?;
                if count == 0 {
                    break;
                }
                sockets
                    .send(event.source, ECHO_PORT, &buffer[..count])
                    .map_err(explain)?;
                sockets
                    .update_credit(event.source, ECHO_PORT)
                    .map_err(explain)?;
            },
            VsockEventType::Disconnected { .. } => return Ok(()),
            _ => {}
        }
    }
}
