//! What the guest finds when it starts: kernel, initrd, command line, boot parameters, page tables, ACPI tables.

pub mod acpi;
pub mod cmdline;
mod copy;
pub mod initrd;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod params;
pub mod reset_vector;

use std::fs::File;
use std::io;
use std::path::PathBuf;

use fief_devices::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::vcpu::{Entry, gdt};

/// Why a guest cannot be started with what it was given.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot open the {what} {}: {source}", path.display())]
    Open {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is no kernel for this machine: {source}", path.display())]
    Kernel {
        path: PathBuf,
        source: kernel::KernelError,
    },
    #[error("cannot load the initrd {}: {source}", path.display())]
    Initrd {
        path: PathBuf,
        source: initrd::InitrdError,
    },
    #[error(transparent)]
    Cmdline(#[from] cmdline::CmdlineError),
    #[error(
        "the guest has {size:#x} bytes of memory, too few for its boot data; give it at least 2 MiB and the kernel's size"
    )]
    NoRoom { size: u64 },
    #[error("the ACPI tables need {got} bytes, but there is room for {room}")]
    AcpiTooLarge { got: usize, room: usize },
}

/// What to boot; read again for every start of the machine.
pub struct BootFiles {
    pub kernel_path: PathBuf,
    pub kernel: File,
    pub initrd: Option<(PathBuf, File)>,
    /// Checked command line.
    pub cmdline: cmdline::Cmdline,
    /// ACPI tables, to be placed at [`layout::ACPI_START`].
    pub acpi: Vec<u8>,
    pub vcpus: u8,
}

/// Puts everything into guest RAM, which must be all zero, and says where the boot CPU starts.
///
/// # Errors
/// See [`BootError`].
pub fn load(files: &BootFiles, ram: &GuestRam, size: u64) -> Result<Entry, BootError> {
    let kernel = kernel::load(&files.kernel, ram, size).map_err(|source| BootError::Kernel {
        path: files.kernel_path.clone(),
        source,
    })?;
    let initrd = match &files.initrd {
        None => None,
        Some((path, file)) => {
            Some(
                initrd::load(file, ram, size, &kernel).map_err(|source| BootError::Initrd {
                    path: path.clone(),
                    source,
                })?,
            )
        }
    };
    let no_room = |_| BootError::NoRoom { size };
    let room = usize::try_from(layout::ACPI_END.saturating_sub(layout::ACPI_START)).unwrap_or(0);
    if files.acpi.len() > room {
        return Err(BootError::AcpiTooLarge {
            got: files.acpi.len(),
            room,
        });
    }
    ram.write_slice(&files.acpi, GuestAddress(layout::ACPI_START))
        .map_err(no_room)?;
    ram.write_slice(&mptable::pointer(), GuestAddress(mptable::POINTER_START))
        .map_err(no_room)?;
    ram.write_slice(
        &mptable::table(files.vcpus),
        GuestAddress(layout::MP_TABLE_START),
    )
    .map_err(no_room)?;
    ram.write_slice(&reset_vector::CODE, GuestAddress(layout::RESET_VECTOR))
        .map_err(no_room)?;
    ram.write_slice(
        files.cmdline.as_bytes(),
        GuestAddress(layout::CMDLINE_START),
    )
    .map_err(no_room)?;
    let long = matches!(kernel.entry, kernel::EntryPoint::Linux64(_));
    for (descriptor, at) in gdt(long).into_iter().zip((layout::GDT_START..).step_by(8)) {
        ram.write_obj(descriptor, GuestAddress(at))
            .map_err(no_room)?;
    }
    match kernel.entry {
        kernel::EntryPoint::Linux64(rip) => {
            params::write_page_tables(ram).map_err(no_room)?;
            params::write_zero_page(ram, size, &kernel, initrd, &files.cmdline).map_err(no_room)?;
            Ok(Entry::Linux64 {
                rip,
                boot_params: layout::BOOT_PARAMS_START,
            })
        }
        kernel::EntryPoint::Pvh(eip) => {
            params::write_start_info(ram, size, initrd).map_err(no_room)?;
            Ok(Entry::Pvh {
                eip,
                start_info: u32::try_from(layout::BOOT_PARAMS_START).unwrap_or(0),
            })
        }
    }
}

#[cfg(test)]
mod tests;
