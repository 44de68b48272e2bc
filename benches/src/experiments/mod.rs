//! The experiments: what each does to a subject, and which figures it gives.

mod micro;
mod start;

use crate::error::Result;
use crate::report::{Clock, Unit};
use crate::subject::Subject;

/// One thing to find out.
#[derive(Debug)]
pub struct Experiment {
    pub name: &'static str,
    /// In a few words.
    pub title: &'static str,
    pub figures: &'static [Figure],
    /// The subject is to run: else it is stopped when it begins, and afterwards.
    pub needs_running: bool,
    work: Work,
}

/// A number that an experiment gives, less of it being better.
#[derive(Debug, PartialEq, Eq)]
pub struct Figure {
    pub name: &'static str,
    pub title: &'static str,
    pub unit: Unit,
}

#[derive(Debug)]
enum Work {
    Start,
    Stop,
    Memory,
    Micro(micro::Micro),
}

impl Experiment {
    /// One run: a value for each figure.
    ///
    /// # Errors
    /// It cannot be measured with this subject.
    pub fn run(&self, subject: &dyn Subject, clock: Clock) -> Result<Vec<f64>> {
        match &self.work {
            Work::Start => start::start(subject),
            Work::Stop => start::stop(subject),
            Work::Memory => start::memory(subject),
            Work::Micro(micro) => micro.run(subject, clock),
        }
    }
}

/// All of them, in the order in which they are run.
pub fn all() -> &'static [Experiment] {
    &ALL
}

/// Their names.
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|one| one.name).collect()
}

/// The experiment of that name.
pub fn named(name: &str) -> Option<&'static Experiment> {
    ALL.iter().find(|one| one.name == name)
}

const CPU: Figure = Figure {
    name: "cpu",
    title: "processor time",
    unit: Unit::Time,
};
const TIME: Figure = Figure {
    name: "time",
    title: "time",
    unit: Unit::Time,
};
const EXITS: Figure = Figure {
    name: "exits",
    title: "VM exits",
    unit: Unit::Number,
};
const MEMORY: Figure = Figure {
    name: "memory",
    title: "memory",
    unit: Unit::Bytes,
};

const fn micro(name: &'static str, title: &'static str, micro: micro::Micro) -> Experiment {
    Experiment {
        name,
        title,
        figures: &[CPU, TIME, EXITS],
        needs_running: true,
        work: Work::Micro(micro),
    }
}

use crate::probe::Work as Op;
use micro::Micro;

static ALL: [Experiment; 9] = [
    Experiment {
        name: "start",
        title: "start, until a first command can run",
        figures: &[CPU, TIME],
        needs_running: false,
        work: Work::Start,
    },
    Experiment {
        name: "stop",
        title: "shut down",
        figures: &[CPU, TIME],
        needs_running: false,
        work: Work::Stop,
    },
    Experiment {
        name: "memory",
        title: "memory of an idle tenant",
        figures: &[MEMORY],
        needs_running: true,
        work: Work::Memory,
    },
    micro(
        "getpid",
        "shortest system call",
        Micro::of(Op::Getpid, 20_000),
    ),
    micro("open", "open and close a file", Micro::of(Op::Open, 5000)),
    micro(
        "fork",
        "start a program and wait for it",
        Micro::of(Op::Fork, 50),
    ),
    micro("fault", "first touch of a page", Micro::of(Op::Fault, 8192)),
    micro("pipe", "a byte through a pipe", Micro::of(Op::Pipe, 5000)),
    micro(
        "switch",
        "a byte to a process and back, two switches",
        Micro::of(Op::Switch, 2000),
    ),
];

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
