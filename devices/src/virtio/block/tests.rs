mod direct;
mod files;
mod hostile;
mod lifecycle;
mod limits;
mod model;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use tempfile::NamedTempFile;
use virtio_queue::QueueT;

use super::request::{MAX_RANGE_SECTORS, kind};
use super::*;
use crate::virtio::mock::{DATA, Driver, HOLE, Part, SEAM, TestInterrupt, ram};

/// Makes each test run on both engines.
macro_rules! on_both_engines {
    ($($test:ident),* $(,)?) => {
        mod io_uring {
            $(#[test] fn $test() { super::$test(super::EngineKind::IoUring) })*
        }
        mod sync {
            $(#[test] fn $test() { super::$test(super::EngineKind::Sync) })*
        }
    };
}
use on_both_engines;

/// Where requests keep their header and their status.
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
/// Where their data is.
const BUFFER: u64 = DATA + 0x1000;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// Not written by a device.
const NONE: u8 = 0xEE;

fn config(engine: EngineKind) -> BlockConfig {
    BlockConfig {
        id: "rootfs".to_owned(),
        read_only: false,
        writeback: true,
        engine,
        queues: 1,
        limits: limiter::Limits::default(),
    }
}

/// A device, its file, its driver.
struct Rig {
    block: Block,
    file: NamedTempFile,
    driver: Driver,
}

struct Setup {
    config: BlockConfig,
    direct: bool,
    event_idx: bool,
    sectors: u64,
    /// Features that the driver leaves.
    refused: u64,
    /// Entries of the queue.
    size: u16,
}

impl Setup {
    fn new(engine: EngineKind) -> Self {
        Self {
            config: config(engine),
            direct: false,
            event_idx: true,
            sectors: 2048,
            refused: 0,
            size: QUEUE_SIZE,
        }
    }

    fn start(self) -> Rig {
        let file = patterned(self.sectors);
        let engine = self.config.engine;
        let block =
            Block::new(open(&file, self.config.read_only, self.direct), self.config).unwrap();
        // A machine without io_uring must not pass these tests on the other engine.
        let uring = block.lanes[0]
            .engine
            .as_ref()
            .unwrap()
            .descriptor()
            .is_some();
        assert_eq!(
            uring,
            engine == EngineKind::IoUring,
            "no io_uring on this machine"
        );
        let driver = Driver::new(
            ram(),
            &Arc::new(TestInterrupt::default()),
            0,
            self.size,
            self.event_idx,
        );
        let mut rig = Rig {
            block,
            file,
            driver,
        };
        let features = rig.block.features() & !self.refused;
        let queues = vec![rig.driver.active()];
        rig.activate(features, queues).unwrap();
        rig
    }
}

impl Rig {
    fn new(engine: EngineKind) -> Self {
        Setup::new(engine).start()
    }

    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        self.block.activate(Activation {
            memory: self.driver.memory.clone(),
            features,
            queues,
            interrupt: self.driver.interrupt.clone(),
        })
    }

    /// Sends header, `data` and a status byte; returns status and used length.
    fn request(&mut self, kind: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        self.driver.header(HEADER, kind, sector);
        let mut parts = vec![(HEADER, 16, false)];
        parts.extend_from_slice(data);
        parts.push((STATUS, 1, true));
        self.send(&parts)
    }

    /// Sends a chain as it is; returns what is in STATUS afterwards, and the used length.
    fn send(&mut self, parts: &[Part]) -> (u8, u32) {
        let head = self.driver.chain(parts);
        self.finish(head)
    }

    fn finish(&mut self, head: u16) -> (u8, u32) {
        self.driver.write(STATUS, &[NONE]);
        let length = self.driver.run(head);
        (self.driver.read(STATUS, 1)[0], length)
    }

    fn read(&mut self, sector: u64, length: u32) -> Vec<u8> {
        self.driver.write(BUFFER, &vec![NONE; length as usize]);
        let answer = self.request(kind::IN, sector, &[(BUFFER, length, true)]);
        assert_eq!(answer, (OK, length + 1));
        self.driver.read(BUFFER, length as usize)
    }

    fn write(&mut self, sector: u64, data: &[u8]) {
        self.driver.write(BUFFER, data);
        let answer = self.request(kind::OUT, sector, &[(BUFFER, data.len() as u32, false)]);
        assert_eq!(answer, (OK, 1));
    }

    /// What the file has at `sector`.
    fn on_disk(&self, sector: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.file
            .as_file()
            .read_exact_at(&mut bytes, sector * 512)
            .unwrap();
        bytes
    }

    /// The device still does what it is there for.
    fn assert_serves(&mut self) {
        let expected = self.on_disk(3, 1024);
        assert_eq!(self.read(3, 1024), expected);
    }
}

/// Never zero, and different in neighbouring sectors.
fn pattern(sector: u64) -> [u8; 512] {
    std::array::from_fn(|i| ((sector * 7 + i as u64 * 3) % 251 + 1) as u8)
}

fn patterned(sectors: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..sectors).flat_map(pattern).collect();
    file.as_file().write_all_at(&bytes, 0).unwrap();
    file
}

