//! A function that is passed through: `fief-test-device`, in a process of its own. docs/testing.md has its registers.

mod function;
mod interrupts;
mod plugged;

use crate::Failure;
use crate::console::print;
use crate::memory::registers;
pub use interrupts::{check_intx, check_many, check_msi, check_msix};
pub use plugged::check_plugged;

use function::{Function, register};

/// An error that says `what`, unless it is `so`.
fn must(so: bool, what: impl core::fmt::Display) -> Result<(), Failure> {
    if so {
        return Ok(());
    }
    Err(alloc::format!("{what}"))
}

/// Size of BAR 2 with the device's defaults.
const BAR2: u64 = 2 << 20;

/// Configuration space, BARs and their places, memory without a message, and DMA.
pub fn check() -> Result<(), Failure> {
    let mut function = Function::find()?;
    configuration(&function)?;
    must(
        function.get(register::ID) == register::WHO,
        "no register answers",
    )?;
    function.set(register::SCRATCH, 0xCAFE_F00D);
    must(
        function.get(register::SCRATCH) == 0xCAFE_F00D,
        "a register does not keep what is written",
    )?;
    let before = function.messages(2);
    bars(&mut function)?;
    memory(&mut function)?;
    dma(&function)?;
    let after = function.messages(2);
    must(
        before == after,
        format_args!("BAR 2 cost messages: {before:?}, then {after:?}"),
    )?;
    around_the_table(&function)?;
    rom(&mut function)
}

/// Capabilities that a guest is to see, and those that it is not.
fn configuration(function: &Function) -> Result<(), Failure> {
    for id in [1, 5, 0x11, 0x10] {
        must(
            function.capability(id).is_some(),
            format_args!("capability {id:#x} is missing"),
        )?;
    }
    // SR-IOV, ARI, Resizable BAR; a serial number is harmless.
    for (id, visible) in [(0x10, false), (0x0E, false), (0x15, false), (3, true)] {
        must(
            function.extended_capability(id).is_some() == visible,
            format_args!("extended capability {id:#x}"),
        )?;
    }
    let serial = function.extended_capability(3).unwrap_or(0);
    must(
        function.config(serial + 4) == 0x89AB_CDEF,
        "the serial number is another",
    )
}

/// Sizes of BARs, by the way that PCI has for it.
fn bars(function: &mut Function) -> Result<(), Failure> {
    for (index, size) in [(0, 4096), (2, BAR2), (4, 64 << 10)] {
        let (_, found) = function.bar(index);
        must(
            found == size,
            format_args!("BAR {index} has {found:#x} bytes"),
        )?;
    }
    Ok(())
}

/// BAR 2: keeps what is written, moves with its content, and is nowhere when it is switched off.
fn memory(function: &mut Function) -> Result<(), Failure> {
    let (old, _) = function.bar(2);
    let new = old + 16 * BAR2;
    let word = |base: u64, at: u64| registers(base + at).cast::<u64>();
    let places = [0, 8, 4096, BAR2 / 2, BAR2 - 8];
    let same = |base| {
        places.iter().all(|at| {
            // SAFETY: memory of the device, mapped one to one.
            unsafe { word(base, *at).read_volatile() == at.wrapping_mul(0x0101_0101) ^ 0x55 }
        })
    };
    for at in places {
        // SAFETY: as above.
        unsafe { word(old, at).write_volatile(at.wrapping_mul(0x0101_0101) ^ 0x55) };
    }
    must(same(old), "BAR 2 does not keep what is written")?;
    function.move_bar(2, new);
    must(same(new), "BAR 2 lost its content when it moved")?;
    // SAFETY: nothing is there, which reads as ones.
    let left = unsafe { word(old, 0).read_volatile() };
    must(left == u64::MAX, "BAR 2 still answers where it was")?;
    function.decode(false);
    // SAFETY: as above.
    let off = unsafe { word(new, 0).read_volatile() };
    function.decode(true);
    must(off == u64::MAX, "BAR 2 answers although it is off")?;
    must(same(new), "BAR 2 lost its content when it was off")?;
    function.move_bar(2, old);
    must(same(old), "BAR 2 lost its content on its way back")
}

/// Copies of the device's DMA engine, both ways, and where it may not.
fn dma(function: &Function) -> Result<(), Failure> {
    const LENGTH: usize = 100_000;
    let mut buffer = alloc::vec![0_u8; LENGTH];
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = (index % 251) as u8;
    }
    let address = buffer.as_mut_ptr() as u64;
    must(
        function.dma(register::FROM_GUEST, address, 0x1000, LENGTH as u32),
        "DMA from the guest failed",
    )?;
    let (bar2, _) = function.bar(2);
    let there = registers(bar2 + 0x1000);
    let same = (0..LENGTH).all(|index| {
        // SAFETY: memory of the device, mapped one to one.
        unsafe { there.add(index).read_volatile() == (index % 251) as u8 }
    });
    must(same, "DMA from the guest brought other bytes")?;
    // SAFETY: as above.
    unsafe { there.add(77).write_volatile(0xEE) };
    buffer.fill(0);
    must(
        function.dma(register::TO_GUEST, address, 0x1000, LENGTH as u32),
        "DMA to the guest failed",
    )?;
    let same = (0..LENGTH).all(|index| {
        let expected = if index == 77 { 0xEE } else { index % 251 };
        // SAFETY: the buffer; the device wrote it, so that it is read as it is in memory.
        unsafe { buffer.as_ptr().add(index).read_volatile() == expected as u8 }
    });
    must(same, "DMA to the guest brought other bytes")?;
    // In the hole below 4 GiB there is no memory.
    must(
        !function.dma(register::TO_GUEST, 0xD000_0000, 0, 64),
        "DMA where nothing is did not fail",
    )?;
    function.master(false);
    let done = function.dma(register::TO_GUEST, address, 0, 64);
    function.master(true);
    must(!done, "DMA without bus mastering did not fail")
}

