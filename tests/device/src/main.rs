//! `fief-test-device`: a PCI function in a process of its own, for the tests of passthrough. It speaks vfio-user by the
//! server of the crate `vfio_user`; docs/testing.md tells what registers it has.

mod config;
mod device;
mod dma;
mod interrupts;
mod layout;
mod registers;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vfio_user::Server;

use device::Device;
use layout::Layout;

/// A PCI function for tests, in a process of its own (vfio-user). It serves one machine, prints `ready` once it listens, and ends
/// with that machine.
#[derive(Debug, Parser)]
struct Options {
    /// Where to make the socket that the machine is to connect to
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Memory of BAR 2, a power of two
    #[arg(long, value_name = "MIB", default_value_t = 2, value_parser = mebibytes)]
    memory: u64,
    /// Where MSI-X's table is in BAR 4, a multiple of 8; the pending bits are behind it
    #[arg(long, value_name = "BYTES", default_value_t = 0x2000, value_parser = table_offset)]
    table_offset: u32,
    /// Memory that nobody can seal, so that it can shrink while the guest has it
    #[arg(long)]
    unsealable: bool,
}

fn mebibytes(word: &str) -> Result<u64, String> {
    let mib: u64 = word.parse().map_err(|_| "is no number")?;
    if mib.is_power_of_two() && mib <= 1 << 20 {
        return Ok(mib);
    }
    Err("is no power of two up to 1048576".into())
}

fn table_offset(word: &str) -> Result<u32, String> {
    let offset: u32 = word.parse().map_err(|_| "is no number")?;
    if offset.is_multiple_of(8) && offset < layout::MOST_TABLE_OFFSET {
        return Ok(offset);
    }
    Err(format!(
        "is no multiple of 8 below {}",
        layout::MOST_TABLE_OFFSET
    ))
}

/// Why the device ended.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot make the memory of a BAR: {0}")]
    Memory(#[source] std::io::Error),
    #[error("cannot say that it is ready: {0}")]
    Ready(#[source] std::io::Error),
    #[error("serving failed: {0}; is the socket's path new?")]
    Serve(#[from] vfio_user::Error),
}

fn memory(size: u64, sealable: bool) -> Result<File, Failure> {
    let mut flags = MFdFlags::MFD_CLOEXEC;
    flags.set(MFdFlags::MFD_ALLOW_SEALING, sealable);
    let made = memfd_create("bar", flags);
    let file = File::from(made.map_err(|errno| Failure::Memory(errno.into()))?);
    file.set_len(size).map_err(Failure::Memory)?;
    Ok(file)
}

fn serve(options: &Options) -> Result<(), Failure> {
    let layout = Layout {
        memory: options.memory << 20,
        table: options.table_offset,
    };
    let sealable = !options.unsealable;
    let bar2 = memory(layout.memory, sealable)?;
    let bar4 = memory(layout::BAR4, sealable)?;
    let regions = layout.regions(&bar2, &bar4);
    let server = Server::new(&options.socket, true, layout::irqs(), regions)?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")
        .and_then(|()| out.flush())
        .map_err(Failure::Ready)?;
    let mut device = Device::new(&layout, bar2, bar4);
    Ok(server.run(&mut device)?)
}

fn main() -> ExitCode {
    match serve(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("fief-test-device: {failure}");
            ExitCode::FAILURE
        }
    }
}