fn open(file: &NamedTempFile, read_only: bool, direct: bool) -> File {
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(file.path())
        .unwrap()
}

/// `struct virtio_blk_discard_write_zeroes`.
fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&sector.to_le_bytes());
    bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
    bytes[12..].copy_from_slice(&flags.to_le_bytes());
    bytes
}

impl Rig {
    fn ranges(&mut self, kind: u32, ranges: &[[u8; 16]]) -> (u8, u32) {
        let bytes = ranges.concat();
        self.driver.write(BUFFER, &bytes);
        self.request(kind, 0, &[(BUFFER, bytes.len() as u32, false)])
    }
}

on_both_engines!(
    a_read_gives_what_is_in_the_file,
    a_write_changes_the_file_and_nothing_around_it,
    data_may_be_scattered_over_many_descriptors_of_odd_length,
    data_may_cross_from_one_region_of_ram_into_the_next,
    a_header_may_be_split_and_share_its_descriptor_with_data,
    a_status_may_share_its_descriptor_with_data,
    descriptors_without_bytes_are_skipped,
    an_indirect_chain_is_served,
    a_flush_succeeds_if_it_was_accepted,
    without_flush_writes_are_durable_and_flush_is_unknown,
    the_id_is_twenty_bytes_of_the_drives_name,
    a_discard_frees_the_range_and_nothing_around_it,
    write_zeroes_with_and_without_unmap_reads_as_zeroes,
    an_unknown_request_is_unsupported,
    many_requests_at_once_all_end,
    the_driver_is_interrupted_no_more_often_than_it_asked,
    without_event_idx_the_driver_is_told_once_of_each_request,
    the_device_asks_for_a_kick_only_when_it_is_idle,
    ring_indices_wrap_around,
    two_queues_work_side_by_side,
    a_driver_may_use_the_second_queue_only,
    a_small_queue_serves_a_long_chain_through_an_indirect_table,
);

fn a_read_gives_what_is_in_the_file(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    assert_eq!(rig.read(5, 1024), [pattern(5), pattern(6)].concat());
    assert_eq!(rig.read(2047, 512), pattern(2047));
    let metrics = rig.block.metrics();
    assert_eq!((metrics.completed, metrics.read_bytes), (2, 1536));
    assert_eq!((metrics.malformed, metrics.failed), (0, 0));
}

fn a_write_changes_the_file_and_nothing_around_it(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.write(9, &[0x5A; 1024]);
    assert_eq!(rig.on_disk(8, 512), pattern(8));
    assert_eq!(rig.on_disk(9, 1024), [0x5A; 1024]);
    assert_eq!(rig.on_disk(11, 512), pattern(11));
    assert_eq!(rig.read(9, 512), [0x5A; 512]);
    assert_eq!(rig.block.metrics().written_bytes, 1024);
}

