//! The measuring itself, on the machine where tenants run: each experiment with each backend in turn, over and over, so that
//! what changes on the machine meanwhile meets all of them.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use serde::{Deserialize, Serialize};

use crate::args;
use crate::error::{Error, Result, failed};
use crate::event::Event;
use crate::experiments::{self, Experiment};
use crate::report::Clock;
use crate::subject::{self, Backend, Subject};
use crate::{machine, measure};

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// fief's state directory.
    pub state: PathBuf,
    pub clock: Clock,
    /// What kind of machine this is, and why, for people.
    pub host: String,
    pub backends: Vec<Backend>,
    pub experiments: Vec<String>,
    pub runs: u32,
    pub image: String,
    pub kernel: String,
    pub runtime: Option<String>,
    pub memory: String,
}

/// Somebody asks for the end: after the step that is under way, nothing is left behind.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_signal: i32) {
    STOP.store(true, Ordering::Relaxed);
}

/// # Errors
/// Nothing can be measured here.
pub fn main(args: &args::Runner) -> Result<()> {
    let order: Order = serde_json::from_str(&args.order)
        .map_err(|error| Error::Other(format!("the order makes no sense: {error}")))?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let action = SigAction::new(
            SigHandler::Handler(stop),
            SaFlags::SA_RESTART,
            SigSet::empty(),
        );
        // SAFETY: the handler does nothing but store to an atomic.
        unsafe { sigaction(signal, &action) }
            .map_err(|errno| failed("handle signals")(errno.into()))?;
    }
    // Its children are to go on when somebody presses Ctrl-C: what they do is finished, then nothing more is begun.
    let _ = nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0));
    let chosen: Vec<&Experiment> = experiments::all()
        .iter()
        .filter(|one| order.experiments.iter().any(|name| name == one.name))
        .collect();
    let each = u64::from(order.runs) + 1;
    tell(&Event::Begun {
        environment: Box::new(machine::environment(&order)),
        steps: chosen.len() as u64 * order.backends.len() as u64 * each,
    })?;
    if order.backends.contains(&Backend::Vm) && !measure::counts_exits() {
        return Err(Error::Other(
            "this kernel does not count the exits of virtual machines (debugfs, /sys/kernel/debug/kvm); run as root".to_owned(),
        ));
    }
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for &backend in &order.backends {
        if STOP.load(Ordering::Relaxed) {
            return Ok(());
        }
        match subject::make(backend, &order) {
            Ok(made) => subjects.push(made),
            Err(error) => {
                for experiment in &chosen {
                    tell_failed(experiment, backend, &error)?;
                }
            }
        }
    }
    for experiment in chosen {
        conduct(experiment, &subjects, &order)?;
        if STOP.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
    drop(subjects);
    tell(&Event::Ended)
}

/// One experiment: a run with each backend that is not counted, then the others in turns.
fn conduct(experiment: &Experiment, subjects: &[Box<dyn Subject>], order: &Order) -> Result<()> {
    let mut running: Vec<&dyn Subject> = Vec::new();
    for subject in subjects {
        let ready = match experiment.needs_running {
            true => subject.start().map(drop),
            false => Ok(()),
        };
        match ready {
            Ok(()) => running.push(subject.as_ref()),
            Err(error) => tell_failed(experiment, subject.backend(), &error)?,
        }
    }
    for run in 0..=order.runs {
        let mut failed = Vec::new();
        for subject in &running {
            if STOP.load(Ordering::Relaxed) {
                break;
            }
            let backend = subject.backend();
            tell(&Event::Step {
                experiment: experiment.name.to_owned(),
                backend,
            })?;
            match experiment.run(*subject, order.clock) {
                // Caches are warm from here on.
                Ok(_) if run == 0 => {}
                Ok(values) => tell(&Event::Measured {
                    experiment: experiment.name.to_owned(),
                    backend,
                    values,
                })?,
                Err(error) => {
                    tell_failed(experiment, backend, &error)?;
                    failed.push(backend);
                }
            }
        }
        running.retain(|subject| !failed.contains(&subject.backend()));
    }
    if experiment.needs_running {
        for subject in subjects {
            // One that failed may not run any more.
            let _ = subject.stop();
        }
    }
    Ok(())
}

fn tell_failed(experiment: &Experiment, backend: Backend, error: &Error) -> Result<()> {
    tell(&Event::Failed {
        experiment: experiment.name.to_owned(),
        backend,
        why: error.to_string(),
    })
}

fn tell(event: &Event) -> Result<()> {
    let mut line = serde_json::to_string(event)
        .map_err(|error| Error::Other(format!("an event cannot be told: {error}")))?;
    line.push('\n');
    let told = std::io::stdout().write_all(line.as_bytes());
    // Nobody listens any more: what was made is removed.
    told.inspect_err(|_| STOP.store(true, Ordering::Relaxed))
        .map_err(failed("tell what was measured"))
}
