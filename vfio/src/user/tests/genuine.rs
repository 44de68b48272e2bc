//! Against the server of the crate `vfio_user`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info, vfio_region_sparse_mmap_area,
};
use vfio_user::{
    DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea,
};
use vmm_sys_util::eventfd::EventFd;

use super::super::{UserError, UserFunction};
use super::memfd;
use crate::mapping::PAGE;
use crate::region::Region;
use crate::remote::{DmaMemory, DmaSpace, Interrupt, RemoteFunction};

/// Size of BAR 0, of which nothing can be mapped, and of BAR 2, of which two areas can be.
const BAR0: u64 = 3 << 20;
const BAR2: u64 = 16 * PAGE;

/// What the device was asked for.
#[derive(Default)]
struct Seen {
    registers: Vec<u8>,
    accesses: Vec<usize>,
    /// index, flags, start, count.
    irqs: Vec<(u32, u32, u32, u32)>,
    events: Vec<File>,
    mapped: Vec<(u64, u64, u64, Option<File>)>,
    unmapped: Vec<(u64, u64)>,
    resets: usize,
}

struct Device(Arc<Mutex<Seen>>);

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut seen = self.0.lock().unwrap();
        if region != 0 {
            return Err(io::Error::other("there is nothing"));
        }
        seen.accesses.push(data.len());
        let at = offset as usize;
        data.copy_from_slice(&seen.registers[at..at + data.len()]);
        Ok(())
    }

    fn region_write(&mut self, _: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut seen = self.0.lock().unwrap();
        seen.accesses.push(data.len());
        let at = offset as usize;
        seen.registers[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        let mut seen = self.0.lock().unwrap();
        seen.mapped.push((offset, address, size, file));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.0.lock().unwrap().unmapped.push((address, size));
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().resets += 1;
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        events: Vec<File>,
    ) -> io::Result<()> {
        let mut seen = self.0.lock().unwrap();
        seen.irqs.push((index, flags, start, count));
        seen.events.extend(events);
        Ok(())
    }
}

fn regions(memory: &File) -> Vec<ServerRegion> {
    let mut regions: Vec<ServerRegion> = (0..9)
        .map(|index| ServerRegion {
            region_info: vfio_region_info {
                argsz: size_of::<vfio_region_info>() as u32,
                index,
                flags: VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
                ..Default::default()
            },
            sparse_areas: Vec::new(),
            mmap_fd: None,
        })
        .collect();
    regions[0].region_info.size = BAR0;
    regions[7].region_info.size = 4096;
    regions[2].region_info.size = BAR2;
    regions[2].region_info.offset = 2 * PAGE;
    regions[2].region_info.flags |= VFIO_REGION_INFO_FLAG_MMAP;
    let area = |offset, size| SparseArea {
        area: vfio_region_sparse_mmap_area { offset, size },
    };
    regions[2].sparse_areas = vec![area(0, PAGE), area(4 * PAGE, 12 * PAGE)];
    regions[2].mmap_fd = Some(memory.as_raw_fd());
    regions
}

/// A device in a thread, and a function that is connected to it.
struct Rig {
    seen: Arc<Mutex<Seen>>,
    memory: File,
    function: UserFunction,
    thread: JoinHandle<()>,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let memory = memfd(2 * PAGE + BAR2);
        let counts = [1, 8, 4, 0, 0];
        let irqs = counts.iter().zip(0..).map(|(count, index)| IrqInfo {
            index,
            flags: VFIO_IRQ_INFO_EVENTFD,
            count: *count,
        });
        let server = Server::from_owned_fd(listener.into(), true, irqs.collect(), regions(&memory));
        let seen = Arc::new(Mutex::new(Seen {
            registers: vec![0; BAR0 as usize],
            ..Seen::default()
        }));
        let mut device = Device(Arc::clone(&seen));
        let thread = std::thread::spawn(move || server.run(&mut device).unwrap());
        let stream = UnixStream::connect(&path).unwrap();
        let function = UserFunction::connect(stream).unwrap();
        Self {
            seen,
            memory,
            function,
            thread,
        }
    }
}

#[test]
fn the_function_is_as_its_process_describes_it() {
    let rig = Rig::new();
    let function = &rig.function;
    let bar0 = function.region(Region::Bar(0));
    assert_eq!((bar0.size, bar0.mappable.as_slice()), (BAR0, [].as_slice()));
    assert!(bar0.readable && bar0.writable);
    let bar2 = function.region(Region::Bar(2));
    assert_eq!(bar2.mappable, [0..PAGE, 4 * PAGE..BAR2]);
    assert_eq!(function.region(Region::Bar(1)).size, 0);
    assert_eq!(function.region(Region::Config).size, 4096);
    assert_eq!(function.region(Region::Bar(200)).size, 0);
    let counts = [
        Interrupt::Intx,
        Interrupt::Msi,
        Interrupt::Msix,
        Interrupt::Error,
    ];
    assert_eq!(counts.map(|kind| function.interrupts(kind)), [1, 8, 4, 0]);
    assert!(function.can_reset());
    function.reset().unwrap();
    assert_eq!(rig.seen.lock().unwrap().resets, 1);
}