fn data_may_be_scattered_over_many_descriptors_of_odd_length(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    let mut parts: Vec<Part> = (0..63).map(|i| (BUFFER + i * 0x1007, 511, true)).collect();
    parts.push((BUFFER + 0x8_0000, 512 + 63, true));
    assert_eq!(rig.request(kind::IN, 100, &parts), (OK, 64 * 512 + 1));
    let read: Vec<u8> = parts
        .iter()
        .flat_map(|&(at, length, _)| rig.driver.read(at, length as usize))
        .collect();
    assert_eq!(read, rig.on_disk(100, 64 * 512));
}

fn data_may_cross_from_one_region_of_ram_into_the_next(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    assert_eq!(
        rig.request(kind::IN, 4, &[(SEAM - 700, 1024, true)]),
        (OK, 1025)
    );
    assert_eq!(rig.driver.read(SEAM - 700, 1024), rig.on_disk(4, 1024));
    assert_eq!(
        rig.request(kind::OUT, 40, &[(SEAM - 700, 1024, false)]),
        (OK, 1)
    );
    assert_eq!(rig.on_disk(40, 1024), rig.on_disk(4, 1024));
}

fn a_header_may_be_split_and_share_its_descriptor_with_data(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.header(HEADER, kind::OUT, 20);
    rig.driver.write(HEADER + 16, &[0x77; 1024]);
    let parts = [
        (HEADER, 3, false),
        (HEADER + 3, 9, false),
        (HEADER + 12, 4 + 600, false),
        (HEADER + 616, 424, false),
        (STATUS + 0x1000, 1, true),
    ];
    let head = rig.driver.chain(&parts);
    assert_eq!(rig.driver.run(head), 1);
    assert_eq!(rig.driver.read(STATUS + 0x1000, 1), [OK]);
    assert_eq!(rig.on_disk(20, 1024), [0x77; 1024]);
    assert_eq!(rig.on_disk(22, 512), pattern(22));
}

fn a_status_may_share_its_descriptor_with_data(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.header(HEADER, kind::IN, 33);
    rig.driver.write(BUFFER, &[NONE; 514]);
    let head = rig
        .driver
        .chain(&[(HEADER, 16, false), (BUFFER, 513, true)]);
    assert_eq!(rig.driver.run(head), 513);
    assert_eq!(
        rig.driver.read(BUFFER, 514),
        [pattern(33).as_slice(), &[OK, NONE]].concat()
    );
}

fn descriptors_without_bytes_are_skipped(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.header(HEADER, kind::IN, 1);
    let parts = [
        (HOLE, 0, false),
        (HEADER, 16, false),
        (u64::MAX, 0, false),
        (BUFFER, 512, true),
        (BUFFER, 0, true),
        (STATUS, 1, true),
        (0, 0, true),
    ];
    assert_eq!(rig.send(&parts), (OK, 513));
    assert_eq!(rig.driver.read(BUFFER, 512), pattern(1));
}

fn an_indirect_chain_is_served(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.header(HEADER, kind::IN, 6);
    let parts = [
        (HEADER, 16, false),
        (BUFFER, 512, true),
        (BUFFER + 512, 512, true),
        (STATUS, 1, true),
    ];
    let head = rig.driver.indirect_chain(DATA + 0x8_0000, &parts);
    assert_eq!(rig.finish(head), (OK, 1025));
    assert_eq!(rig.driver.read(BUFFER, 1024), rig.on_disk(6, 1024));
}

fn a_flush_succeeds_if_it_was_accepted(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.write(0, &[1; 512]);
    assert_eq!(rig.request(kind::FLUSH, 0, &[]), (OK, 1));
    assert_eq!(rig.block.metrics().completed, 2);

    let mut setup = Setup::new(engine);
    setup.config.writeback = false;
    let mut rig = setup.start();
    assert_eq!(rig.block.features() & feature::FLUSH, 0);
    assert_eq!(rig.request(kind::FLUSH, 0, &[]), (UNSUPP, 1));
    rig.assert_serves();
}

