//! Single system calls: what one more of them costs.

use clap::ValueEnum;

use crate::error::{Error, Result};
use crate::probe::Work;
use crate::report::Clock;
use crate::subject::{PROBE, Subject};

/// Where seconds are counted, so many times the work, for noise to weigh less.
const WHERE_NOISY: u64 = 20;
/// The second, longer one of two runs, in units of the first.
const LONGER: u64 = 3;

/// One kind of work, done `count` times.
#[derive(Debug)]
pub struct Micro {
    work: Work,
    count: u64,
}

impl Micro {
    pub const fn of(work: Work, count: u64) -> Self {
        Self { work, count }
    }

    /// The cost of one call: the difference between few and many, so that what it takes to begin counts for nothing. Processor
    /// time, time, exits.
    pub fn run(&self, subject: &dyn Subject, clock: Clock) -> Result<Vec<f64>> {
        let few = match clock {
            Clock::Instructions => self.count,
            Clock::Seconds => self.count * WHERE_NOISY,
        };
        let many = few * LONGER;
        let (one, three) = (self.once(subject, few)?, self.once(subject, many)?);
        let calls = (many - few) as f64;
        Ok((0..one.len())
            .map(|figure| (three[figure] - one[figure]) / calls)
            .collect())
    }

    fn once(&self, subject: &dyn Subject, count: u64) -> Result<[f64; 3]> {
        let name = self.work.to_possible_value();
        let name = name.as_ref().map_or("", |value| value.get_name());
        let (cpu, exits) = (subject.charged()?, subject.exits()?);
        let said = subject.run(&[PROBE, "probe", name, &count.to_string()])?;
        let (cpu, exits) = (subject.charged()? - cpu, subject.exits()? - exits);
        let time = said.trim().parse::<f64>();
        let time = time.map_err(|_| Error::Other(format!("the work printed no time: {said:?}")))?;
        Ok([cpu as f64, time, exits as f64])
    }
}
