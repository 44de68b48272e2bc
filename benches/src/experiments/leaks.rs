//! Which of the kernel's files tell a subject whether its neighbour does something.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Child;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Found;
use crate::channels::Sample;
use crate::error::{Error, Result};
use crate::runner::is_stopped;
use crate::subject::{PROBE, Subject};

/// In which rounds the neighbour acts: as often as not, and in no rhythm with what else goes on (Thue and Morse's sequence), so
/// that neither a trend nor a period falls together with it.
const ACTS: [bool; 16] = {
    let mut acts = [false; 16];
    let mut round = 0usize;
    while round < acts.len() {
        acts[round] = round.count_ones() % 2 == 1;
        round += 1;
    }
    acts
};
/// From a round's first reading to its second, whatever happens between them: so much time passes for all that counts time.
const ROUND: Duration = Duration::from_secs(2);
/// After a neighbour's work ended, until what it had is given back.
const SETTLE: Duration = Duration::from_millis(500);
/// By so much of itself a change differs at least: a round may take somewhat longer beside a neighbour that works, and with it
/// all that counts time.
const NOTABLE: f64 = 0.1;

/// What a round found: before the neighbour began, and beside it.
struct Round {
    acts: bool,
    before: Sample,
    beside: Sample,
}

/// # Errors
/// The neighbour does not come up, or a reading fails.
pub fn leaks(subject: &dyn Subject) -> Result<Found> {
    let neighbour = subject.neighbour()?;
    let sample = || Sample::parse(&subject.run(&[PROBE, "channels"])?);
    let round = |acts: bool| {
        if is_stopped() {
            return Err(Error::Other("interrupted".to_owned()));
        }
        let begun = Instant::now();
        let before = sample()?;
        let words = [PROBE, "act", "--quiet"];
        // The same but for what it does, also for those who start it.
        let words = if acts { words.get(..2) } else { words.get(..) };
        let mut doing = neighbour.begin(words.unwrap_or_default())?;
        let works = says_a_line(&mut doing);
        std::thread::sleep(ROUND.saturating_sub(begun.elapsed()));
        let late = begun.elapsed() > ROUND.mul_f64(1.0 + NOTABLE / 2.0);
        let beside = sample();
        drop(doing);
        std::thread::sleep(SETTLE);
        if !works {
            let why = "the neighbour could not do its work (files, memory, processes, a loopback network), or not in time";
            return Err(Error::Other(why.to_owned()));
        }
        if late {
            let why = "a round took too long to be compared with others; measure while less is done on this machine";
            return Err(Error::Other(why.to_owned()));
        }
        Ok(Round {
            acts,
            before,
            beside: beside?,
        })
    };
    let rounds = ACTS.into_iter().map(round).collect::<Result<Vec<_>>>()?;
    let (telling, all) = telling(&rounds);
    let note = match &*telling {
        [] => format!("none of the {all} channels that can be read tells of a neighbour"),
        some => format!(
            "{} of the {all} channels that can be read tell of a neighbour: {}",
            some.len(),
            some.join(", ")
        ),
    };
    Ok(Found {
        values: vec![telling.len() as f64],
        note: Some(note),
    })
}

/// Whether a child prints one before its round ends. It may not: its kernel may have died.
fn says_a_line(child: &mut Child) -> bool {
    let (tell, told) = mpsc::channel();
    let said = child.stdout.take();
    // Ends with the child at the latest.
    std::thread::spawn(move || {
        let read = said.map(|said| BufReader::new(said).read_line(&mut String::new()));
        let _ = tell.send(matches!(read, Some(Ok(1..))));
    });
    told.recv_timeout(ROUND) == Ok(true)
}

/// The channels of which a number tells when the neighbour acted, and how many were there in all rounds.
fn telling(rounds: &[Round]) -> (Vec<&str>, usize) {
    let Some(first) = rounds.first() else {
        return (Vec::new(), 0);
    };
    let channels = first.before.0.iter();
    let found = channels.filter(|(channel, files)| {
        let mut paths = files.keys();
        paths.any(|path| file_tells(rounds, channel, path))
    });
    (
        found.map(|(channel, _)| channel.as_str()).collect(),
        first.before.0.len(),
    )
}

fn file_tells(rounds: &[Round], channel: &str, path: &PathBuf) -> bool {
    type Files = BTreeMap<PathBuf, Vec<f64>>;
    let of = |sample: &Sample| {
        let files: Option<&Files> = sample.0.get(channel);
        files.and_then(|files| files.get(path)).cloned()
    };
    let pairs = rounds.iter().map(|round| {
        let pair = (of(&round.before)?, of(&round.beside)?);
        Some((round.acts, pair.0, pair.1))
    });
    // A file that comes and goes is compared with nothing.
    let Some(pairs) = pairs.collect::<Option<Vec<_>>>() else {
        return false;
    };
    let least = pairs
        .iter()
        .map(|(_, before, beside)| before.len().min(beside.len()));
    (0..least.min().unwrap_or(0)).any(|at| {
        let numbers = pairs
            .iter()
            .filter_map(|(acts, before, beside)| Some((*acts, *before.get(at)?, *beside.get(at)?)));
        let numbers: Vec<_> = numbers.collect();
        let values = numbers.iter().map(|(acts, _, beside)| (*acts, *beside));
        let changes = numbers
            .iter()
            .map(|(acts, before, beside)| (*acts, beside - before));
        separates(values, 0.0) || separates(changes, NOTABLE)
    })
}