fn without_flush_writes_are_durable_and_flush_is_unknown(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    setup.refused = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES;
    let mut rig = setup.start();
    rig.write(12, &[3; 2048]);
    assert_eq!(rig.on_disk(12, 2048), [3; 2048]);
    assert_eq!(rig.request(kind::FLUSH, 0, &[]), (UNSUPP, 1));
    assert_eq!(rig.ranges(kind::DISCARD, &[range(0, 8, 0)]), (UNSUPP, 1));
    assert_eq!(
        rig.ranges(kind::WRITE_ZEROES, &[range(0, 8, 0)]),
        (UNSUPP, 1)
    );
    assert_eq!(rig.on_disk(0, 512), pattern(0));
}

fn the_id_is_twenty_bytes_of_the_drives_name(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.write(BUFFER, &[NONE; 21]);
    assert_eq!(
        rig.request(
            kind::GET_ID,
            0,
            &[(BUFFER, 5, true), (BUFFER + 5, 15, true)]
        ),
        (OK, 21)
    );
    let id = rig.driver.read(BUFFER, 21);
    assert_eq!(&id[..7], b"rootfs\0");
    assert_eq!(&id[6..20], &[0; 14]);
    assert_eq!(id[20], NONE);
    assert_eq!(
        rig.request(kind::GET_ID, 0, &[(BUFFER, 19, true)]),
        (IOERR, 1)
    );

    let mut setup = Setup::new(engine);
    setup.config.id = "a-name-that-is-longer-than-twenty-bytes".to_owned();
    let mut rig = setup.start();
    assert_eq!(
        rig.request(kind::GET_ID, 0, &[(BUFFER, 20, true)]),
        (OK, 21)
    );
    assert_eq!(rig.driver.read(BUFFER, 20), b"a-name-that-is-longe");
}

fn a_discard_frees_the_range_and_nothing_around_it(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    assert_eq!(
        rig.ranges(
            kind::DISCARD,
            &[range(8, 16, 0), range(64, 8, 0), range(128, 8, 0)]
        ),
        (OK, 1)
    );
    for (start, end) in [(8, 24), (64, 72), (128, 136)] {
        assert_eq!(rig.on_disk(start - 1, 512), pattern(start - 1));
        assert_eq!(
            rig.on_disk(start, (end - start) as usize * 512),
            vec![0; (end - start) as usize * 512]
        );
        assert_eq!(rig.on_disk(end, 512), pattern(end));
    }
    assert_eq!(rig.file.as_file().metadata().unwrap().len(), 2048 * 512);
}

fn write_zeroes_with_and_without_unmap_reads_as_zeroes(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    assert_eq!(
        rig.ranges(kind::WRITE_ZEROES, &[range(3, 2, 0), range(801, 10, 1)]),
        (OK, 1)
    );
    assert_eq!(rig.on_disk(2, 512), pattern(2));
    assert_eq!(rig.read(3, 1024), [0; 1024]);
    assert_eq!(rig.on_disk(5, 512), pattern(5));
    assert_eq!(rig.on_disk(800, 512), pattern(800));
    assert_eq!(rig.read(801, 5120), [0; 5120]);
    assert_eq!(rig.on_disk(811, 512), pattern(811));
}

fn an_unknown_request_is_unsupported(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(
            rig.request(kind, 0, &[(BUFFER, 512, true)]),
            (UNSUPP, 1),
            "type {kind}"
        );
    }
    rig.assert_serves();
}

