//! virtio-balloon: gives 16 MiB that it has used back to the host, in both ways, and takes them again. The host looks at
//! the monitor's memory in between: the payload says how far it is, and the host answers with the balloon's size.

use alloc::vec::Vec;
use core::hint::spin_loop;

use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::{DeviceStatus, DeviceType, Transport};

use crate::Failure;
use crate::console::print;
use crate::memory::Payload;
use crate::pci::{Pci, explain, open};

/// RAM that nothing else here uses: 16 MiB from 32 MiB on.
const START: usize = 32 << 20;
const PAGE: usize = 4096;
const PAGES: usize = 4096;
/// Page numbers that Linux sends at a time.
const AT_A_TIME: usize = 256;
/// A block that Linux reports.
const BLOCK: usize = 2 << 20;

/// VERSION_1; reports; deflate on OOM; statistics (virtio 1.3 §5.5.3).
const FEATURES: u64 = 1 << 32 | 1 << 5 | 1 << 2 | 1 << 1;
/// Offsets in the configuration (virtio 1.3 §5.5.4).
const NUM_PAGES: usize = 0;
const ACTUAL: usize = 4;
/// Bytes of memory in all (virtio 1.3 §5.5.6.4).
const TOTAL_MEMORY: u16 = 5;

type Queue = VirtQueue<Payload, 64>;

/// A driver for our balloon; the crate has none.
struct Balloon {
    transport: Pci,
    inflate: Queue,
    deflate: Queue,
    statistics: Queue,
    reporting: Queue,
    /// The statistics that the device has: a tag and how often they have been sent.
    figures: [u8; 10],
    sent: u64,
    token: Option<u16>,
}

impl Balloon {
    fn start() -> Result<Self, Failure> {
        let mut transport = open(DeviceType::MemoryBalloon, 0, false)?;
        let mut status = DeviceStatus::empty();
        transport.set_status(status);
        status |= DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(status);
        let offered = transport.read_device_features();
        if offered & FEATURES != FEATURES {
            return Err(alloc::format!("it offers {offered:#x}"));
        }
        transport.write_driver_features(FEATURES);
        status |= DeviceStatus::FEATURES_OK;
        transport.set_status(status);
        let mut queue = |index| Queue::new(&mut transport, index, false, false).map_err(explain);
        let (inflate, deflate, statistics, reporting) =
            (queue(0)?, queue(1)?, queue(2)?, queue(3)?);
        transport.set_status(status | DeviceStatus::DRIVER_OK);
        Ok(Self {
            transport,
            inflate,
            deflate,
            statistics,
            reporting,
            figures: [0; 10],
            sent: 0,
            token: None,
        })
    }

    /// Sends new statistics if the device has given the last ones back.
    fn serve_statistics(&mut self) -> Result<(), Failure> {
        if let Some(token) = self.token {
            if !self.statistics.can_pop() {
                return Ok(());
            }
            // SAFETY: the buffer that was added with this token.
            let popped = unsafe { self.statistics.pop_used(token, &[&self.figures], &mut []) };
            popped.map_err(explain)?;
        }
        self.sent += 1;
        self.figures[..2].copy_from_slice(&TOTAL_MEMORY.to_le_bytes());
        self.figures[2..].copy_from_slice(&self.sent.to_le_bytes());
        // SAFETY: the payload does not touch the buffer until it has been popped, and it lives as long as this.
        let token = unsafe { self.statistics.add(&[&self.figures], &mut []) };
        self.token = Some(token.map_err(explain)?);
        self.transport.notify(2);
        Ok(())
    }

    /// Says that it has come so far, and waits until the host wants this many pages.
    fn wait(&mut self, said: &str, wanted: u32) -> Result<(), Failure> {
        print(format_args!("{said}\n"));
        loop {
            let pages: u32 = self
                .transport
                .read_config_space(NUM_PAGES)
                .map_err(explain)?;
            if pages == wanted {
                return Ok(());
            }
            self.serve_statistics()?;
            spin_loop();
        }
    }

    /// Names all pages on the inflate or the deflate queue, and says how many the balloon then has.
    fn name_pages(&mut self, give: bool) -> Result<(), Failure> {
        let first = START / PAGE;
        let numbers: Vec<u32> = (first..first + PAGES).map(|page| page as u32).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|page| page.to_le_bytes()).collect();
        let queue = match give {
            true => &mut self.inflate,
            false => &mut self.deflate,
        };
        for request in bytes.chunks(AT_A_TIME * 4) {
            let done = queue.add_notify_wait_pop(&[request], &mut [], &mut self.transport);
            done.map_err(explain)?;
        }
        let actual = if give { PAGES as u32 } else { 0 };
        let told = self.transport.write_config_space(ACTUAL, actual);
        told.map_err(explain)
    }

    /// Reports all pages as free, as Linux does.
    fn report(&mut self) -> Result<(), Failure> {
        // SAFETY: RAM that nothing else uses.
        let memory = unsafe { core::slice::from_raw_parts_mut(START as *mut u8, PAGES * PAGE) };
        let mut blocks: Vec<&mut [u8]> = memory.chunks_mut(BLOCK).collect();
        let done = self
            .reporting
            .add_notify_wait_pop(&[], &mut blocks, &mut self.transport);
        done.map(drop).map_err(explain)
    }
}

/// Each page's first word.
fn words() -> impl Iterator<Item = *mut u64> {
    (0..PAGES).map(|page| (START + page * PAGE) as *mut u64)
}

fn fill() {
    for word in words() {
        // SAFETY: RAM that nothing else uses.
        unsafe { word.write_volatile(word as u64) };
    }
}

/// Every page must read as zero.
fn check_zero() -> Result<(), Failure> {
    for word in words() {
        // SAFETY: RAM that nothing else uses.
        let value = unsafe { word.read_volatile() };
        if value != 0 {
            return Err(alloc::format!(
                "{word:?} holds {value:#x} after it was given back"
            ));
        }
    }
    Ok(())
}

/// Fill, inflate, deflate, fill, report; the host sets the size after each look at the memory.
pub fn check() -> Result<(), Failure> {
    let mut balloon = Balloon::start()?;
    fill();
    balloon.wait("FILLED", PAGES as u32)?;
    balloon.name_pages(true)?;
    balloon.wait("INFLATED", 0)?;
    balloon.name_pages(false)?;
    check_zero()?;
    fill();
    balloon.wait("REFILLED", PAGES as u32)?;
    balloon.report()?;
    balloon.wait("REPORTED", 0)?;
    check_zero()
}
