//! Memory of the payload: a heap that only grows, DMA pages, mappings for device registers, and the three memory
//! functions that compiled code expects.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Size of the heap that also holds DMA pages.
const HEAP_SIZE: usize = 8 << 20;
/// Offset of the command line's address in Linux's zero page (boot.rst, cmd_line_ptr).
const COMMAND_LINE_POINTER: u64 = 0x228;

#[repr(C, align(4096))]
struct Heap(core::cell::UnsafeCell<[u8; HEAP_SIZE]>);

// SAFETY: pieces of it are handed out once each, by an atomic counter.
unsafe impl Sync for Heap {}

static HEAP: Heap = Heap(core::cell::UnsafeCell::new([0; HEAP_SIZE]));
static USED: AtomicUsize = AtomicUsize::new(0);

struct Bump;

// SAFETY: every allocation is a piece of HEAP that nobody else has.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut start = 0;
        let taken = USED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
            start = used.checked_next_multiple_of(layout.align())?;
            start
                .checked_add(layout.size())
                .filter(|end| *end <= HEAP_SIZE)
        });
        match taken {
            Ok(_) => HEAP.0.get().cast::<u8>().wrapping_add(start),
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Bump = Bump;

/// The kernel command line that the monitor passed.
pub fn command_line(zero_page: u64) -> &'static str {
    // SAFETY: the boot protocol puts a pointer to a zero-terminated string there, below 4 GiB, which is mapped.
    let text = unsafe {
        let pointer = ((zero_page + COMMAND_LINE_POINTER) as *const u32).read_unaligned();
        core::ffi::CStr::from_ptr(pointer as usize as *const _)
    };
    text.to_str().unwrap_or("")
}

unsafe extern "C" {
    static mut pml4: [u64; 512];
    static mut pdpt: [u64; 512];
}

/// Maps the 1 GiB around `address` one to one, unless it lies in the 4 GiB that are mapped from the start.
fn map(address: u64) {
    let gib = address >> 30;
    if gib < 4 {
        return;
    }
    // SAFETY: one processor, and no other reference to the tables exists; new pages come zeroed from the heap.
    unsafe {
        let top = &raw mut pml4[(gib >> 9) as usize & 511];
        if gib >> 9 == 0 {
            *top = (&raw const pdpt) as u64 | 7;
        } else if *top == 0 {
            *top = pages(1).as_ptr() as u64 | 7;
        }
        let upper = (*top & !0xFFF) as *mut u64;
        let entry = upper.add(gib as usize & 511);
        if *entry == 0 {
            let directory = pages(1).cast::<u64>();
            for index in 0..512_u64 {
                // Present, writable, user, not cached, 2 MiB.
                directory
                    .add(index as usize)
                    .write((gib << 30) + (index << 21) | 0x97);
            }
            *entry = directory.as_ptr() as u64 | 7;
        }
    }
}

fn pages(count: usize) -> NonNull<u8> {
    let layout = Layout::from_size_align(count * PAGE_SIZE, PAGE_SIZE).expect("a page is a layout");
    // SAFETY: the layout has a size; the heap is zero and never reused.
    NonNull::new(unsafe { ALLOCATOR.alloc(layout) }).expect("the payload's heap is large enough")
}

/// Makes device registers at a physical address usable.
pub fn registers(address: u64) -> *mut u8 {
    map(address);
    address as *mut u8
}

/// The payload as the virtio drivers see it: physical addresses are virtual addresses.
pub struct Payload;

// SAFETY: pages come from the heap once each, zeroed; memory is mapped one to one, so addresses are the same.
unsafe impl Hal for Payload {
    fn dma_alloc(count: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let start = pages(count);
        (start.as_ptr() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(registers(address)).expect("a BAR is not at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// # Safety
/// As C's memcpy.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _)
    };
    to
}

/// # Safety
/// As C's memmove.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: the ranges do not overlap in the direction of copying.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller's promise; backwards, so that what is read was not written yet.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
             inout("rdi") to.wrapping_add(count).wrapping_sub(1) => _,
             inout("rsi") from.wrapping_add(count).wrapping_sub(1) => _);
    }
    to
}

/// # Safety
/// As C's memset.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") value as u8)
    };
    to
}

/// # Safety
/// As C's memcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: the caller's promise.
        let (a, b) = unsafe {
            (
                left.add(index).read_volatile(),
                right.add(index).read_volatile(),
            )
        };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// As C's strlen.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's promise.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// # Safety
/// As C's bcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, count) }
}