fn many_requests_at_once_all_end(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    let mut heads = Vec::new();
    // 85 chains of three descriptors are what a queue of 256 holds.
    for i in 0..85 {
        let at = BUFFER + i * 0x1000;
        rig.driver.header(at, kind::IN, i);
        rig.driver.write(at + 0xFFF, &[NONE]);
        let head = rig.driver.chain(&[
            (at, 16, false),
            (at + 0x200, 512, true),
            (at + 0xFFF, 1, true),
        ]);
        rig.driver.offer(head);
        heads.push(head);
    }
    rig.driver.kick();
    let mut used: Vec<u16> = rig
        .driver
        .wait(85)
        .into_iter()
        .map(|(head, _)| head)
        .collect();
    used.sort_unstable();
    assert_eq!(used, heads);
    for i in 0..85 {
        let at = BUFFER + i * 0x1000;
        assert_eq!(rig.driver.read(at + 0x200, 512), pattern(i));
        assert_eq!(rig.driver.read(at + 0xFFF, 1), [OK]);
    }
}

fn the_driver_is_interrupted_no_more_often_than_it_asked(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    rig.driver.set_used_event(10);
    for i in 0..11 {
        rig.driver.header(HEADER, kind::IN, 0);
        let head = rig.driver.chain(&[
            (HEADER, 16, false),
            (BUFFER + i * 512, 512, true),
            (STATUS, 1, true),
        ]);
        rig.driver.offer(head);
        rig.driver.kick();
    }
    rig.driver.interrupt.wait(|told| !told.queues.is_empty());
    assert_eq!(rig.driver.used_index(), 11);
    rig.block.suspend();
    assert_eq!(rig.driver.interrupt.told().queues, [0]);
}

fn without_event_idx_the_driver_is_told_once_of_each_request(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    setup.event_idx = false;
    let mut rig = setup.start();
    for _ in 0..600 {
        rig.assert_serves();
    }
    rig.driver.kick();
    rig.block.suspend();
    // Once for each: requests that follow one another cannot share an interrupt, and a kick for nothing causes none.
    assert_eq!(rig.driver.interrupt.told().queues, [0; 600]);
}

fn the_device_asks_for_a_kick_only_when_it_is_idle(engine: EngineKind) {
    let mut rig = Rig::new(engine);
    for _ in 0..5 {
        rig.assert_serves();
    }
    let queues = rig.block.suspend();
    assert_eq!(rig.driver.avail_event(), 5);
    assert_eq!(queues[0].queue.next_avail(), 5);
    assert_eq!(queues[0].queue.next_used(), 5);
}

fn ring_indices_wrap_around(engine: EngineKind) {
    for event_idx in [false, true] {
        let mut setup = Setup::new(engine);
        setup.event_idx = event_idx;
        let mut rig = setup.start();
        let mut queues = rig.block.suspend();
        rig.driver.start_at(u16::MAX - 2);
        queues[0].queue.set_next_avail(u16::MAX - 2);
        queues[0].queue.set_next_used(u16::MAX - 2);
        rig.activate(rig.block.features(), queues).unwrap();
        for _ in 0..6 {
            rig.assert_serves();
        }
        assert_eq!(rig.driver.used_index(), 3);
    }
}

