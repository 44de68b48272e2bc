//! Requests of 4 KiB to a drive whose file is in the page cache, so that the disk of the machine plays no part.
//!
//! For reads and writes the file is on a disk's file system all the same, where temporary files go: on one in memory
//! io_uring hands even a read to a thread of the kernel, which a tenant's drive does not meet with. Flush has a file in memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use fief_devices::limiter::Limits;
use fief_devices::virtio::block::{Block, BlockConfig, EngineKind, QUEUE_SIZE};
use fief_devices::virtio::mock::{DATA, Driver, Part, TestInterrupt, ram};
use fief_devices::virtio::{Activation, VirtioDevice};
use nix::sys::memfd::{MFdFlags, memfd_create};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_OK, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use crate::{Rounds, measure, pattern};

/// Bytes of a read or write, and as sectors.
const BYTES: u32 = 4096;
const SECTORS: u64 = BYTES as u64 / 512;

/// Where a request's status and data are, behind its header, and where the next request is.
const STATUS: u64 = 0x100;
const BUFFER: u64 = 0x1000;
const REQUEST: u64 = BUFFER + BYTES as u64;

/// Not written by a device.
const NO_STATUS: u8 = 0xEE;

struct Drive {
    block: Block,
    file: File,
    driver: Driver,
    /// VIRTIO_BLK_T_*.
    kind: u32,
    /// Requests at a time.
    depth: u16,
    used: Vec<(u16, u32)>,
}

impl Drive {
    fn new(engine: EngineKind, kind: u32, depth: u16) -> Self {
        let file = match kind {
            VIRTIO_BLK_T_FLUSH => memfd_create(c"drive", MFdFlags::MFD_CLOEXEC)
                .unwrap()
                .into(),
            _ => tempfile::tempfile().unwrap(),
        };
        for at in 0..256 {
            let bytes = pattern(at, BYTES as usize);
            file.write_all_at(&bytes, at as u64 * u64::from(BYTES))
                .unwrap();
        }
        let config = BlockConfig {
            id: "drive".to_owned(),
            read_only: false,
            writeback: true,
            engine,
            queues: 1,
            limits: Limits::default(),
        };
        let mut block = Block::new(file.try_clone().unwrap(), config).unwrap();
        let interrupt = Arc::new(TestInterrupt::default());
        let driver = Driver::new(ram(), &interrupt, 0, QUEUE_SIZE, true);
        let activation = Activation {
            memory: driver.memory.clone(),
            features: block.features(),
            queues: vec![driver.active()],
            interrupt,
        };
        block.activate(activation).unwrap();
        Self {
            block,
            file,
            driver,
            kind,
            depth,
            used: Vec::new(),
        }
    }

    /// Bytes that the device writes: data and status.
    fn written(&self) -> u32 {
        if self.kind == VIRTIO_BLK_T_IN {
            BYTES + 1
        } else {
            1
        }
    }

    /// What the `index`-th request reads or writes.
    fn data(&self, index: u64) -> Vec<u8> {
        let seed = if self.kind == VIRTIO_BLK_T_OUT {
            1000
        } else {
            0
        };
        pattern(seed + index as usize, BYTES as usize)
    }
}

fn place(index: u64) -> u64 {
    DATA + index * REQUEST
}

impl Rounds for Drive {
    fn prepare(&mut self) {
        for index in 0..u64::from(self.depth) {
            let at = place(index);
            let sector = if self.kind == VIRTIO_BLK_T_FLUSH {
                0
            } else {
                index * SECTORS
            };
            self.driver.header(at, self.kind, sector);
            self.driver.write(at + STATUS, &[NO_STATUS]);
            let mut parts: Vec<Part> = vec![(at, 16, false)];
            if self.kind == VIRTIO_BLK_T_OUT {
                self.driver.write(at + BUFFER, &self.data(index));
            }
            if self.kind != VIRTIO_BLK_T_FLUSH {
                parts.push((at + BUFFER, BYTES, self.kind == VIRTIO_BLK_T_IN));
            }
            parts.push((at + STATUS, 1, true));
            let head = self.driver.chain(&parts);
            self.driver.offer(head);
        }
    }

    fn run(&mut self) {
        self.driver.kick();
        self.used = self.driver.wait(self.depth);
    }

    fn check(&mut self, first: bool) {
        assert_eq!(self.used.len(), usize::from(self.depth));
        let written = self.written();
        assert!(self.used.iter().all(|&(_, length)| length == written));
        for index in 0..u64::from(self.depth) {
            let status = self.driver.read(place(index) + STATUS, 1);
            assert_eq!(u32::from(status[0]), VIRTIO_BLK_S_OK);
            if !first || self.kind == VIRTIO_BLK_T_FLUSH {
                continue;
            }
            let mut on_disk = vec![0; BYTES as usize];
            self.file
                .read_exact_at(&mut on_disk, index * u64::from(BYTES))
                .unwrap();
            assert_eq!(on_disk, self.data(index));
            let in_memory = self.driver.read(place(index) + BUFFER, BYTES as usize);
            assert_eq!(in_memory, on_disk);
        }
        if first {
            assert_eq!(self.block.metrics().completed, u64::from(self.depth));
        }
    }
}

pub fn benchmark(criterion: &mut Criterion) {
    for (name, engine) in [
        ("io_uring", EngineKind::IoUring),
        ("sync", EngineKind::Sync),
    ] {
        let mut group = criterion.benchmark_group(format!("block, {name}"));
        for (name, kind, depth) in [
            ("4k read, depth 1", VIRTIO_BLK_T_IN, 1),
            ("4k read, depth 32", VIRTIO_BLK_T_IN, 32),
            ("4k write, depth 1", VIRTIO_BLK_T_OUT, 1),
            ("4k write, depth 32", VIRTIO_BLK_T_OUT, 32),
            ("flush, depth 1", VIRTIO_BLK_T_FLUSH, 1),
        ] {
            let requests = Throughput::Elements(u64::from(depth));
            measure(&mut group, name, requests, Drive::new(engine, kind, depth));
        }
        group.finish();
    }
}
