//! The kernel command line: the user's, plus the description of the root device.

use crate::config::DriveConfig;

use super::layout::CMDLINE_MAX;

/// Why a command line cannot be given to a kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CmdlineError {
    #[error("the kernel command line has {got} bytes; x86 Linux takes {}", CMDLINE_MAX - 1)]
    TooLong { got: usize },
    #[error(
        "the kernel command line has a zero byte or control character at position {at}; remove it"
    )]
    Character { at: usize },
}

/// A command line with its terminating zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline(Vec<u8>);

impl Cmdline {
    /// Checks `args` and adds `root=` for the root device.
    ///
    /// `pci=off`, which command lines written for virtio-mmio carry, is dropped with a warning: every device here is a
    /// PCI function.
    ///
    /// # Errors
    /// Too long, or not printable.
    pub fn new(args: &str, drives: &[DriveConfig]) -> Result<Self, CmdlineError> {
        let mut line = if args.split_ascii_whitespace().any(|word| word == "pci=off") {
            tracing::warn!(
                "dropped pci=off from the kernel command line: all devices of this machine are on PCI"
            );
            let kept: Vec<&str> = args
                .split_ascii_whitespace()
                .filter(|word| *word != "pci=off")
                .collect();
            kept.join(" ")
        } else {
            args.to_owned()
        };
        if let Some(root) = drives.iter().find(|drive| drive.root_device) {
            let device = match &root.partuuid {
                Some(uuid) => format!("PARTUUID={uuid}"),
                None => "/dev/vda".to_owned(),
            };
            let mode = if root.read_only { "ro" } else { "rw" };
            let root = format!("root={device} {mode}");
            // What follows `--` goes to init.
            line = match line.split_once(" -- ") {
                Some((kernel, init)) => format!("{kernel} {root} -- {init}"),
                None if line.is_empty() => root,
                None => format!("{line} {root}"),
            };
        }
        if let Some(at) = line.bytes().position(|byte| byte.is_ascii_control()) {
            return Err(CmdlineError::Character { at });
        }
        if line.len() >= CMDLINE_MAX {
            return Err(CmdlineError::TooLong { got: line.len() });
        }
        let mut bytes = line.into_bytes();
        bytes.push(0);
        Ok(Self(bytes))
    }

    /// With the terminating zero.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Length without the terminating zero.
    pub fn len(&self) -> usize {
        self.0.len().saturating_sub(1)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests;
