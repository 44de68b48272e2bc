//! The device process as fief's own client sees it.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use fief_vfio::user::{Gone, UserError};
use fief_vfio::{DmaMemory, DmaSpace, Interrupt, Region, RemoteFunction, UserFunction};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_sys_util::eventfd::EventFd;

const BAR0: Region = Region::Bar(0);
const BAR2: Region = Region::Bar(2);

/// Where the guest's memory is in these tests.
const IOVA: u64 = 0x10_0000;

/// The process and a client of it.
struct Rig {
    process: Child,
    function: UserFunction,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("device");
        let mut process = Command::new(env!("CARGO_BIN_EXE_fief-test-device"))
            .arg("--socket")
            .arg(&socket)
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let function = UserFunction::connect(UnixStream::connect(&socket).unwrap()).unwrap();
        Self {
            process,
            function,
            _folder: folder,
        }
    }

    fn get(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        self.function.read(BAR0, register, &mut value).unwrap();
        u32::from_le_bytes(value)
    }

    fn set(&self, register: u64, value: u32) {
        let bytes = value.to_le_bytes();
        self.function.write(BAR0, register, &bytes).unwrap();
    }

    /// Starts a DMA in `direction` between `address` and the start of BAR 2; gives the status.
    fn dma(&self, direction: u32, address: u64, length: u32) -> u32 {
        self.set(0x10, address as u32);
        self.set(0x14, (address >> 32) as u32);
        self.set(0x18, 0);
        self.set(0x1C, length);
        self.set(0x20, direction);
        self.get(0x0C)
    }

    /// Gives it a page of memory, with bus mastering.
    fn share(&self) -> std::fs::File {
        let memfd = memfd_create("ram", MFdFlags::MFD_ALLOW_SEALING);
        let ram = std::fs::File::from(memfd.unwrap());
        ram.set_len(4096).unwrap();
        let memory = DmaMemory {
            address: std::ptr::null_mut(),
            size: 4096,
            file: Some((&ram, 0)),
        };
        let space: &dyn DmaSpace = &self.function;
        // SAFETY: the file stays, and has nothing in it.
        unsafe { space.map(IOVA, memory) }.unwrap();
        self.function.write(Region::Config, 4, &[4, 0]).unwrap();
        ram
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn registers_and_configuration_are_as_described() {
    let rig = Rig::new(&[]);
    assert_eq!(rig.get(0), u32::from_le_bytes(*b"fief"));
    rig.set(4, 0x1234_5678);
    assert_eq!(rig.get(4), 0x1234_5678);
    let mut ids = [0; 4];
    rig.function.read(Region::Config, 0, &mut ids).unwrap();
    assert_eq!(ids, [0xEF, 0xF1, 0x57, 0x7E]);
    let mut rom = [0; 3];
    rig.function.read(Region::Rom, 0, &mut rom).unwrap();
    assert_eq!(rom, [0x55, 0xAA, 2]);
    // Three reads of registers before this one, one write, one read of configuration.
    assert_eq!(rig.get(0x40), 3);
    assert_eq!(rig.get(0x44), 1);
    assert_eq!(rig.get(0x40 + 8 * 7), 1);
    assert_eq!(rig.get(0x40 + 8 * 2), 0);
    // A reset by its register and one by message.
    rig.function.write(Region::Config, 0x89, &[0x80]).unwrap();
    rig.function.reset().unwrap();
    assert_eq!((rig.get(4), rig.get(8)), (0, 2));
}

#[test]
fn pages_with_the_table_cannot_be_mapped_wherever_it_is() {
    let areas = |options: &[&str]| {
        Rig::new(options)
            .function
            .region(Region::Bar(4))
            .mappable
            .clone()
    };
    assert_eq!(areas(&[]), [0..0x2000, 0x3000..0x1_0000]);
    // The table is in two pages.
    let moved = areas(&["--table-offset", "12256"]);
    assert_eq!(moved, [0..0x2000, 0x4000..0x1_0000]);
    let rig = Rig::new(&["--memory", "8"]);
    let bar2 = rig.function.region(BAR2);
    assert_eq!(bar2.size, 8 << 20);
    assert_eq!(bar2.mappable, vec![0..8 << 20]);
}

#[test]
fn dma_goes_both_ways_and_nowhere_else() {
    let rig = Rig::new(&[]);
    let ram = rig.share();
    ram.write_all_at(b"from the guest", 100).unwrap();
    assert_eq!(rig.dma(1, IOVA + 100, 14), 1);
    let mut there = [0; 14];
    rig.function.read(BAR2, 0, &mut there).unwrap();
    assert_eq!(&there, b"from the guest");
    rig.function.write(BAR2, 0, b"to").unwrap();
    assert_eq!(rig.dma(2, IOVA + 200, 2), 1);
    ram.read_exact_at(&mut there[..2], 200).unwrap();
    assert_eq!(&there[..2], b"to");
    // Over the end, where nothing is, without bus mastering, and after it was taken away.
    assert_eq!(rig.dma(2, IOVA + 4095, 2), 3);
    assert_eq!(rig.dma(2, u64::MAX, 2), 3);
    rig.function.write(Region::Config, 4, &[0, 0]).unwrap();
    assert_eq!(rig.dma(2, IOVA, 2), 3);
    rig.function.write(Region::Config, 4, &[4, 0]).unwrap();
    assert_eq!(rig.dma(2, IOVA, 2), 1);
    let space: &dyn DmaSpace = &rig.function;
    space.unmap(IOVA, 4096).unwrap();
    assert_eq!(rig.dma(2, IOVA, 2), 3);
    space.unmap(IOVA, 4096).unwrap_err();
}

#[test]
fn interrupts_of_all_kinds_arrive() {
    let rig = Rig::new(&[]);
    let events: Vec<EventFd> = (0..4).map(|_| EventFd::new(0).unwrap()).collect();
    let all: Vec<&EventFd> = events.iter().collect();
    for kind in [Interrupt::Msix, Interrupt::Msi] {
        assert_eq!(rig.function.enable(kind, &all).unwrap(), 4);
        rig.set(0x24, 2);
        assert_eq!(events[2].read().unwrap(), 1);
        rig.function.disable(kind).unwrap();
        assert_eq!(rig.get(0x2C), 0);
    }
    // The line: once, and again when it is unmasked while it is asserted.
    rig.function.enable(Interrupt::Intx, &all[..1]).unwrap();
    rig.function.unmask_by(&events[1]).unwrap();
    rig.set(0x28, 1);
    assert_eq!(events[0].read().unwrap(), 1);
    events[1].write(1).unwrap();
    assert_eq!(events[0].read().unwrap(), 1);
    rig.set(0x28, 0);
    events[1].write(1).unwrap();
    rig.set(0x28, 1);
    assert_eq!(events[0].read().unwrap(), 1);
}

/// Why a DMA of a process with this trouble failed, and any access afterwards.
fn lost_by(trouble: u32) -> Gone {
    let rig = Rig::new(&[]);
    let ram = rig.share();
    rig.function.write(BAR2, 0, &[0xAB; 64]).unwrap();
    rig.set(0x10, IOVA as u32);
    rig.set(0x1C, 64);
    rig.set(0x30, trouble);
    let gone = |error: std::io::Error| match error.get_ref().unwrap().downcast_ref() {
        Some(UserError::Gone(gone)) => *gone,
        _ => panic!("{error}"),
    };
    let error = rig.function.write(BAR0, 0x20, &[2, 0, 0, 0]).unwrap_err();
    let first = gone(error);
    let later = rig.function.read(BAR0, 0, &mut [0; 4]).unwrap_err();
    assert_eq!(gone(later), first);
    // It was in the middle.
    let mut half = [0; 64];
    ram.read_exact_at(&mut half, 0).unwrap();
    assert_eq!((half[31], half[32]), (0xAB, 0));
    first
}

#[test]
fn a_process_that_dies_in_an_operation_is_gone() {
    assert_eq!(lost_by(3), Gone::Closed);
}

#[test]
fn a_process_that_hangs_in_an_operation_is_gone() {
    assert!(matches!(lost_by(4), Gone::Silent(_)));
}
