//! As a program in a running system: where a drive is, and whether anything uses it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;

use crate::boot::find_drive;

/// Waits for the drive `id` and prints its device, and `used` or `free`: mounted or not, as a disk, as swap, as a part of
/// another device.
///
/// # Errors
/// One line that says what failed.
pub fn report(id: &str) -> Result<(), String> {
    let device = find_drive(id)?;
    // Without O_CREAT it means: fail with EBUSY if the device is in use (open(2)).
    let alone = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(&device);
    let used = match alone {
        Ok(_) => "free",
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => "used",
        Err(error) => return Err(format!("cannot open {}: {error}", device.display())),
    };
    println!("{} {used}", device.display());
    Ok(())
}
