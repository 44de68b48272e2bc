//! Interrupts of the device: MSI-X, MSI and the wired line.

use super::function::{Function, register};
use super::must;
use crate::Failure;
use crate::interrupt::{VECTOR, VECTORS, counts};
use crate::memory::registers;

/// Where messages go: the local APIC of processor 0.
const APIC: u32 = 0xFEE0_0000;
/// The I/O APIC: an index, and what it is the index of.
const IO_APIC: u64 = 0xFEC0_0000;
const PINS: u32 = 24;
/// Pins of ISA devices, which no PCI function has.
const ISA_PINS: u32 = 16;
/// Bits of a redirection entry: level-triggered, masked.
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// How many interrupts are many.
const MANY: u32 = 400;

/// Waits until `so`; false if it is not for very long: what is to come takes a turn of another process, on a machine that
/// may be busy.
fn wait_until(so: impl FnMut() -> bool) -> bool {
    wait_for(100_000_000, so)
}

fn wait_for(rounds: u32, mut so: impl FnMut() -> bool) -> bool {
    (0..rounds).any(|_| {
        core::hint::spin_loop();
        so()
    })
}

/// Waits until no interrupt came for a while: those that were on their way.
fn settle() {
    let mut last = counts();
    while wait_for(200_000, || counts() != last) {
        last = counts();
    }
}

/// What the vectors have counted since `before`.
fn since(before: [u32; VECTORS]) -> [u32; VECTORS] {
    let now = counts();
    core::array::from_fn(|index| now[index] - before[index])
}

/// One interrupt of vector `index` and none of another.
fn only(index: usize) -> [u32; VECTORS] {
    core::array::from_fn(|other| u32::from(other == index))
}

/// Raises interrupt `index` of the device, which is to arrive as that vector, once.
fn raise(function: &Function, index: usize) -> Result<(), Failure> {
    let before = counts();
    function.set(register::RAISE, index as u32);
    wait_until(|| since(before) != [0; VECTORS]);
    let came = since(before);
    must(
        came == only(index),
        format_args!("for vector {index} came {came:?}"),
    )
}

/// The same, of an interrupt that is masked: nothing comes, and `pending` says so until `unmask` lets it come.
fn raise_masked(
    function: &Function,
    index: usize,
    pending: impl Fn() -> u32,
    unmask: impl Fn(),
) -> Result<(), Failure> {
    must(pending() == 0, "an interrupt is pending at first")?;
    let before = counts();
    function.set(register::RAISE, index as u32);
    must(
        wait_until(|| pending() == 1 << index),
        "the pending bit is not set",
    )?;
    must(
        since(before) == [0; VECTORS],
        "an interrupt came although it is masked",
    )?;
    unmask();
    must(
        wait_until(|| since(before) == only(index)),
        "what was pending did not come",
    )?;
    must(
        wait_until(|| pending() == 0),
        "the pending bit is still set",
    )
}

/// Vectors of MSI-X, one of them masked.
pub fn check_msix() -> Result<(), Failure> {
    let function = Function::find()?;
    let msix = function.capability(0x11).ok_or("no MSI-X")?;
    let (bar4, _) = function.bar(4);
    let table = registers(bar4 + function.table()).cast::<u32>();
    let pending = registers(bar4 + function.table() + 4 * 16).cast::<u32>();
    // Entry and field of the table.
    let set = |entry: usize, field: usize, value: u32| {
        // SAFETY: the table of four entries of four fields.
        unsafe { table.add(4 * entry + field).write_volatile(value) };
    };
    for entry in 0..4 {
        set(entry, 0, APIC);
        set(entry, 1, 0);
        set(entry, 2, VECTOR + entry as u32);
        set(entry, 3, u32::from(entry == 2));
    }
    let control = function.config(msix) & 0x3FFF_FFFF;
    function.set_config(msix, control | 1 << 31);
    must(
        function.get(register::ENABLED) == 4 << 8,
        "the device has not all vectors",
    )?;
    for index in [0, 1, 3, 0] {
        raise(&function, index)?;
    }
    // SAFETY: the pending bits, of which there are 64.
    let pending = || unsafe { pending.read_volatile() };
    raise_masked(&function, 2, pending, || set(2, 3, 0))?;
    raise(&function, 2)?;
    // All at once: the function's own mask.
    function.set_config(msix, control | 0b11 << 30);
    raise_masked(&function, 1, pending, || {
        function.set_config(msix, control | 1 << 31);
    })?;
    // An entry that is led elsewhere while it is in use.
    set(0, 3, 1);
    set(0, 2, VECTOR + 7);
    set(0, 3, 0);
    let before = counts();
    function.set(register::RAISE, 0);
    must(
        wait_until(|| since(before) == only(7)),
        "a changed entry is not used",
    )?;
    function.set_config(msix, control);
    must(
        function.get(register::ENABLED) == 0,
        "the device has vectors although they are off",
    )
}

