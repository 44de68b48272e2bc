//! A PCI function, by the files that the kernel has about it (Documentation/PCI/sysfs-pci.rst).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::memory::Mapping;
use crate::{Result, failed};

/// The command register, and its bits for memory decoding and bus mastering (PCI 3.0 §6.2.2).
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 0b110;

pub struct Function {
    directory: PathBuf,
    config: File,
}

impl Function {
    /// Opens the function at an address as in `0000:00:05.0`, and lets it answer and do DMA.
    pub fn open(address: &str) -> Result<Self> {
        let directory = PathBuf::from("/sys/bus/pci/devices").join(address);
        let path = directory.join("config");
        let config = OpenOptions::new().read(true).write(true).open(&path);
        let config = config.map_err(failed(format!("cannot open {}", path.display())))?;
        let function = Self { directory, config };
        let command = function.config16(COMMAND)?;
        function.set_config(COMMAND, &(command | MEMORY_AND_MASTER).to_le_bytes())?;
        Ok(function)
    }

    pub fn config8(&self, offset: u64) -> Result<u8> {
        let mut byte = [0];
        self.read_config(offset, &mut byte)?;
        Ok(byte[0])
    }

    pub fn config16(&self, offset: u64) -> Result<u16> {
        let mut bytes = [0; 2];
        self.read_config(offset, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn read_config(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let read = self.config.read_exact_at(bytes, offset);
        read.map_err(failed(format!("cannot read config space at {offset:#x}")))
    }

    pub fn set_config(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.config.write_all_at(bytes, offset);
        written.map_err(failed(format!("cannot write config space at {offset:#x}")))
    }

    /// A memory BAR, all of it.
    pub fn bar(&self, bar: u8) -> Result<Mapping> {
        let path = self.directory.join(format!("resource{bar}"));
        let what = || format!("cannot open {}", path.display());
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.map_err(failed(what()))?;
        let size = file.metadata().map_err(failed(what()))?.len();
        Mapping::of_file(&file, size)
    }
}