/// BAR 4: memory before the table costs no message, what is beside it in its page costs one.
fn around_the_table(function: &Function) -> Result<(), Failure> {
    let (bar4, size) = function.bar(4);
    let word = |at: u64| registers(bar4 + at).cast::<u32>();
    let before = function.messages(4);
    for at in [0, size - 4] {
        // SAFETY: memory of the device, mapped one to one.
        let kept = unsafe {
            word(at).write_volatile(0x1234_5678);
            word(at).read_volatile()
        };
        must(
            kept == 0x1234_5678,
            format_args!("BAR 4 at {at:#x} has {kept:#x}"),
        )?;
    }
    must(
        function.messages(4) == before,
        "memory around the table costs messages",
    )?;
    let beside = function.table_end() + 64;
    // SAFETY: as above.
    let kept = unsafe {
        word(beside).write_volatile(0x8765_4321);
        word(beside).read_volatile()
    };
    let (reads, writes) = function.messages(4);
    must(
        kept == 0x8765_4321 && (reads, writes) == (before.0 + 1, before.1 + 1),
        format_args!("beside the table: {kept:#x}, {reads} reads, {writes} writes"),
    )
}

/// The expansion ROM answers where it is put.
fn rom(function: &mut Function) -> Result<(), Failure> {
    let (bar4, size) = function.bar(4);
    // Behind BAR 4, in the window below 4 GiB.
    let place = (bar4 + size).next_multiple_of(1 << 20);
    function.place_rom(Some(place as u32));
    // SAFETY: the ROM, mapped one to one.
    let signature = unsafe { registers(place).cast::<u16>().read_volatile() };
    function.place_rom(None);
    must(
        signature == 0xAA55,
        format_args!("the ROM begins with {signature:#x}"),
    )
}

/// A function-level reset brings its registers back to zero, and interrupts work afterwards.
pub fn check_reset() -> Result<(), Failure> {
    let function = Function::find()?;
    let resets = function.get(register::RESETS);
    function.set(register::SCRATCH, 1);
    let express = function.capability(0x10).ok_or("no PCI Express")?;
    let control = function.config(express + 8);
    function.set_config(express + 8, control | 1 << 15);
    must(
        function.get(register::RESETS) == resets + 1,
        "it was not reset",
    )?;
    must(
        function.get(register::SCRATCH) == 0,
        "a register has its value still",
    )?;
    must(
        function.config(express + 8) & 1 << 15 == 0,
        "the bit that resets reads as one",
    )?;
    function.enable();
    check_msix()
}

/// The device dies in the middle of an operation.
pub fn check_dies() -> Result<(), Failure> {
    lose(register::DIE_IN_DMA)
}

/// The device never ends an operation.
pub fn check_hangs() -> Result<(), Failure> {
    lose(register::HANG_IN_DMA)
}

/// The device would take away memory that the guest has, its own and the guest's: it cannot.
pub fn check_shrinks() -> Result<(), Failure> {
    let function = Function::find()?;
    let (bar2, size) = function.bar(2);
    let last = registers(bar2 + size - 8).cast::<u64>();
    // SAFETY: memory of the device, mapped one to one.
    unsafe { last.write_volatile(42) };
    for how in [register::SHRINK_GUEST, register::SHRINK_BAR2] {
        function.set(register::TROUBLE, how);
        let status = function.get(register::STATUS);
        print(format_args!("SHRUNK {how}: {status}\n"));
        if how == register::SHRINK_GUEST {
            must(status == register::REFUSED, "the guest's memory shrank")?;
        }
    }
    // SAFETY: as above; if it is gone, this is the end of the machine.
    let kept = unsafe { last.read_volatile() };
    must(kept == 42, "the memory has changed")
}

/// The device makes whoever reads an event of its interrupts wait: nobody does.
pub fn check_waits() -> Result<(), Failure> {
    Function::find()?.set(register::TROUBLE, register::WAIT_AT_EVENTS);
    check_msix()?;
    check_msi()?;
    check_intx()?;
    check_reset()
}

/// The device is lost in the middle of an operation: it reads as ones from then on, and this goes on.
fn lose(trouble: u32) -> Result<(), Failure> {
    let function = Function::find()?;
    let buffer = alloc::vec![0_u8; 4096];
    function.set(register::TROUBLE, trouble);
    let done = function.dma(register::TO_GUEST, buffer.as_ptr() as u64, 0, 4096);
    must(!done, "the operation succeeded")?;
    for at in [register::ID, register::SCRATCH, register::STATUS] {
        let value = function.get(at);
        must(
            value == u32::MAX,
            format_args!("register {at:#x} reads as {value:#x}"),
        )?;
    }
    // Writes go nowhere, and nothing waits for them.
    for value in 0..1000 {
        function.set(register::SCRATCH, value);
    }
    let express = function.capability(0x10).ok_or("no PCI Express")?;
    must(
        function.config(express + 4) == u32::MAX,
        "its configuration does not read as ones",
    )?;
    print(format_args!("LOST\n"));
    Ok(())
}
