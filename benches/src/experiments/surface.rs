//! What of the host's kernel a tenant reaches with a small work: itself, and by those who work for it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result, failed};
use crate::filter;
use crate::machine::Begun;
use crate::subject::{PREFIX, PROBE, Subject};
use crate::tracing::{self, Tracer};

/// Rounds of the work that are waited for: of so many, those in the middle were traced from their begin to their end, also where
/// a line is still on its way.
const ROUNDS: u64 = 4;
/// A round takes less, also where all is traced and instructions are counted.
const PATIENCE: Duration = Duration::from_secs(600);
const GLANCE: Duration = Duration::from_millis(50);
/// The names of a processor's threads in fief's monitor, and in Firecracker, begin or end so.
const VCPU: &str = "vcpu";

/// The work, as [`crate::args`] calls it.
const WORK: &str = "visit";

const CALL: &str = "raw_syscalls/sys_enter";
/// An operation of io_uring, as it is submitted: since Linux 6.3, and before.
const OPERATIONS: [&str; 2] = [
    "io_uring/io_uring_submit_req",
    "io_uring/io_uring_submit_sqe",
];
const FUNCTION: &str = "ftrace/function";

/// # Errors
/// This machine's kernel cannot be traced.
pub fn surface(subject: &dyn Subject) -> Result<Vec<f64>> {
    tracing::make_ready()?;
    let work = Work::begin(subject)?;
    let tasks = Tasks::of(subject)?;
    let calls = work.traced(&tasks.callers(), &CALLS)?;
    let functions = work.traced(&tasks.workers(), &FUNCTIONS)?;
    let allowed = match filter::allowed(&tasks.confined)? {
        Some(number) => number,
        None => tracing::system_calls()?,
    };
    let mut numbers = calls.to_vec();
    numbers.push(allowed);
    numbers.extend(functions);
    Ok(numbers.into_iter().map(|number| number as f64).collect())
}

/// Tasks of this machine, by whose they are.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tasks {
    /// The work's; a machine's: those in which its processors run.
    own: Vec<i32>,
    /// The monitor's others, the shim's, the agent's.
    serving: Vec<i32>,
    /// Those whose system calls are what is left to a tenant that has taken over what it runs in.
    confined: Vec<i32>,
    /// What is in a machine makes no system calls of this machine's kernel.
    is_machine: bool,
}

impl Tasks {
    fn of(subject: &dyn Subject) -> Result<Self> {
        let monitor = subject.monitor()?;
        let mut found = Self {
            is_machine: monitor.is_some(),
            ..Self::default()
        };
        for process in subject.processes()? {
            let read = |file: &str| fs::read_to_string(format!("/proc/{process}/{file}"));
            let is_work = monitor.is_none() && (is_work(process) || is_work(parent(process)));
            for task in threads(process) {
                let name = read(&format!("task/{task}/comm")).unwrap_or_default();
                let is_processor = monitor == Some(process) && name.contains(VCPU);
                if is_work || is_processor {
                    found.own.push(task);
                } else {
                    found.serving.push(task);
                }
                if is_work || monitor == Some(process) {
                    found.confined.push(task);
                }
            }
        }
        if found.own.is_empty() {
            let none = "no process or thread was found in which the tenant's work is done";
            return Err(Error::Other(none.to_owned()));
        }
        Ok(found)
    }

    /// Who makes system calls: the tenant, and others for it.
    fn callers(&self) -> [Vec<i32>; 2] {
        if self.is_machine {
            return [Vec::new(), [&*self.own, &self.serving].concat()];
        }
        self.workers()
    }

    fn workers(&self) -> [Vec<i32>; 2] {
        [self.own.clone(), self.serving.clone()]
    }
}

/// Whether a process does the work that is traced. What it has just started is not there yet under its own name, or is its child.
fn is_work(process: i32) -> bool {
    let line = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let mut words = line.split('\0');
    words.next() == Some(PROBE) && words.next() == Some(WORK)
}

