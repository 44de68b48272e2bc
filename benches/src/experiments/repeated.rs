//! Work that is repeated in a subject: what one more of it costs.

use clap::ValueEnum;

use crate::error::{Error, Result};
use crate::probe::Work;
use crate::report::Clock;
use crate::subject::{PROBE, Subject};

/// Where seconds are counted, so many times the work, for noise to weigh less.
const WHERE_NOISY: u64 = 20;
/// The second, longer one of two runs, in units of the first.
const LONGER: u64 = 3;

/// What is repeated.
#[derive(Debug)]
pub enum Repeated {
    /// The probe's own work.
    Call(Work),
    /// A shell's script; `COUNT` in it says how often, `OUTSIDE` whom it talks to.
    Script(&'static str),
    /// A script that does its work once.
    Once(&'static str),
}

impl Repeated {
    /// The cost of one: the difference between few and many, so that what it takes to begin counts for nothing. Processor
    /// time, time, exits.
    ///
    /// # Errors
    /// The work fails, or cannot be counted.
    pub fn run(&self, count: u64, subject: &dyn Subject, clock: Clock) -> Result<Vec<f64>> {
        let (few, many) = match (self, clock) {
            (Repeated::Once(_), _) => (0, 1),
            (_, Clock::Instructions) => (count, count * LONGER),
            (_, Clock::Seconds) => (count * WHERE_NOISY, count * WHERE_NOISY * LONGER),
        };
        let (begin, end) = (self.times(subject, few)?, self.times(subject, many)?);
        let more = (many - few) as f64;
        Ok(begin
            .iter()
            .zip(end)
            .map(|(begin, end)| (end - begin) / more)
            .collect())
    }

    fn times(&self, subject: &dyn Subject, count: u64) -> Result<[f64; 3]> {
        let number = count.to_string();
        let script = |text: &str| {
            vec![
                "time".into(),
                "--".into(),
                "sh".into(),
                "-ec".into(),
                text.to_owned(),
            ]
        };
        let words: Vec<String> = match self {
            Repeated::Call(work) => {
                let name = work.to_possible_value();
                let name = name.as_ref().map_or("", |value| value.get_name());
                vec!["probe".into(), name.to_owned(), number]
            }
            Repeated::Script(text) => {
                let outside = crate::net::OUTSIDE.to_string();
                script(&text.replace("COUNT", &number).replace("OUTSIDE", &outside))
            }
            Repeated::Once(_) if count == 0 => script("true"),
            Repeated::Once(text) => script(text),
        };
        let words: Vec<&str> = std::iter::once(PROBE)
            .chain(words.iter().map(String::as_str))
            .collect();
        let (cpu, exits) = (subject.charged()?, subject.exits()?);
        let said = subject.run(&words)?;
        let (cpu, exits) = (
            subject.charged()?.saturating_sub(cpu),
            subject.exits()?.saturating_sub(exits),
        );
        let time = said.trim().parse::<f64>();
        let time = time.map_err(|_| Error::Other(format!("the work printed no time: {said:?}")))?;
        Ok([cpu as f64, time, exits as f64])
    }
}