/// Many interrupts, one after another: what each costs the monitor adds up.
pub fn check_many() -> Result<(), Failure> {
    let function = Function::find()?;
    let msix = function.capability(0x11).ok_or("no MSI-X")?;
    let (bar4, _) = function.bar(4);
    let table = registers(bar4 + function.table()).cast::<u32>();
    for (field, value) in [APIC, 0, VECTOR, 0].into_iter().enumerate() {
        // SAFETY: the first entry of the table, of four fields.
        unsafe { table.add(field).write_volatile(value) };
    }
    let control = function.config(msix) & 0x3FFF_FFFF;
    function.set_config(msix, control | 1 << 31);
    for _ in 0..MANY {
        raise(&function, 0)?;
    }
    function.set_config(msix, control);
    Ok(())
}

/// Vectors of MSI, with mask and pending bits.
pub fn check_msi() -> Result<(), Failure> {
    let function = Function::find()?;
    let msi = function.capability(5).ok_or("no MSI")?;
    function.set_config(msi + 4, APIC);
    function.set_config(msi + 8, 0);
    function.set_config(msi + 12, VECTOR);
    // All eight vectors (three bits from 4 on); 3 is masked.
    function.set_config(msi + 16, 1 << 3);
    let control = function.config(msi) & 0xFF8E_FFFF;
    function.set_config(msi, control | (3 << 4 | 1) << 16);
    must(
        function.get(register::ENABLED) == 8,
        "the device has not all vectors",
    )?;
    for index in [0, 1, 2, 4, 7] {
        raise(&function, index)?;
    }
    let pending = || function.config(msi + 20);
    raise_masked(&function, 3, pending, || function.set_config(msi + 16, 0))?;
    raise(&function, 3)?;
    function.set_config(msi, control);
    must(
        function.get(register::ENABLED) == 0,
        "the device has vectors although they are off",
    )
}

/// Writes half a redirection entry of the I/O APIC.
fn redirect(pin: u32, high: bool, value: u32) {
    let base = registers(IO_APIC).cast::<u32>();
    // SAFETY: the I/O APIC's index and data registers.
    unsafe {
        base.write_volatile(0x10 + 2 * pin + u32::from(high));
        base.add(4).write_volatile(value);
    }
}

/// The wired line: interrupts come as long as it is asserted, and not while the function is told not to use it.
pub fn check_intx() -> Result<(), Failure> {
    let function = Function::find()?;
    must(
        function.config(0x3C) >> 8 & 0xFF == 1,
        "the device has no pin",
    )?;
    // Which pin of the I/O APIC it is, only ACPI's tables say: all lead to the first vector.
    for pin in ISA_PINS..PINS {
        redirect(pin, true, 0);
        redirect(pin, false, VECTOR | LEVEL);
    }
    let before = counts();
    function.set(register::LINE, 1);
    must(
        !wait_for(3_000_000, || since(before) != [0; VECTORS]),
        "an interrupt came although the line is off",
    )?;
    function.wire(true);
    function.set(register::LINE, 1);
    // It is asserted still when the first one was served, so another comes.
    must(
        wait_until(|| since(before)[0] >= 3),
        format_args!("{} interrupts came", since(before)[0]),
    )?;
    function.set(register::LINE, 0);
    settle();
    for round in 0..10 {
        let before = counts();
        function.set(register::LINE, 1);
        must(
            wait_until(|| since(before)[0] >= 1),
            format_args!("nothing came in round {round}"),
        )?;
        function.set(register::LINE, 0);
        settle();
    }
    for pin in ISA_PINS..PINS {
        redirect(pin, false, MASKED);
    }
    function.wire(false);
    Ok(())
}
