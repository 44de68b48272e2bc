//! The monitor's log: lines like Firecracker's, to standard error or to a file.
//!
//! `2026-11-03T05:34:25.180751152Z [id:thread:LEVEL:file:line] message`; level and origin only when asked for.
//!
//! A message that a guest or a client can trigger at will must not fill the disk: each place in the code gets
//! [`BURST`] lines in [`WINDOW`]; how many were left out stands in the next line that is let through.

mod limit;
mod time;

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use fief_api::LogLevel;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::machine::files::Files;
use limit::Limits;
pub use limit::{BURST, WINDOW};

/// Longest line in bytes: parts of a message may come from a client or a guest.
const LINE_MAX: usize = 2048;

/// Why the log cannot be written where it should.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the log file {}", path.display())]
pub struct LogError {
    path: PathBuf,
    source: std::io::Error,
}

/// What decides which lines are written, and how they look.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Style {
    id: String,
    level: LevelFilter,
    show_level: bool,
    show_origin: bool,
    /// Only this module and those inside it.
    module: Option<String>,
}

struct State {
    style: Style,
    /// Standard error without one.
    file: Option<File>,
    limits: Limits,
}

static STATE: Mutex<State> = Mutex::new(State {
    style: Style {
        id: String::new(),
        level: LevelFilter::INFO,
        show_level: false,
        show_origin: false,
        module: None,
    },
    file: None,
    limits: Limits::new(),
});

/// A log line never fails because another thread panicked while it wrote one.
fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts logging for the instance `id`. Only the first call in a process installs it.
pub fn install(id: &str) {
    state().style.id = id.to_owned();
    // An error means that it is installed already (tests).
    let _ = tracing::subscriber::set_global_default(Log);
}

/// Applies what `settings` gives and keeps the rest.
///
/// # Errors
/// The log file cannot be opened; nothing is changed then.
pub fn configure(settings: &fief_api::Logger, files: &Files) -> Result<(), LogError> {
    let file = settings
        .log_path
        .as_ref()
        .map(|path| open(files, Path::new(path)))
        .transpose()?;
    {
        let mut state = state();
        if file.is_some() {
            state.file = file;
        }
        state.style.apply(settings);
    }
    // Call sites cache whether they are enabled.
    tracing::callsite::rebuild_interest_cache();
    Ok(())
}

fn open(files: &Files, path: &Path) -> Result<File, LogError> {
    files.open_output(path).map_err(|source| LogError {
        path: path.to_owned(),
        source,
    })
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warning => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

impl Style {
    fn apply(&mut self, settings: &fief_api::Logger) {
        if let Some(level) = settings.level {
            self.level = filter(level);
        }
        self.show_level = settings.show_level.unwrap_or(self.show_level);
        self.show_origin = settings.show_log_origin.unwrap_or(self.show_origin);
        if settings.module.is_some() {
            self.module.clone_from(&settings.module);
        }
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && self.is_in_module(metadata.target())
    }

    fn is_in_module(&self, target: &str) -> bool {
        let Some(module) = &self.module else {
            return true;
        };
        let rest = target.strip_prefix(module.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }

    /// A whole line with its end.
    fn line(
        &self,
        now: SystemTime,
        metadata: &Metadata<'_>,
        message: &str,
        left_out: u64,
    ) -> String {
        let thread = std::thread::current();
        let mut line = format!(
            "{} [{}:{}",
            time::Utc(now),
            self.id,
            thread.name().unwrap_or("-")
        );
        // Writing to a String cannot fail.
        if self.show_level {
            let _ = write!(line, ":{}", metadata.level());
        }
        if let (true, Some(file)) = (self.show_origin, metadata.file()) {
            let _ = write!(line, ":{file}:{}", metadata.line().unwrap_or_default());
        }
        line.push_str("] ");
        // One message, one line, whatever it quotes.
        line.extend(
            message
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c }),
        );
        if line.len() > LINE_MAX {
            line.truncate(line.floor_char_boundary(LINE_MAX));
            line.push_str("...");
        }
        if left_out > 0 {
            let _ = write!(line, " ({left_out} more like this were left out)");
        }
        line.push('\n');
        line
    }
}

/// The subscriber; its state is global because there is one log a process.
struct Log;

impl Subscriber for Log {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // Level and module can change at any time before the machine starts.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && state().style.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(state().style.level)
    }

    fn event(&self, event: &Event<'_>) {
        let mut message = Message::default();
        event.record(&mut message);
        let metadata = event.metadata();
        let mut state = state();
        // Details are for whoever asked for them and looks on; the limit would hide what they look for.
        let limited = *metadata.level() <= Level::INFO;
        let left_out = match limited {
            true => state.limits.admit(&metadata.callsite(), Instant::now()),
            false => Some(0),
        };
        if let Some(left_out) = left_out {
            let line = state
                .style
                .line(SystemTime::now(), metadata, &message.0, left_out);
            // Nobody is left to tell when the log cannot be written.
            let _ = match &mut state.file {
                Some(file) => file.write_all(line.as_bytes()),
                None => std::io::stderr().write_all(line.as_bytes()),
            };
        }
    }

    // Nothing in the monitor opens spans.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The text of an event and its fields, as `message key=value`.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            let text = format!("{value:?}");
            self.0.insert_str(0, &text);
            Ok(())
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

#[cfg(test)]
mod tests;
