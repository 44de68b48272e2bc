//! A bare-metal test guest: no Linux, no firmware. The monitor loads it as it would load a kernel; it drops to CPL3 at
//! once, because that runs natively even where guest kernel mode is interpreted, and drives our devices with the
//! independent drivers of the crate `virtio-drivers`.
//!
//! The command line says what to do, words separated by spaces: `entry`, `pci`, `entropy`, `interrupt`, `block`,
//! `read-only`, `vsock`, `hot-plug`, `balloon`, `net`, `net-offload`, `net-flood`, or what to measure: `bench-block`,
//! `bench-vsock`, `bench-net`; of a function that is passed through `passthrough`, `passthrough-msix`, `passthrough-many`, `passthrough-msi`,
//! `passthrough-intx`, `passthrough-reset`, `passthrough-plugged`, `passthrough-dies`, `passthrough-hangs`, `passthrough-shrinks`,
//! `passthrough-waits`; then how to end: `reset` (the default), `poweroff`, `panic`, `triple-fault`, `hang`.
//! Each check and each measurement prints `PASS name` or `FAIL name: reason` on the serial port.
#![no_std]
#![no_main]

extern crate alloc;

mod bench;
mod checks;
mod console;
mod interrupt;
mod memory;
mod pci;
mod port;
mod start;

use console::print;

/// Why a check failed.
pub type Failure = alloc::string::String;

/// Called by `start` at CPL3 with interrupts on, the zero page's address as its argument.
extern "C" fn main(zero_page: u64) -> ! {
    let line = memory::command_line(zero_page);
    let mut end = "reset";
    for word in line.split(' ').filter(|word| !word.is_empty()) {
        let outcome = match word {
            "entry" => checks::entry::check(zero_page),
            "pci" => checks::pci::check(),
            "entropy" => checks::entropy::check(),
            "interrupt" => checks::interrupt::check(),
            "block" => checks::block::check(),
            "read-only" => checks::block::check_read_only(),
            "vsock" => checks::vsock::check(),
            "hot-plug" => checks::hot_plug::check(),
            "balloon" => checks::balloon::check(),
            "net" => checks::net::check(),
            "net-offload" => checks::net::check_offload(),
            "net-flood" => checks::net::check_flood(),
            "passthrough" => checks::passthrough::check(),
            "passthrough-msix" => checks::passthrough::check_msix(),
            "passthrough-many" => checks::passthrough::check_many(),
            "passthrough-msi" => checks::passthrough::check_msi(),
            "passthrough-intx" => checks::passthrough::check_intx(),
            "passthrough-reset" => checks::passthrough::check_reset(),
            "passthrough-plugged" => checks::passthrough::check_plugged(),
            "passthrough-dies" => checks::passthrough::check_dies(),
            "passthrough-shrinks" => checks::passthrough::check_shrinks(),
            "passthrough-waits" => checks::passthrough::check_waits(),
            "passthrough-hangs" => checks::passthrough::check_hangs(),
            "bench-block" => bench::block::run(line),
            "bench-vsock" => bench::vsock::run(line),
            "bench-net" => bench::net::run(line),
            "reset" | "poweroff" | "panic" | "triple-fault" | "hang" => {
                end = word;
                continue;
            }
            _ => continue,
        };
        match outcome {
            Ok(()) => print(format_args!("PASS {word}\n")),
            Err(reason) => print(format_args!("FAIL {word}: {reason}\n")),
        }
    }
    print(format_args!("END {end}\n"));
    finish(end)
}

/// Ends the machine in the given way.
fn finish(how: &str) -> ! {
    match how {
        "poweroff" => port::write8(port::SLEEP_CONTROL, port::POWER_OFF),
        // PVPANIC_PANICKED.
        "panic" => port::write8(port::PVPANIC, 1),
        "triple-fault" => interrupt::triple_fault(),
        "hang" => {}
        // The keyboard controller's "pulse reset line".
        _ => port::write8(0x64, 0xFE),
    }
    loop {
        core::hint::spin_loop();
    }
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    print(format_args!("FAIL panic: {info}\n"));
    finish("reset")
}
