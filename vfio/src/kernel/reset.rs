//! The reset of a whole bus, for functions that have none of their own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::ioctl::{self, Sized32};

/// A function that a reset of the bus would reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affected {
    pub group: u32,
    domain: u16,
    bus: u8,
    /// Five bits of device number, three of function number.
    device_function: u8,
}

impl Affected {
    pub fn address(&self) -> String {
        let (device, function) = (self.device_function >> 3, self.device_function & 7);
        let Self { domain, bus, .. } = self;
        format!("{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// The addresses of `all`, for a message.
pub fn addresses(all: &[Affected]) -> String {
    let addresses: Vec<String> = all.iter().map(Affected::address).collect();
    addresses.join(", ")
}

/// Words of struct vfio_pci_hot_reset_info before the functions: argsz, flags, count.
const HEAD: usize = 3;

/// What a reset of `device`'s bus would reset.
///
/// # Errors
/// There is no such reset.
pub fn affected(device: &File) -> io::Result<Vec<Affected>> {
    let mut info = Sized32::new(&[0, 0], 0);
    loop {
        // SAFETY: the call writes at most as much as `argsz`, the first word, says.
        let done =
            unsafe { ioctl::with(device, ioctl::DEVICE_GET_PCI_HOT_RESET_INFO, info.as_mut()) };
        let count = info.words().get(2).copied().unwrap_or(0);
        let words = HEAD + 2 * usize::try_from(count).unwrap_or(0).min(1 << 12);
        match done {
            Ok(_) => return Ok(parse(info.words())),
            Err(error)
                if error.raw_os_error() == Some(libc::ENOSPC) && words > info.words().len() =>
            {
                info = Sized32::new(&[0, 0], words * 4);
            }
            Err(error) => return Err(error),
        }
    }
}

fn parse(words: &[u32]) -> Vec<Affected> {
    let count = words.get(2).copied().unwrap_or(0);
    let (functions, _) = words.get(HEAD..).unwrap_or_default().as_chunks::<2>();
    let function = |[group, place]: &[u32; 2]| {
        let [low, high, bus, device_function] = place.to_le_bytes();
        Affected {
            group: *group,
            domain: u16::from_le_bytes([low, high]),
            bus,
            device_function,
        }
    };
    let count = usize::try_from(count).unwrap_or(0);
    functions.iter().take(count).map(function).collect()
}

/// Resets the bus of `device`. `groups` are the groups of all functions that it resets.
///
/// # Errors
/// The kernel refused.
pub fn hot(device: &File, groups: &[&File]) -> io::Result<()> {
    let count = u32::try_from(groups.len()).map_err(io::Error::other)?;
    let mut fields = vec![0, count];
    fields.extend(groups.iter().map(|group| group.as_raw_fd().cast_unsigned()));
    let mut argument = Sized32::new(&fields, 0);
    // SAFETY: the call reads as much as `argsz`, the first word, says.
    unsafe { ioctl::with(device, ioctl::DEVICE_PCI_HOT_RESET, argument.as_mut()) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_of_a_bus_are_read_as_the_kernel_writes_them() {
        let words = [28, 0, 2, 7, 0xF800_0000 | 1 << 16, 8, 0x0901_0002];
        let all = parse(&words);
        assert_eq!(addresses(&all), "0000:01:1f.0, 0002:01:01.1");
        assert_eq!(all.iter().map(|f| f.group).collect::<Vec<_>>(), [7, 8]);
        assert!(parse(&words[..4]).is_empty(), "half a function");
        assert!(parse(&[]).is_empty());
    }
}
