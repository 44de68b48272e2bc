//! Long work, shown: bars on a terminal, plain lines elsewhere. All of it goes to standard error.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fief_images::{Progress, Unit};
use indicatif::{ProgressBar, ProgressStyle};

use crate::terminal::say;

/// Steps shorter than this are not worth a line.
const WORTH_A_LINE: Duration = Duration::from_secs(3);

/// Shows steps as they come.
#[derive(Debug, Default)]
pub struct Shown {
    step: Mutex<Option<Step>>,
}

#[derive(Debug)]
struct Step {
    title: String,
    begun: Instant,
    bar: Option<ProgressBar>,
    announced: bool,
}

impl Shown {
    fn with(&self, each: impl FnOnce(&mut Option<Step>)) {
        each(&mut self.step.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A step that counts nothing.
    pub fn step(&self, title: &str) {
        self.begin(title, Unit::Items, None);
    }
}

impl Progress for Shown {
    fn begin(&self, title: &str, unit: Unit, total: Option<u64>) {
        self.end();
        let bar = std::io::stderr()
            .is_terminal()
            .then(|| bar(title, unit, total));
        let step = Step {
            title: title.to_owned(),
            begun: Instant::now(),
            bar,
            announced: false,
        };
        self.with(|current| *current = Some(step));
    }

    fn done(&self, done: u64) {
        self.with(|step| match step {
            Some(Step { bar: Some(bar), .. }) => bar.set_position(done),
            Some(step) if !step.announced && step.begun.elapsed() >= WORTH_A_LINE => {
                step.announced = true;
                say(&format!("fief: {} …", step.title));
            }
            _ => {}
        });
    }

    fn end(&self) {
        self.with(|step| {
            let Some(step) = step.take() else { return };
            let took = step.begun.elapsed();
            if let Some(bar) = step.bar {
                bar.finish_and_clear();
            }
            if took >= WORTH_A_LINE {
                say(&format!(
                    "fief: {} ({:.1} s)",
                    step.title,
                    took.as_secs_f64()
                ));
            }
        });
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // A step that failed shall not leave its bar on the screen, nor claim to be done.
        self.with(|step| {
            if let Some(bar) = step.take().and_then(|step| step.bar) {
                bar.finish_and_clear();
            }
        });
    }
}

fn bar(title: &str, unit: Unit, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match (total, unit) {
        (Some(total), Unit::Bytes) => (
            ProgressBar::new(total),
            "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {eta}",
        ),
        (Some(total), Unit::Items) => (
            ProgressBar::new(total),
            "{spinner} {msg} [{bar:30}] {pos}/{len} {eta}",
        ),
        (None, _) => (ProgressBar::new_spinner(), "{spinner} {msg} {elapsed}"),
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(title.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