/// Whether numbers of rounds in which the neighbour acted are all on one side of the others, and further from them than those
/// are from each other, and than a part of themselves.
///
/// That chance alone puts eight of sixteen rounds on one side is one in 6435, or one in 32768 for what is as often 0 as 1. A kernel
/// tells some thousand numbers, most of which are no such coin: the distance makes it a thing that hardly happens once in many runs.
fn separates(numbers: impl Iterator<Item = (bool, f64)>, notable: f64) -> bool {
    let (acting, quiet): (Vec<_>, Vec<_>) = numbers.partition(|(acts, _)| *acts);
    let ends = |numbers: &[(bool, f64)]| {
        let numbers = || numbers.iter().map(|(_, number)| *number);
        let least = numbers().fold(f64::INFINITY, f64::min);
        (least, numbers().fold(f64::NEG_INFINITY, f64::max))
    };
    let ((least, most), (quiet_least, quiet_most)) = (ends(&acting), ends(&quiet));
    let distance = (least - quiet_most).max(quiet_least - most);
    let noise = quiet_most - quiet_least;
    let part = notable * quiet_most.abs().max(quiet_least.abs());
    distance > 0.0 && distance >= noise && distance >= part
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Numbers that are no numbers of chance, but look so: from 0 to 1 (Knuth's constants).
    fn noise() -> impl FnMut() -> f64 {
        let mut state = 7u64;
        move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        }
    }

    fn sample(numbers: Vec<f64>) -> Sample {
        let files = BTreeMap::from([(PathBuf::from("/a"), numbers)]);
        Sample(BTreeMap::from([("/a".to_owned(), files)]))
    }

    /// Rounds of a file with one number; what it is before and beside, by the round's number and whether the neighbour acts.
    fn rounds(mut number: impl FnMut(usize, bool) -> (f64, f64)) -> Vec<Round> {
        let each = ACTS.into_iter().enumerate();
        each.map(|(round, acts)| {
            let (before, beside) = number(round, acts);
            Round {
                acts,
                before: sample(vec![1.0, before]),
                beside: sample(vec![1.0, beside]),
            }
        })
        .collect()
    }

    fn tells(number: impl FnMut(usize, bool) -> (f64, f64)) -> bool {
        let rounds = rounds(number);
        let (found, all) = telling(&rounds);
        assert_eq!(all, 1);
        !found.is_empty()
    }

    #[test]
    fn a_neighbour_that_says_nothing_does_not_work() {
        let says = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let says = says_a_line(&mut child);
            child.kill().unwrap();
            child.wait().unwrap();
            says
        };
        assert!(says("echo; exec sleep 100"));
        assert!(!says("exec sleep 100"));
        assert!(!says("exit 1"));
    }

    #[test]
    fn a_neighbour_acts_in_half_of_the_rounds_and_in_no_rhythm() {
        let acts = |rounds: &[bool]| rounds.iter().filter(|acts| **acts).count();
        assert_eq!((acts(&ACTS), acts(&ACTS[..8])), (8, 4));
        assert!(ACTS.windows(2).any(|two| two[0] == two[1]));
    }

    #[test]
    fn noise_trends_and_periods_do_not_count() {
        let mut chance = noise();
        for _ in 0..1000 {
            assert!(!tells(|_, _| (100.0 * chance(), 100.0 * chance())));
            // As often 0 as 1.
            assert!(!tells(|_, _| (chance().round(), chance().round())));
        }
        assert!(!tells(|_, _| (5.0, 5.0)));
        let trend = |round: usize| round as f64 * 3.0;
        assert!(!tells(|round, _| (trend(round), trend(round) + 1.0)));
        assert!(!tells(|round, _| (0.0, (round % 2) as f64)));
        assert!(!tells(|round, _| (0.0, (round / 4 % 2) as f64)));
    }

    #[test]
    fn what_counts_time_does_not_count_where_a_round_is_somewhat_longer() {
        let clock = |round: usize| round as f64 * 250.0;
        let late = |acts| if acts { 2.06 } else { 2.0 };
        assert!(!tells(|round, acts| (
            clock(round),
            clock(round) + 100.0 * late(acts)
        )));
    }

    #[test]
    fn a_step_counts() {
        let mut chance = noise();
        // Free memory, of much that changes somewhat.
        let free = |acts: bool, chance: f64| 1e9 + 1e6 * chance - if acts { 6e7 } else { 0.0 };
        assert!(tells(|_, acts| (
            free(false, chance()),
            free(acts, chance())
        )));
        assert!(tells(|_, acts| (0.0, f64::from(u8::from(acts)))));
    }

    #[test]
    fn a_rate_counts() {
        let mut chance = noise();
        let mut total = 0.0;
        assert!(tells(|_, acts| {
            let before = total + 50.0 * chance();
            let beside =
                before + 100.0 * chance() + if acts { 5000.0 * chance() + 300.0 } else { 0.0 };
            total = beside;
            (before, beside)
        }));
    }

    #[test]
    fn a_line_that_is_there_while_the_neighbour_acts_counts() {
        let mut rounds = rounds(|_, _| (0.0, 0.0));
        assert!(telling(&rounds).0.is_empty());
        for round in rounds.iter_mut().filter(|round| round.acts) {
            round.beside = sample(vec![2.0, 0.0, 9.0]);
        }
        assert_eq!(telling(&rounds).0, ["/a"]);
        // What is not there in all rounds tells nothing.
        rounds[3].beside = Sample::default();
        assert!(telling(&rounds).0.is_empty());
    }
}