fn two_queues_work_side_by_side(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    setup.config.queues = 2;
    let mut rig = setup.start();
    assert_eq!(rig.block.queue_sizes(), [QUEUE_SIZE, QUEUE_SIZE]);
    assert_ne!(rig.block.features() & feature::MQ, 0);
    rig.block.suspend();
    let mut second = Driver::new(
        rig.driver.memory,
        &rig.driver.interrupt,
        1,
        QUEUE_SIZE,
        true,
    );
    let first = Driver::new(
        rig.driver.memory,
        &rig.driver.interrupt,
        0,
        QUEUE_SIZE,
        true,
    );
    rig.driver = first;
    let queues = vec![rig.driver.active(), second.active()];
    rig.activate(rig.block.features(), queues).unwrap();
    for sector in 0..50 {
        rig.driver.header(HEADER, kind::IN, sector);
        let head = rig
            .driver
            .chain(&[(HEADER, 16, false), (BUFFER, 512, true), (STATUS, 1, true)]);
        rig.driver.offer(head);
        second.header(HEADER + 0x20, kind::OUT, 1000 + sector);
        second.write(BUFFER + 0x2000, &[sector as u8; 512]);
        let parts = [
            (HEADER + 0x20, 16, false),
            (BUFFER + 0x2000, 512, false),
            (STATUS + 0x20, 1, true),
        ];
        let other = second.chain(&parts);
        second.offer(other);
        rig.driver.kick();
        second.kick();
        assert_eq!(second.wait(1), [(other, 1)]);
        assert_eq!(rig.driver.wait(1), [(head, 513)]);
        assert_eq!(rig.driver.read(BUFFER, 512), pattern(sector));
        assert_eq!(rig.on_disk(1000 + sector, 512), [sector as u8; 512]);
    }
    let queues = rig.block.suspend();
    assert_eq!(
        queues.iter().map(|queue| queue.index).collect::<Vec<_>>(),
        [0, 1]
    );
    assert_eq!(rig.block.metrics().completed, 100);
}

fn a_driver_may_use_the_second_queue_only(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    setup.config.queues = 2;
    let mut rig = setup.start();
    rig.block.suspend();
    rig.driver = Driver::new(
        rig.driver.memory,
        &rig.driver.interrupt,
        1,
        QUEUE_SIZE,
        true,
    );
    let queues = vec![rig.driver.active()];
    rig.activate(rig.block.features(), queues).unwrap();
    rig.assert_serves();
    assert!(matches!(
        rig.activate(0, Vec::new()),
        Err(ActivateError::MissingQueue { got: 0, missing: 0 })
    ));
}

fn a_small_queue_serves_a_long_chain_through_an_indirect_table(engine: EngineKind) {
    let mut setup = Setup::new(engine);
    setup.size = 2;
    let mut rig = setup.start();
    rig.driver.header(HEADER, kind::IN, 64);
    let mut parts = vec![(HEADER, 16, false)];
    parts.extend((0..254).map(|i| (BUFFER + i * 1024, 512, true)));
    parts.push((STATUS, 1, true));
    let head = rig.driver.indirect_chain(DATA + 0x8_0000, &parts);
    assert_eq!(rig.finish(head), (OK, 254 * 512 + 1));
    let read: Vec<u8> = (0..254)
        .flat_map(|i| rig.driver.read(BUFFER + i * 1024, 512))
        .collect();
    assert_eq!(read, rig.on_disk(64, 254 * 512));
}

#[test]
fn the_configuration_is_laid_out_as_the_specification_says() {
    let mut setup = Setup::new(EngineKind::Sync);
    setup.config.queues = 3;
    let rig = setup.start();
    let field = |offset, length| {
        let mut bytes = [0; 8];
        rig.block.read_config(offset, &mut bytes[..length]);
        u64::from_le_bytes(bytes)
    };
    assert_eq!(field(0, 8), 2048);
    assert_eq!(field(8, 4), 0);
    assert_eq!(field(12, 4), 254);
    assert_eq!(field(20, 4), 512);
    assert_eq!(field(24, 1), 3);
    assert_eq!(field(26, 2), 8);
    assert_eq!(field(34, 2), 3);
    assert_eq!(field(36, 4), u64::from(MAX_RANGE_SECTORS));
    assert_eq!(field(40, 4), 32);
    assert_eq!(field(44, 4), 8);
    assert_eq!(field(48, 4), u64::from(MAX_RANGE_SECTORS));
    assert_eq!(field(52, 4), 32);
    assert_eq!(field(56, 1), 1);
    assert_eq!(field(57, 8), 0);
    assert_eq!(field(u64::MAX, 8), 0);
    assert_eq!(field(59, 8), 0);
    // Odd width and offset.
    assert_eq!(field(1, 3), 8);
}
