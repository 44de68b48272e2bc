//! The experiments: what each does to a subject, and which figures it gives.

mod beside;
mod leaks;
mod list;
mod lowered;
mod repeated;
mod start;
mod surface;

use crate::error::Result;
use crate::report::{Clock, Unit};
use crate::subject::{Backend, Network, Subject};

use beside::Hog;
use list::ALL;
pub use list::EXITS;
use lowered::Bound;
use repeated::Repeated;

/// One thing to find out.
#[derive(Debug)]
pub struct Experiment {
    pub name: &'static str,
    /// In a few words.
    pub title: &'static str,
    pub figures: &'static [Figure],
    /// The subject is to run: else it is stopped when it begins, and afterwards.
    pub needs_running: bool,
    /// What the subject is connected to.
    pub network: Network,
    /// It could hurt others on a machine that people use.
    pub harms: bool,
    /// It crashes the kernel that it runs on, unless it is kept from that.
    pub crashes_kernel: bool,
    /// A shell's script that is run in the subject once, before all runs.
    prepare: &'static str,
    work: Work,
}

/// A number that an experiment gives; less of it is better.
#[derive(Debug, PartialEq, Eq)]
pub struct Figure {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: Unit,
}

#[derive(Debug)]
enum Work {
    Start,
    /// With nothing in the host's caches.
    StartCold,
    Stop,
    Memory,
    /// So many at once.
    Crowd(usize),
    Repeated(Repeated, u64),
    /// What is lost of that beside a neighbour.
    Lost(Hog, Repeated, u64),
    /// Whether a script no longer ends well beside one.
    Hurt(Hog, Option<Bound>, &'static str),
    /// What of the host's kernel it reaches.
    Surface,
    /// Which files of its kernel tell it what a neighbour does.
    Leaks,
}

/// What a run gave.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// One for each figure.
    pub values: Vec<f64>,
    /// What is no number.
    pub note: Option<String>,
}

impl From<Vec<f64>> for Found {
    fn from(values: Vec<f64>) -> Self {
        Self { values, note: None }
    }
}

impl Experiment {
    /// Why it is not for that backend at all.
    pub fn refuses(&self, backend: &Backend) -> Option<&'static str> {
        (self.crashes_kernel && *backend == Backend::Host)
            .then_some("the kernel that would crash is the host's own, and the measurement's")
    }

    /// Whether it looks at all that the kernel does for a subject.
    pub fn is_traced(&self) -> bool {
        matches!(self.work, Work::Surface)
    }

    /// What is to be done once before the runs.
    ///
    /// # Errors
    /// The subject lacks what the experiment needs.
    pub fn prepare(&self, subject: &dyn Subject) -> Result<()> {
        if self.needs_running {
            subject.start()?;
        }
        if !self.prepare.is_empty() {
            subject.run(&["sh", "-ec", self.prepare])?;
        }
        Ok(())
    }

    /// One run.
    ///
    /// # Errors
    /// It cannot be measured with this subject.
    pub fn run(&self, subject: &dyn Subject, clock: Clock) -> Result<Found> {
        let values = match &self.work {
            Work::Start => start::start(subject),
            Work::StartCold => start::start_cold(subject),
            Work::Stop => start::stop(subject),
            Work::Memory => start::memory(subject),
            Work::Crowd(size) => start::crowd(subject, *size),
            Work::Repeated(repeated, count) => repeated.run(*count, subject, clock),
            Work::Lost(hog, work, count) => beside::lost(*hog, work, *count, subject, clock),
            Work::Hurt(hog, bound, attempt) => beside::hurt(*hog, *bound, attempt, subject),
            Work::Surface => surface::surface(subject),
            Work::Leaks => return leaks::leaks(subject),
        };
        values.map(Found::from)
    }
}

/// All of them, in the order in which they are run.
pub fn all() -> &'static [Experiment] {
    ALL
}

/// Their names.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|one| one.name).collect()
}

/// The experiment of that name.
pub fn named(name: &str) -> Option<&'static Experiment> {
    ALL.iter().find(|one| one.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_each_is_there_once() {
        let mut names = names();
        assert!(names.iter().all(|name| {
            let plain = |c: char| c.is_ascii_lowercase() || c == '-' || c.is_ascii_digit();
            !name.is_empty() && name.chars().all(plain)
        }));
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(named("getpid").is_some() && named("nothing").is_none());
    }
}
