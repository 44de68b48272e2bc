//! Messages for people, in the kernel log when the agent starts a machine's system, else on stderr.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static TO_KERNEL: AtomicBool = AtomicBool::new(false);

/// From now on messages go to the kernel log.
pub fn to_kernel_log() {
    TO_KERNEL.store(true, Ordering::Relaxed);
}

/// Something failed (kernel log level 3: shown also with `quiet`).
pub fn error(message: impl AsRef<str>) {
    say(3, message.as_ref());
}

/// Something is worth knowing (level 6).
pub fn info(message: impl AsRef<str>) {
    say(6, message.as_ref());
}

fn say(level: u8, message: &str) {
    // A message that cannot be written has nowhere else to go.
    if TO_KERNEL.load(Ordering::Relaxed)
        && let Ok(mut log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg")
    {
        let _ = log.write_all(format!("<{level}>fief-agent: {message}\n").as_bytes());
    } else {
        let _ = writeln!(std::io::stderr(), "fief-agent: {message}");
    }
}
