//! A subject and its neighbour of the same kind: what the one feels of what the other does.

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use super::{Bound, Repeated};
use crate::error::{Error, Result};
use crate::report::Clock;
use crate::runner;
use crate::subject::{PROBE, Subject};

/// Far more than an attempt takes where it can be done.
const SOON: Duration = Duration::from_secs(3);
const GLANCE: Duration = Duration::from_millis(50);

/// A neighbour's doing. The script prints a line when it is under way.
#[derive(Debug, Clone, Copy)]
pub struct Hog(pub &'static str);

impl Hog {
    /// Does `work`, which is given the neighbour, while that goes on with it.
    fn during<T>(self, subject: &dyn Subject, work: impl FnOnce(&dyn Subject) -> T) -> Result<T> {
        let neighbour = subject.neighbour()?;
        if runner::is_stopped() {
            return Err(Error::Other("broken off".to_owned()));
        }
        let script = self.0.replace("PROBE", PROBE);
        let mut doing = neighbour.begin(&["sh", "-c", &script])?;
        if let Some(said) = doing.stdout.take() {
            // It may have ended the neighbour: then nothing is said, and that is what is measured.
            let _ = BufReader::new(said).read_line(&mut String::new());
        }
        let done = work(neighbour.as_ref());
        // Whatever it did to itself.
        neighbour.kill();
        Ok(done)
    }
}

/// By how many percent the subject's work takes longer with the neighbour's: of the throughput that it has alone, what is lost.
/// 100: it did not survive.
///
/// # Errors
/// The work fails without a neighbour, too.
pub fn lost(
    hog: Hog,
    work: &Repeated,
    count: u64,
    subject: &dyn Subject,
    clock: Clock,
) -> Result<Vec<f64>> {
    let time = || Ok::<f64, Error>(work.run(count, subject, clock)?[1]);
    let alone = time()?;
    let beside = hog.during(subject, |_| time())?;
    Ok(vec![match beside {
        Ok(beside) => (1.0 - alone / beside) * 100.0,
        Err(error) => {
            tell(subject, &error);
            100.0
        }
    }])
}

/// Whether the subject can no longer do something that it could before: 1 or 0; and whether the neighbour itself cannot, by which
/// one sees that there was something to be hurt by.
///
/// # Errors
/// It could not before, or the bound cannot be set.
pub fn hurt(
    hog: Hog,
    bound: Option<Bound>,
    attempt: &str,
    subject: &dyn Subject,
) -> Result<Vec<f64>> {
    let attempt = attempt.replace("PROBE", PROBE);
    let attempt = ["sh", "-ec", &attempt];
    let _lowered = bound.map(Bound::lower).transpose()?;
    subject.run(&attempt)?;
    let (beside, itself) = hog.during(subject, |neighbour| {
        (subject.run(&attempt), can(neighbour, &attempt))
    })?;
    if let Err(error) = &beside {
        tell(subject, error);
    }
    let answer = |yes| f64::from(u8::from(yes));
    Ok(vec![answer(beside.is_err()), answer(!itself)])
}

/// Whether a subject can do something, and soon: what it does besides may be all that it still does.
fn can(subject: &dyn Subject, attempt: &[&str]) -> bool {
    let Ok(mut doing) = subject.begin(attempt) else {
        return false;
    };
    let deadline = Instant::now() + SOON;
    loop {
        match doing.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(GLANCE),
            _ => return false,
        }
    }
}

/// That something was harmed is a figure. How, is for whoever looks on.
fn tell(subject: &dyn Subject, error: &Error) {
    eprintln!(
        "fief bench: {}, beside its neighbour: {error}",
        subject.backend().name()
    );
}
