//! What happens to the machine, as JSON lines for whoever started the monitor (`--event-path`).

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::machine::files::Files;
use crate::machine::{ExitReason, Notice, Released};

/// The event file could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the event file {}", path.display())]
pub struct EventError {
    path: PathBuf,
    source: io::Error,
}

/// Takes the events. Without a file they go nowhere.
#[derive(Debug, Default)]
pub struct Events {
    file: Option<File>,
}

impl Events {
    /// Opens the file or named pipe at `path`; a file is made if there is none, and appended to.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(files: &Files, path: Option<&Path>) -> Result<Self, EventError> {
        let open = |path: &Path| {
            files.open_output(path).map_err(|source| EventError {
                path: path.to_owned(),
                source,
            })
        };
        let file = path.map(open).transpose()?;
        Ok(Self { file })
    }

    /// The machine runs for the first time.
    pub fn started(&self) {
        self.write(&serde_json::json!({"event": "started", "pid": std::process::id()}));
    }

    /// The guest rebooted: the machine started again in place.
    pub fn rebooted(&self) {
        self.write(&serde_json::json!({"event": "reboot"}));
    }

    /// The guest let go of a drive or a passed-through device as it was asked to, and that is gone.
    pub fn released(&self, what: &Released) {
        self.write(&match what {
            Released::Drive(id) => serde_json::json!({"event": "drive-released", "drive_id": id}),
            Released::Device(id) => serde_json::json!({"event": "device-released", "id": id}),
        });
    }

    /// Something happened to a passed-through device.
    pub fn noticed(&self, id: &str, notice: Notice) {
        let event = match notice {
            Notice::Error => "device-error",
            Notice::Requested => "device-requested",
            Notice::Gone => "device-gone",
        };
        self.write(&serde_json::json!({"event": event, "id": id}));
    }

    /// The machine ended; the monitor will end with `exit_code`.
    pub fn ended(&self, reason: &ExitReason, exit_code: u8) {
        if *reason == ExitReason::Panic {
            self.write(&serde_json::json!({"event": "panic"}));
        }
        let mut line =
            serde_json::json!({"event": "exit", "reason": name(reason), "exit_code": exit_code});
        if let (ExitReason::Failed(what), Some(line)) = (reason, line.as_object_mut()) {
            line.insert("message".to_owned(), what.clone().into());
        }
        self.write(&line);
    }

    /// One line, one write: a reader never sees half of one.
    fn write(&self, event: &serde_json::Value) {
        let Some(mut file) = self.file.as_ref() else {
            return;
        };
        if let Err(error) = file.write_all(format!("{event}\n").as_bytes()) {
            tracing::warn!("cannot write to the event file: {error}");
        }
    }
}

/// The word for a reason in events.
pub fn name(reason: &ExitReason) -> &'static str {
    match reason {
        ExitReason::PowerOff => "poweroff",
        ExitReason::Reboot => "reboot",
        ExitReason::Panic => "panic",
        ExitReason::TripleFault => "triple-fault",
        ExitReason::Stopped => "stopped",
        ExitReason::Failed(_) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_json_lines_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let events = Events::open(&Files::new(), Some(&path)).unwrap();
        events.started();
        events.rebooted();
        events.released(&Released::Drive("data".to_owned()));
        events.ended(&ExitReason::Panic, 20);
        events.ended(&ExitReason::Failed("no\nmore".to_owned()), 1);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 6);
        assert_eq!(lines[0]["event"], "started");
        assert_eq!(lines[0]["pid"], std::process::id());
        assert_eq!(lines[1], serde_json::json!({"event": "reboot"}));
        let released = serde_json::json!({"event": "drive-released", "drive_id": "data"});
        assert_eq!(lines[2], released);
        assert_eq!(lines[3], serde_json::json!({"event": "panic"}));
        let exit = serde_json::json!({"event": "exit", "reason": "panic", "exit_code": 20});
        assert_eq!(lines[4], exit);
        assert_eq!(lines[5]["message"], "no\nmore");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = Events::open(&Files::new(), Some(Path::new("/no/such/events"))).unwrap_err();
        assert!(error.to_string().contains("/no/such/events"));
    }

    #[test]
    fn without_a_file_nothing_is_written() {
        let events = Events::open(&Files::new(), None).unwrap();
        events.started();
        assert!(events.file.is_none());
    }
}
