//! The device against a driver on mock rings.

mod hostile;
mod lifecycle;
mod statistics;

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::*;
use crate::GuestRam;
use crate::virtio::mock::{DATA, Driver, Part, SEAM, TestInterrupt, ram};
use crate::worker::ThreadKind;

/// Numbers of the queues when all are there.
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
const REPORTING: usize = 3;

/// Everything that a balloon can offer.
const ALL: BalloonConfig = BalloonConfig {
    deflate_on_oom: true,
    statistics: true,
    reporting: true,
};

/// Takes notes of what is given back, which must be whole pages of RAM.
struct Notes {
    memory: &'static GuestRam,
    ranges: Mutex<Vec<(u64, u64)>>,
    refuse: AtomicBool,
}

impl ReleasePages for Notes {
    fn release(&self, start: GuestAddress, length: u64) -> io::Result<()> {
        assert!(start.0.is_multiple_of(4096) && length.is_multiple_of(4096) && length > 0);
        assert!(self.memory.check_range(start, length as usize));
        if self.refuse.load(Ordering::SeqCst) {
            return Err(io::Error::other("refused"));
        }
        self.ranges.lock().unwrap().push((start.0, length));
        Ok(())
    }
}

struct Rig {
    balloon: Balloon,
    drivers: Vec<Driver>,
    notes: Arc<Notes>,
}

impl Rig {
    fn new(config: BalloonConfig) -> Self {
        let mut rig = Self::idle(config);
        rig.activate_all().unwrap();
        rig
    }

    /// The driver has not come yet.
    fn idle(config: BalloonConfig) -> Self {
        let memory = ram();
        let notes = Arc::new(Notes {
            memory,
            ranges: Mutex::default(),
            refuse: AtomicBool::new(false),
        });
        let worker = SharedWorker::spawn(ThreadKind::Slow, "test").unwrap();
        let balloon = Balloon::new(config, Arc::clone(&notes) as _, worker).unwrap();
        let drivers = drivers(&balloon, memory, &Arc::default());
        Self {
            balloon,
            drivers,
            notes,
        }
    }

    fn activate_all(&mut self) -> Result<(), ActivateError> {
        let queues = self.drivers.iter().map(Driver::active).collect();
        self.activate(queues)
    }

    fn activate(&mut self, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        self.balloon.activate(Activation {
            memory: self.notes.memory.clone(),
            features: self.balloon.features(),
            queues,
            interrupt: Arc::clone(self.interrupt()) as _,
        })
    }

    fn interrupt(&self) -> &Arc<TestInterrupt> {
        &self.drivers[INFLATE].interrupt
    }

    /// A new driver on the same memory.
    fn load_driver_again(&mut self) {
        let interrupt = Arc::clone(self.interrupt());
        self.drivers = drivers(&self.balloon, self.notes.memory, &interrupt);
        self.activate_all().unwrap();
    }

    /// Offers a chain on a queue and waits for it.
    fn request(&mut self, queue: usize, parts: &[Part]) {
        let driver = &mut self.drivers[queue];
        let head = driver.chain(parts);
        assert_eq!(driver.run(head), 0);
    }

    /// Inflates by pages of these numbers.
    fn inflate(&mut self, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.drivers[INFLATE].write(DATA, &bytes);
        self.request(INFLATE, &[(DATA, bytes.len() as u32, false)]);
    }

    /// What has been given back since the last call: address and length in pages.
    fn released(&self) -> Vec<(u64, u64)> {
        let ranges = std::mem::take(&mut *self.notes.ranges.lock().unwrap());
        let in_pages = |(start, length): (u64, u64)| (start / 4096, length / 4096);
        ranges.into_iter().map(in_pages).collect()
    }

    /// Asks the guest for statistics.
    fn ask(&self) -> Asked {
        let (sender, receiver) = channel();
        let answer = move |report| sender.send(report).unwrap_or_default();
        self.balloon.control().refresh(Box::new(answer));
        Asked(receiver)
    }

    fn metrics(&self) -> BalloonMetrics {
        self.balloon.control().metrics()
    }

    fn assert_serves(&mut self) {
        self.inflate(&[0x200]);
        assert_eq!(self.released(), [(0x200, 1)]);
    }
}

/// A report that is on its way.
struct Asked(Receiver<BalloonReport>);

impl Asked {
    /// Waits for it; the minute is there to end a broken test, not to measure.
    #[track_caller]
    fn get(self) -> BalloonReport {
        self.0.recv_timeout(Duration::from_secs(60)).unwrap()
    }
}

fn drivers(
    balloon: &Balloon,
    memory: &'static GuestRam,
    interrupt: &Arc<TestInterrupt>,
) -> Vec<Driver> {
    let driver = |index| Driver::new(memory, interrupt, index as u16, QUEUE_SIZE, true);
    (0..balloon.queue_sizes().len()).map(driver).collect()
}

#[test]
fn pages_are_given_back_in_few_ranges_each_once() {
    let mut rig = Rig::new(ALL);
    rig.inflate(&[0x203, 0x201, 0x209, 0x202, 0x203]);
    assert_eq!(rig.released(), [(0x201, 3), (0x209, 1)]);
    assert_eq!(rig.metrics().inflated_bytes, 4 * 4096);
    // Again: they may be gone already, and nobody minds.
    rig.inflate(&[0x203]);
    assert_eq!(rig.released(), [(0x203, 1)]);
    assert_eq!(rig.metrics().malformed, 0);
}

