//! What was measured: the JSON that `--json` writes, from which the table and the page are made.

mod html;
mod table;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, on};
use crate::event::Event;
use crate::experiments::{Experiment, named};
use crate::statistics::{median, spread};
use crate::subject::Backend;

pub use html::html;
pub use table::table;

/// Of this file.
const VERSION: u32 = 1;
/// Figures of instructions that vary more than this are told to be unstable.
const STABLE: f64 = 0.05;

/// What a nanosecond of the machine's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    Seconds,
    /// The emulated host's counts instructions.
    Instructions,
}

/// What a figure is a number of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Nanoseconds, or instructions.
    Time,
    Bytes,
    Number,
    /// Things that were counted.
    Count,
    /// Of 100; all: it did not survive.
    Percent,
    /// 1: yes, which is bad; 0: no.
    Answer,
}

/// Where it was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    pub clock: Clock,
    /// Native or emulated, and why.
    pub host: String,
    pub kernel: String,
    pub processor: String,
    pub processors: usize,
    pub memory: String,
    pub kvm: String,
    pub fief: String,
    pub runtime: String,
    pub image: String,
    pub guest_kernel: String,
    /// What each tenant, and the plain host's share, has.
    pub tenant: String,
    /// Other monitors, by name: what they tell of themselves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<String, String>,
}

/// All of one call of `fief bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: u32,
    pub title: String,
    /// Seconds since 1970.
    pub begun: u64,
    /// Nothing was interrupted.
    pub complete: bool,
    /// The flags that it was measured with: all but `--only` and where it was written.
    #[serde(default)]
    pub flags: Vec<String>,
    pub environment: Option<Environment>,
    pub experiments: Vec<Outcome>,
}

/// What one experiment found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub name: String,
    pub title: String,
    pub figures: Vec<Series>,
    /// Backends without figures, or without some, and why.
    pub failed: BTreeMap<Backend, String>,
    /// What the last run found besides figures, by backend.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<Backend, String>,
}

/// One figure, of each backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub name: String,
    pub title: String,
    pub unit: Unit,
    pub of: BTreeMap<Backend, Values>,
}

/// The runs of one figure of one backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Values {
    pub median: f64,
    /// Greatest less least, as a part of the median; of two runs at least.
    pub spread: Option<f64>,
    /// It is of instructions, and they differ by more than 5 %.
    pub unstable: bool,
    pub runs: Vec<f64>,
}

impl Report {
    pub fn new(begun: u64, flags: Vec<String>) -> Self {
        Self {
            version: VERSION,
            title: "fief bench".to_owned(),
            begun,
            complete: false,
            flags,
            environment: None,
            experiments: Vec::new(),
        }
    }

    /// What `--json` wrote.
    ///
    /// # Errors
    /// The file cannot be read, is no report, or is of another version.
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let text = fs::read(path).map_err(on("read", path))?;
        let no_report = |source| Error::NoReport {
            path: path.to_owned(),
            source,
        };
        // First of all: the rest of another version may be anything.
        let Versioned { version } = serde_json::from_slice(&text).map_err(no_report)?;
        if version != VERSION {
            return Err(Error::OtherVersion {
                path: path.to_owned(),
                found: version,
                known: VERSION,
            });
        }
        serde_json::from_slice(&text).map_err(no_report)
    }

    pub fn clock(&self) -> Clock {
        let environment = self.environment.as_ref();
        environment.map_or(Clock::Seconds, |environment| environment.clock)
    }

    /// Takes in what a runner tells. What is of no experiment known here is nothing.
    pub fn hear(&mut self, event: Event) {
        match event {
            Event::Begun { environment, .. } => {
                if environment.clock == Clock::Instructions {
                    self.title = "fief bench: instructions, a lower bound for VM cost".to_owned();
                }
                self.environment = Some(*environment);
            }
            Event::Measured {
                experiment,
                backend,
                values,
            } => {
                let clock = self.clock();
                let Some(outcome) = self.outcome(&experiment) else {
                    return;
                };
                for (series, value) in outcome.figures.iter_mut().zip(values) {
                    series.add(backend.clone(), value, clock);
                }
            }
            Event::Failed {
                experiment,
                backend,
                why,
            } => {
                if let Some(outcome) = self.outcome(&experiment) {
                    outcome.failed.entry(backend).or_insert(why);
                }
            }
            Event::Noted {
                experiment,
                backend,
                note,
            } => {
                if let Some(outcome) = self.outcome(&experiment) {
                    outcome.notes.insert(backend, note);
                }
            }
            Event::Step { .. } => {}
            Event::Ended => self.complete = true,
        }
    }

    fn outcome(&mut self, name: &str) -> Option<&mut Outcome> {
        let at = self.experiments.iter().position(|one| one.name == name);
        if at.is_none() {
            self.experiments.push(Outcome::of(named(name)?));
        }
        match at {
            Some(at) => self.experiments.get_mut(at),
            None => self.experiments.last_mut(),
        }
    }

    /// The backends that anything was measured of, in their order.
    pub fn backends(&self) -> Vec<Backend> {
        let figures = self.experiments.iter().flat_map(|one| &one.figures);
        let mut all: Vec<_> = figures.flat_map(|one| one.of.keys().cloned()).collect();
        let failed = self.experiments.iter().flat_map(|one| one.failed.keys());
        all.extend(failed.cloned());
        all.sort();
        all.dedup();
        all
    }
}