#[test]
fn accesses_arrive_in_messages_as_long_as_the_process_takes() {
    let rig = Rig::new();
    let bar0 = Region::Bar(0);
    rig.function.write(bar0, 4, &[1, 2, 3, 4]).unwrap();
    let mut four = [0; 4];
    rig.function.read(bar0, 4, &mut four).unwrap();
    assert_eq!(four, [1, 2, 3, 4]);
    let sent: Vec<u8> = (0..BAR0).map(|byte| (byte % 251) as u8).collect();
    rig.function.write(bar0, 0, &sent).unwrap();
    let mut back = vec![0; sent.len()];
    rig.function.read(bar0, 0, &mut back).unwrap();
    assert!(back == sent, "other bytes came back");
    let most = 1 << 20;
    let expected = [4, 4, most, most, most, most, most, most];
    assert_eq!(rig.seen.lock().unwrap().accesses, expected);
}

#[test]
fn what_the_process_refuses_is_an_error_and_no_end() {
    let rig = Rig::new();
    let error = rig.function.read(Region::Rom, 0, &mut [0; 4]).unwrap_err();
    assert!(error.to_string().contains("REGION_READ"), "{error}");
    rig.function.read(Region::Bar(0), 0, &mut [0; 4]).unwrap();
}

#[test]
fn areas_of_a_bar_are_the_memory_of_the_process() {
    let rig = Rig::new();
    let function: &dyn RemoteFunction = &rig.function;
    let bar2 = Region::Bar(2);
    let mapping = function.map(bar2, 5 * PAGE..7 * PAGE).unwrap();
    assert_eq!(mapping.size(), 2 * PAGE);
    // SAFETY: the test's own memory.
    unsafe { mapping.address().write_volatile(0x5A) };
    let mut byte = [0];
    rig.memory.read_exact_at(&mut byte, 7 * PAGE).unwrap();
    assert_eq!(byte, [0x5A]);
    for outside in [0..2 * PAGE, PAGE..2 * PAGE, 15 * PAGE..17 * PAGE] {
        function.map(bar2, outside).unwrap_err();
    }
    function.map(Region::Bar(0), 0..PAGE).unwrap_err();
}

#[test]
fn interrupts_are_events_of_ours_that_the_process_writes_to() {
    let rig = Rig::new();
    let events: Vec<EventFd> = (0..6).map(|_| EventFd::new(0).unwrap()).collect();
    let all: Vec<&EventFd> = events.iter().collect();
    // Fewer than asked for; the crate's server takes one descriptor a message.
    assert_eq!(rig.function.enable(Interrupt::Msix, &all).unwrap(), 4);
    let set = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    let each = [
        (2, set, 0, 1),
        (2, set, 1, 1),
        (2, set, 2, 1),
        (2, set, 3, 1),
    ];
    let mut seen = rig.seen.lock().unwrap();
    assert_eq!(seen.irqs, each);
    seen.events[2].write_all(&9_u64.to_ne_bytes()).unwrap();
    assert_eq!(events[2].read().unwrap(), 9);
    seen.irqs.clear();
    drop(seen);

    // Fewer than before: the others are forgotten first.
    let function = &rig.function;
    assert_eq!(function.enable(Interrupt::Msix, &all[..1]).unwrap(), 1);
    function.disable(Interrupt::Msix).unwrap();
    // There are none: nothing is asked for.
    assert_eq!(function.enable(Interrupt::Error, &all).unwrap(), 0);
    function.disable(Interrupt::Error).unwrap();
    assert_eq!(function.enable(Interrupt::Intx, &all).unwrap(), 1);
    function.unmask_by(&events[0]).unwrap();
    // VFIO_IRQ_SET_DATA_NONE is 1, VFIO_IRQ_SET_ACTION_TRIGGER 32.
    let unmask = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
    let expected = [
        (2, 33, 0, 0),
        (2, set, 0, 1),
        (2, 33, 0, 0),
        (0, set, 0, 1),
        (0, unmask, 0, 1),
    ];
    assert_eq!(rig.seen.lock().unwrap().irqs, expected);
}

#[test]
fn guest_memory_is_given_as_a_file() {
    let rig = Rig::new();
    let ram = memfd(4 * PAGE);
    let memory = DmaMemory {
        address: std::ptr::null_mut(),
        size: 2 * PAGE,
        file: Some((&ram, PAGE)),
    };
    let space: &dyn DmaSpace = &rig.function;
    // SAFETY: the file stays, and has nothing in it.
    unsafe { space.map(0x10_0000, memory) }.unwrap();
    space.unmap(0x10_0000, 2 * PAGE).unwrap();
    let seen = rig.seen.lock().unwrap();
    let (offset, address, size, file) = &seen.mapped[0];
    assert_eq!((*offset, *address, *size), (PAGE, 0x10_0000, 2 * PAGE));
    file.as_ref().unwrap().write_all_at(b"DMA", PAGE).unwrap();
    let mut there = [0; 3];
    ram.read_exact_at(&mut there, PAGE).unwrap();
    assert_eq!(&there, b"DMA");
    assert_eq!(seen.unmapped, [(0x10_0000, 2 * PAGE)]);
    drop(seen);
    let anonymous = DmaMemory {
        file: None,
        ..memory
    };
    // SAFETY: as above.
    let error = unsafe { space.map(0, anonymous) }.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn a_function_that_is_dropped_hangs_up() {
    let rig = Rig::new();
    drop(rig.function);
    rig.thread.join().unwrap();
}

#[test]
fn a_process_that_is_no_device_is_refused_with_what_to_do() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let error = UserFunction::connect(ours).unwrap_err();
    assert!(matches!(error, UserError::Gone(_)), "{error}");
    assert!(error.to_string().contains("start it again"), "{error}");
}