#[test]
fn page_numbers_may_be_cut_into_descriptors_anywhere() {
    let mut rig = Rig::new(ALL);
    let bytes: Vec<u8> = (0x300_u32..0x310).flat_map(u32::to_le_bytes).collect();
    rig.drivers[INFLATE].write(DATA, &bytes);
    let parts = [
        (DATA, 3, false),
        (DATA + 3, 30, false),
        (DATA + 33, 31, false),
    ];
    rig.request(INFLATE, &parts);
    assert_eq!(rig.released(), [(0x300, 16)]);
    let driver = &mut rig.drivers[INFLATE];
    let head = driver.indirect_chain(DATA + 0x1000, &parts);
    driver.run(head);
    assert_eq!(rig.released(), [(0x300, 16)]);
}

#[test]
fn ranges_go_on_from_one_region_of_ram_into_the_next() {
    let mut rig = Rig::new(ALL);
    let seam = (SEAM / 4096) as u32;
    rig.inflate(&[seam, seam - 1]);
    assert_eq!(rig.released(), [(u64::from(seam) - 1, 2)]);
}

#[test]
fn as_many_pages_as_a_page_has_room_for_are_taken_at_a_time() {
    let mut rig = Rig::new(ALL);
    let numbers: Vec<u32> = (0x200..0x200 + 1024).rev().collect();
    rig.inflate(&numbers);
    assert_eq!(rig.released(), [(0x200, 1024)]);
}

#[test]
fn deflating_takes_nothing() {
    let mut rig = Rig::new(ALL);
    rig.drivers[DEFLATE].write(DATA, &0x200_u32.to_le_bytes());
    rig.request(DEFLATE, &[(DATA, 4, false)]);
    assert_eq!(rig.released(), []);
    assert_eq!(rig.metrics(), BalloonMetrics::default());
    rig.assert_serves();
}

#[test]
fn reported_ranges_are_merged_and_given_back() {
    let mut rig = Rig::new(ALL);
    let parts = [
        (0x40_0000, 0x20_0000, true),
        (0x20_0000, 0x20_0000, true),
        (0x80_0000, 0x1000, true),
    ];
    rig.request(REPORTING, &parts);
    assert_eq!(rig.released(), [(0x200, 0x400), (0x800, 1)]);
    assert_eq!(rig.metrics().reported_bytes, 0x40_1000);
    assert_eq!(rig.metrics().inflated_bytes, 0);
}

#[test]
fn a_host_that_takes_nothing_back_does_not_stop_the_guest() {
    let mut rig = Rig::new(ALL);
    rig.notes.refuse.store(true, Ordering::SeqCst);
    rig.inflate(&[0x200, 0x202]);
    assert_eq!(rig.metrics().refused, 2);
    assert_eq!(rig.metrics().inflated_bytes, 0);
    rig.notes.refuse.store(false, Ordering::SeqCst);
    rig.assert_serves();
}

#[test]
fn the_features_and_queues_are_those_that_were_asked_for() {
    let offered = |deflate_on_oom, statistics, reporting| {
        let config = BalloonConfig {
            deflate_on_oom,
            statistics,
            reporting,
        };
        let rig = Rig::idle(config);
        (rig.balloon.features(), rig.balloon.queue_sizes().len())
    };
    assert_eq!(offered(false, false, false), (0, 2));
    assert_eq!(offered(true, false, false), (1 << 2, 2));
    assert_eq!(offered(false, true, false), (1 << 1, 3));
    assert_eq!(offered(false, false, true), (1 << 5, 3));
    assert_eq!(offered(true, true, true), (1 << 1 | 1 << 2 | 1 << 5, 4));
}

#[test]
fn a_driver_without_statistics_has_its_reports_on_the_third_queue() {
    let mut rig = Rig::idle(ALL);
    let queues = rig.drivers.iter().take(3).map(Driver::active).collect();
    let activation = Activation {
        memory: rig.notes.memory.clone(),
        features: 1 << F_PAGE_REPORTING,
        queues,
        interrupt: Arc::clone(rig.interrupt()) as _,
    };
    rig.balloon.activate(activation).unwrap();
    rig.request(STATISTICS, &[(0x20_0000, 0x1000, true)]);
    assert_eq!(rig.released(), [(0x200, 1)]);
}

#[test]
fn the_driver_is_told_of_a_new_target_and_tells_how_far_it_is() {
    let mut rig = Rig::new(ALL);
    let control = rig.balloon.control();
    control.set_target(3);
    assert_eq!(rig.interrupt().told().config, 1);
    let mut configuration = [0xFF; 12];
    rig.balloon.read_config(0, &mut configuration);
    assert_eq!(configuration, [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    rig.balloon.write_config(4, &0x201_u32.to_le_bytes());
    assert_eq!(control.report().target_pages, 0x300);
    assert_eq!(control.report().actual_pages, 0x201);
    rig.balloon.read_config(4, &mut configuration[..4]);
    assert_eq!(configuration[..4], [1, 2, 0, 0]);
}

#[test]
fn a_target_from_before_the_driver_is_found_by_it() {
    let mut rig = Rig::idle(ALL);
    rig.balloon.control().set_target(1);
    assert_eq!(rig.interrupt().told().config, 0);
    rig.activate_all().unwrap();
    assert_eq!(rig.interrupt().told().config, 1);
    let mut target = [0; 4];
    rig.balloon.read_config(0, &mut target);
    assert_eq!(u32::from_le_bytes(target), 256);
}