impl Outcome {
    fn of(experiment: &Experiment) -> Self {
        let series = experiment.figures.iter().map(|figure| Series {
            name: figure.name.to_owned(),
            title: figure.title.to_owned(),
            unit: figure.unit,
            of: BTreeMap::new(),
        });
        Self {
            name: experiment.name.to_owned(),
            title: experiment.title.to_owned(),
            figures: series.collect(),
            failed: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }
}

impl Series {
    fn add(&mut self, backend: Backend, value: f64, clock: Clock) {
        let unit = self.unit;
        let values = self.of.entry(backend).or_insert(Values {
            median: value,
            spread: None,
            unstable: false,
            runs: Vec::new(),
        });
        values.runs.push(value);
        values.median = median(&values.runs).unwrap_or(value);
        // Percents and answers say themselves how much they vary.
        let varies = !matches!(unit, Unit::Percent | Unit::Answer);
        values.spread = spread(&values.runs).filter(|_| varies);
        let varies = values.spread.is_some_and(|spread| spread > STABLE);
        values.unstable = varies && clock == Clock::Instructions && unit == Unit::Time;
    }
}

/// A number with its unit, short enough for a column.
pub fn show(value: f64, unit: Unit, clock: Clock) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let found = steps.iter().rev().find(|(least, _)| value.abs() >= *least);
        let (least, name) = found.or(steps.first()).copied().unwrap_or((1.0, ""));
        let number = value / least;
        let digits = match number.abs() {
            0.0 => 0,
            ..10.0 => 2,
            ..100.0 => 1,
            _ => 0,
        };
        format!(
            "{number:.digits$}{}{name}",
            if name.is_empty() { "" } else { " " }
        )
    };
    match (unit, clock) {
        (Unit::Time, Clock::Seconds) => {
            scaled(&[(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")])
        }
        (Unit::Time, Clock::Instructions) => scaled(&[
            (1.0, "instr"),
            (1e3, "k instr"),
            (1e6, "M instr"),
            (1e9, "G instr"),
        ]),
        (Unit::Bytes, _) => scaled(&[
            (1.0, "B"),
            (1024.0, "KiB"),
            (1024.0 * 1024.0, "MiB"),
            (1024.0 * 1024.0 * 1024.0, "GiB"),
        ]),
        (Unit::Number, _) => scaled(&[(1.0, "")]),
        (Unit::Count, _) => format!("{value:.0}"),
        (Unit::Percent, _) if value >= 100.0 => "did not survive".to_owned(),
        (Unit::Percent, _) => format!("{value:.0} %"),
        (Unit::Answer, _) if value >= 1.0 => "yes".to_owned(),
        (Unit::Answer, _) if value <= 0.0 => "no".to_owned(),
        (Unit::Answer, _) => "at times".to_owned(),
    }
}

/// A spread in percent.
pub fn percent(spread: f64) -> String {
    let percent = spread * 100.0;
    format!("{percent:.*}", usize::from(percent < 1.0))
}

/// What 1 of a figure is; empty for what is counted.
pub fn step(unit: Unit, clock: Clock) -> &'static str {
    match (unit, clock) {
        (Unit::Time, Clock::Seconds) => "nanoseconds",
        (Unit::Time, Clock::Instructions) => "instructions",
        (Unit::Bytes, _) => "bytes",
        (Unit::Percent, _) => "percent",
        (Unit::Number | Unit::Count | Unit::Answer, _) => "",
    }
}

#[cfg(test)]
pub mod tests;
