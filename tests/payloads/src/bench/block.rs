//! 4 KiB reads of device 0, the disk of 1 MiB whose sector N starts with N as 8 bytes. The queue is driven here, because
//! the driver of `virtio-drivers` has at most 16 requests at a time. It polls and asks for no interrupts.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

use super::device::{Device, open};
use super::{measure, ticks};
use crate::Failure;
use crate::console::print;
use crate::memory::Payload;
use crate::pci::explain;

/// Bytes of a read, and as sectors.
const BYTES: usize = 4096;
const SECTORS: usize = BYTES / 512;
/// Reads that the disk has room for.
const PLACES: usize = 2048 / SECTORS;
/// Descriptors: three for each of 32 requests, as a power of two.
const QUEUE: usize = 128;
const DEEPEST: usize = 32;
const REQUESTS: usize = 40_000;

/// VIRTIO_F_VERSION_1 (virtio 1.3 §6).
const VERSION_1: u64 = 1 << 32;
/// VIRTIO_BLK_T_IN and VIRTIO_BLK_S_OK (virtio 1.3 §5.2.6).
const READ: u8 = 0;
const OK: u8 = 0;

struct Disk {
    transport: Device,
    queue: VirtQueue<Payload, QUEUE>,
}

/// A request and its memory.
struct Request {
    header: [u8; 16],
    data: [u8; BYTES],
    status: [u8; 1],
    /// Where it reads, in reads from the start.
    place: usize,
}

impl Disk {
    fn open(line: &str) -> Result<Self, Failure> {
        let mut transport = open(line, DeviceType::Block)?;
        let driver = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(DeviceStatus::empty());
        transport.set_status(driver);
        let features = transport.read_device_features();
        transport.write_driver_features(features & VERSION_1);
        transport.set_status(driver | DeviceStatus::FEATURES_OK);
        let mut queue = VirtQueue::new(&mut transport, 0, false, false).map_err(explain)?;
        queue.set_dev_notify(false);
        transport.finish_init();
        Ok(Self { transport, queue })
    }

    /// Offers a request and returns its token; the device is not told.
    fn offer(&mut self, request: &mut Request) -> Result<u16, Failure> {
        let sector = ((request.place % PLACES) * SECTORS) as u64;
        request.header[0] = READ;
        request.header[8..].copy_from_slice(&sector.to_le_bytes());
        request.status = [0xFF];
        let inputs = [&request.header[..]];
        let mut outputs = [&mut request.data[..], &mut request.status[..]];
        // SAFETY: requests are boxed and live until the machine ends; nobody touches one before it was returned.
        unsafe { self.queue.add(&inputs, &mut outputs) }.map_err(explain)
    }

    /// Tells the device of what was offered, if it wants to know.
    fn kick(&mut self) {
        fence(Ordering::SeqCst);
        if self.queue.should_notify() {
            self.transport.notify(0);
        }
    }

    /// The token of a request that was returned. Waits for one.
    fn wait(&self) -> u16 {
        loop {
            if let Some(token) = self.queue.peek_used() {
                return token;
            }
            core::hint::spin_loop();
        }
    }

    /// Takes back a request that was returned, and looks at what it read.
    fn take(&mut self, token: u16, request: &mut Request) -> Result<(), Failure> {
        let inputs = [&request.header[..]];
        let mut outputs = [&mut request.data[..], &mut request.status[..]];
        // SAFETY: these are the buffers that were offered with this token.
        unsafe { self.queue.pop_used(token, &inputs, &mut outputs) }.map_err(explain)?;
        let first = ((request.place % PLACES) * SECTORS) as u64;
        if request.status != [OK] || request.data[..8] != first.to_le_bytes() {
            return Err(alloc::format!(
                "sector {first}: status {}, {:?}",
                request.status[0],
                &request.data[..8]
            ));
        }
        Ok(())
    }

    /// Reads [`REQUESTS`] times, `depth` of them at a time.
    fn read(&mut self, depth: usize) -> Result<(), Failure> {
        let request = |place| Request {
            header: [0; 16],
            data: [0; BYTES],
            status: [0],
            place,
        };
        let mut requests: Vec<Box<Request>> =
            (0..depth).map(|place| Box::new(request(place))).collect();
        let mut owners = [0; QUEUE];
        for (owner, request) in requests.iter_mut().enumerate() {
            owners[usize::from(self.offer(request)?)] = owner;
        }
        self.kick();
        let mut offered = depth;
        for _ in 0..REQUESTS {
            let token = self.wait();
            let owner = owners[usize::from(token)];
            let request = &mut requests[owner];
            self.take(token, request)?;
            if offered < REQUESTS {
                request.place = offered;
                owners[usize::from(self.offer(request)?)] = owner;
                self.kick();
                offered += 1;
            }
        }
        Ok(())
    }
}

/// Reads at depth 1 and 32, and how long single ones take.
pub fn run(line: &str) -> Result<(), Failure> {
    let mut disk = Disk::open(line)?;
    for (name, depth) in [("read-4k-depth-1", 1), ("read-4k-depth-32", DEEPEST)] {
        measure(name, REQUESTS, REQUESTS * BYTES, || disk.read(depth))?;
    }
    latencies(&mut disk)
}

/// From before the kick to after the completion.
fn latencies(disk: &mut Disk) -> Result<(), Failure> {
    let mut request = Box::new(Request {
        header: [0; 16],
        data: [0; BYTES],
        status: [0],
        place: 0,
    });
    let mut took = Vec::with_capacity(REQUESTS);
    measure("latency-4k", REQUESTS, REQUESTS * BYTES, || {
        for place in 0..REQUESTS {
            request.place = place;
            disk.offer(&mut request)?;
            let start = ticks();
            disk.kick();
            let token = disk.wait();
            took.push(ticks() - start);
            disk.take(token, &mut request)?;
        }
        Ok(())
    })?;
    took.sort_unstable();
    let (median, late) = (took[REQUESTS / 2], took[REQUESTS / 100 * 99]);
    print(format_args!(
        "TICKS latency-4k median {median} p99 {late}\n"
    ));
    Ok(())
}
