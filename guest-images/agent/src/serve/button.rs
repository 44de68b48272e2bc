//! The ACPI power button, as an input device.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// linux/input-event-codes.h: EV_KEY and KEY_POWER.
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// `struct input_event` on x86-64: two 8-byte times, u16 type, u16 code, i32 value.
const EVENT_LEN: usize = 24;

/// All power buttons there are.
#[derive(Debug, Default)]
pub struct PowerButtons {
    files: Vec<File>,
}

impl PowerButtons {
    /// Opens the input devices called "Power Button", the name the ACPI driver gives.
    pub fn find() -> PowerButtons {
        let entries = std::fs::read_dir("/sys/class/input")
            .into_iter()
            .flatten()
            .flatten();
        let files = entries.filter_map(|entry| {
            let name = std::fs::read_to_string(entry.path().join("device/name")).ok()?;
            let event = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.starts_with("event"));
            let open = || {
                let path = std::path::Path::new("/dev/input").join(entry.file_name());
                OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(path)
                    .ok()
            };
            (event && name.trim_end() == "Power Button").then(open)?
        });
        PowerButtons {
            files: files.collect(),
        }
    }

    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Reads what happened; whether a button went down.
    pub fn pressed(&mut self, index: usize) -> bool {
        let mut events = [0; 16 * EVENT_LEN];
        let Some(file) = self.files.get_mut(index) else {
            return false;
        };
        let Ok(count) = file.read(&mut events) else {
            // The device has gone.
            self.files.remove(index);
            return false;
        };
        events[..count].chunks_exact(EVENT_LEN).any(|event| {
            let word = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
            word(16) == EV_KEY && word(18) == KEY_POWER && event[20..24] == 1i32.to_le_bytes()
        })
    }
}