fn parent(process: i32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let parent = text.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

fn threads(process: i32) -> Vec<i32> {
    let all = fs::read_dir(format!("/proc/{process}/task"));
    let names = all.into_iter().flatten().flatten();
    let names = names.filter_map(|one| one.file_name().to_str()?.parse().ok());
    names.collect()
}

/// What is recorded of tasks, and how many different things they did.
struct Recording {
    begin: fn(&Tracer, &[i32]) -> Result<()>,
    count: fn(&Tracer) -> Result<usize>,
}

/// System calls, and operations of io_uring.
const CALLS: Recording = Recording {
    begin: |tracer, tasks| {
        let operations = OPERATIONS.into_iter().find(|event| tracer.has(event));
        let events: Vec<_> = [CALL].into_iter().chain(operations).collect();
        tracer.events(tasks, &events)
    },
    count: |tracer| {
        let mut fields = vec![tracer.field(CALL, "id")?];
        for event in OPERATIONS {
            if tracer.has(event) {
                fields.push(tracer.field(event, "opcode")?);
            }
        }
        let found = tracer.distinct(&fields)?;
        Ok(found.iter().map(BTreeSet::len).sum())
    },
};

const FUNCTIONS: Recording = Recording {
    begin: Tracer::functions,
    count: |tracer| {
        let found = tracer.distinct(&[tracer.field(FUNCTION, "ip")?])?;
        Ok(found.iter().map(BTreeSet::len).sum())
    },
};

/// The work, under way in a subject.
struct Work {
    doing: RefCell<Begun>,
    /// How often it was done so far.
    rounds: Arc<AtomicU64>,
}

impl Work {
    /// Begins it; it has been done once.
    fn begin(subject: &dyn Subject) -> Result<Self> {
        let mut doing = subject.begin(&[PROBE, WORK])?;
        let said = doing.stdout.take();
        let rounds = Arc::new(AtomicU64::new(0));
        let counted = rounds.clone();
        // Ends with the work.
        std::thread::spawn(move || {
            let lines = said
                .map(BufReader::new)
                .into_iter()
                .flat_map(BufRead::lines);
            for _ in lines.map_while(io::Result::ok) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let work = Self {
            doing: RefCell::new(doing),
            rounds,
        };
        work.wait(1)?;
        Ok(work)
    }

    /// Until it is done so many times more.
    fn wait(&self, more: u64) -> Result<()> {
        let wanted = self.rounds.load(Ordering::Relaxed) + more;
        let deadline = Instant::now() + PATIENCE;
        while self.rounds.load(Ordering::Relaxed) < wanted {
            let ended = self.doing.borrow_mut().try_wait();
            if let Some(status) = ended.map_err(failed("look after the work that is traced"))? {
                let why = format!(
                    "the work that is traced ended ({status}); `fief exec NAME -- {PROBE} {WORK}` tells why"
                );
                return Err(Error::Other(why));
            }
            if Instant::now() > deadline {
                let why = format!(
                    "the work that is traced was not done within {} s",
                    PATIENCE.as_secs()
                );
                return Err(Error::Other(why));
            }
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// How many different things each of these did meanwhile.
    fn traced(&self, sets: &[Vec<i32>; 2], recording: &Recording) -> Result<[usize; 2]> {
        let mut tracers = [None, None];
        for ((tracer, tasks), name) in tracers.iter_mut().zip(sets).zip(["own", "serving"]) {
            // Of no tasks, the kernel takes all.
            if !tasks.is_empty() {
                let made = tracer.insert(Tracer::make(&format!("{PREFIX}-{name}"))?);
                (recording.begin)(made, tasks)?;
            }
        }
        tracers.iter().flatten().try_for_each(Tracer::begin)?;
        let waited = self.wait(ROUNDS);
        tracers.iter().flatten().try_for_each(Tracer::end)?;
        waited?;
        let mut numbers = [0; 2];
        for (number, tracer) in numbers.iter_mut().zip(&tracers) {
            if let Some(tracer) = tracer {
                *number = (recording.count)(tracer)?;
            }
        }
        Ok(numbers)
    }
}
