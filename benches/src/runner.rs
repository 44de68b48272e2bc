//! The measuring itself, on the machine where tenants run: each experiment with each backend in turn, over and over, so that
//! what changes on the machine meanwhile meets all of them.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use fief::cgroup::Group;
use serde::{Deserialize, Serialize};

use crate::args;
use crate::emulator::Settled;
use crate::error::{Error, Result, failed, other};
use crate::event::Event;
use crate::experiments::{self, Experiment, Found};
use crate::report::Clock;
use crate::subject::{self, Backend, Network, Outside, Peer, Subject};
use crate::{machine, measure};

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// fief's state directory.
    pub state: PathBuf,
    pub clock: Clock,
    /// What kind of machine this is, and why, for people.
    pub host: String,
    /// Those of `peers` among them.
    pub backends: Vec<Backend>,
    pub peers: Vec<Peer>,
    pub experiments: Vec<String>,
    pub runs: u32,
    pub image: String,
    pub kernel: String,
    pub runtime: Option<String>,
    pub memory: String,
}

impl Order {
    /// The flags of `fief bench` that give the same order, but for the experiments.
    pub fn flags(&self) -> Vec<String> {
        let own = self.backends.iter();
        let own = own.filter(|one| !matches!(one, Backend::Peer(_)));
        let backends: Vec<_> = own.map(Backend::name).collect();
        let peers: Vec<_> = self.peers.iter().map(Peer::to_string).collect();
        let (backends, runs) = (backends.join(","), self.runs.to_string());
        let mut flags = vec![
            ("--runs", &runs),
            ("--backends", &backends),
            ("--image", &self.image),
            ("--kernel", &self.kernel),
            ("--memory", &self.memory),
        ];
        flags.extend(self.runtime.iter().map(|runtime| ("--runtime", runtime)));
        flags.extend(peers.iter().map(|peer| ("--peer", peer)));
        let words = flags.into_iter();
        words
            .flat_map(|(flag, value)| [flag.to_owned(), value.clone()])
            .collect()
    }
}

/// How long one run may take.
#[derive(Debug, Clone, Copy)]
struct Patience {
    time: Duration,
    /// Of processor time of all subjects; where instructions are counted, waiting costs nothing, and work takes long.
    work: Duration,
}

impl Patience {
    fn of(clock: Clock) -> Self {
        let (time, work) = match clock {
            Clock::Seconds => (900, u64::MAX),
            // More than an agent that does not answer is waited for, which is 240 s; work that ends was never seen to take as much.
            Clock::Instructions => (300, 30),
        };
        Self {
            time: Duration::from_secs(time),
            work: Duration::from_secs(work),
        }
    }
}

/// Between two looks at whether a run takes too long.
const GLANCE: Duration = Duration::from_secs(1);

/// Somebody asks for the end: the step that is under way is broken off, and nothing is left behind.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(signal: i32) {
    if !STOP.swap(true, Ordering::Relaxed) {
        // SAFETY: kill(2) is async-signal-safe. All of this process's group: what it waits for, and once more itself.
        unsafe { libc::kill(0, signal) };
    }
}

/// Whether somebody asked for the end: what is done in many steps takes no more of them.
pub fn is_stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// # Errors
/// Nothing can be measured here.
pub fn main(args: &args::Runner) -> Result<()> {
    let order: Order = serde_json::from_str(&args.order)
        .map_err(|error| Error::Other(format!("the order makes no sense: {error}")))?;
    // SAFETY: the handler stores to an atomic and calls kill(2).
    unsafe { machine::on_request_to_end(stop) }?;
    // With those whom it starts, and nobody else.
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
    if order.backends.iter().any(Backend::is_machine) && !measure::counts_exits() {
        return Err(Error::Other(
            "this kernel does not count the exits of virtual machines (debugfs, /sys/kernel/debug/kvm); run as root".to_owned(),
        ));
    }
    for network in [Network::None, Network::Outside] {
        let chosen: Vec<_> = chosen
            .iter()
            .copied()
            .filter(|one| one.network == network)
            .collect();
        if !chosen.is_empty() {
            conduct_all(&chosen, network, &order)?;
        }
        if is_stopped() {
            return Ok(());
        }
    }
    tell(&Event::Ended)
}

/// Experiments that want the same network, with subjects that have it, which are gone afterwards.
fn conduct_all(chosen: &[&Experiment], network: Network, order: &Order) -> Result<()> {
    let outside = match network {
        Network::None => Ok(None),
        Network::Outside => Outside::make(order).map(Some),
    };
    let mut settled = settle(order);
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for backend in &order.backends {
        if is_stopped() {
            return Ok(());
        }
        let made = match &outside {
            Ok(_) => subject::make(backend, order, network),
            Err(error) => Err(other(error)),
        };
        match made {
            Ok(made) => subjects.push(made),
            Err(_) if is_stopped() => return Ok(()),
            Err(error) => {
                for experiment in chosen {
                    tell_failed(experiment, backend.clone(), &error)?;
                }
            }
        }
    }
    for experiment in chosen {
        if experiment.is_traced() {
            // It would be among what is traced.
            drop(settled.take());
        }
        conduct(experiment, &subjects, order)?;
        if experiment.is_traced() {
            settled = settle(order);
        }
        if is_stopped() {
            return Ok(());
        }
    }
    Ok(())
}

/// Where machines need it, and it can be had.
fn settle(order: &Order) -> Option<Settled> {
    let needed =
        order.clock == Clock::Instructions && order.backends.iter().any(Backend::is_machine);
    let settled = needed.then(Settled::new)?;
    let told = settled.inspect_err(|error| {
        eprintln!("fief bench: machines may hang (docs/emulated-host.md): {error}");
    });
    told.ok()
}

/// One experiment: a run with each backend that is not counted, then the others in turns.
fn conduct(experiment: &Experiment, subjects: &[Box<dyn Subject>], order: &Order) -> Result<()> {
    let patience = Patience::of(order.clock);
    let mut running: Vec<&dyn Subject> = Vec::new();
    for subject in subjects {
        let ready = match experiment.refuses(&subject.backend()) {
            Some(why) => Err(Error::Other(why.to_owned())),
            None => patiently(&subject.backend(), patience, || {
                experiment.prepare(subject.as_ref())
            }),
        };
        match ready {
            Ok(()) => running.push(subject.as_ref()),
            Err(_) if is_stopped() => return Ok(()),
            Err(error) => tell_failed(experiment, subject.backend(), &error)?,
        }
    }
    for run in 0..=order.runs {
        let mut failed = Vec::new();
        for subject in &running {
            if is_stopped() {
                break;
            }
            let backend = subject.backend();
            tell(&Event::Step {
                experiment: experiment.name.to_owned(),
                backend: backend.clone(),
            })?;
            let attempt =
                || patiently(&backend, patience, || experiment.run(*subject, order.clock));
            let once = attempt();
            let run_of = |error: Error| {
                if is_stopped() {
                    return Err(error);
                }
                // One failure is an accident, which is told. What fails again is the experiment's answer.
                let (name, with) = (experiment.name, backend.name());
                eprintln!("fief bench: {name}, {with}, tried once more: {error}");
                eprint!("{}", subject.last_words());
                if experiment.needs_running {
                    // It may be what failed.
                    subject.kill();
                    patiently(&backend, patience, || experiment.prepare(*subject))?;
                }
                attempt()
            };
            match once.or_else(run_of) {
                // Caches are warm from here on.
                Ok(_) if run == 0 => {}
                Ok(Found { values, note }) => {
                    let name = experiment.name.to_owned();
                    tell(&Event::Measured {
                        experiment: name.clone(),
                        backend: backend.clone(),
                        values,
                    })?;
                    if let Some(note) = note {
                        tell(&Event::Noted {
                            experiment: name,
                            backend,
                            note,
                        })?;
                    }
                }
                Err(_) if is_stopped() => return Ok(()),
                Err(error) => {
                    tell_failed(experiment, backend.clone(), &error)?;
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

/// Does work with a subject. If that takes too long, or somebody asks for the end, the subject is ended, so that whoever waits
/// for it hears of it.
///
/// # Errors
/// Those of the work, or that it took too long: then nothing that it gave is to be trusted.
fn patiently<T>(
    backend: &Backend,
    patience: Patience,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (done, waits) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let worked = || Duration::from_nanos(Group::all().usage().cpu_ns.unwrap_or(0));
            let (begun, before) = (Instant::now(), worked());
            while waits.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {
                let late = begun.elapsed() > patience.time
                    || worked().saturating_sub(before) > patience.work;
                if late || is_stopped() {
                    subject::break_off(backend);
                    return late;
                }
            }
            false
        });
        let result = work();
        drop(done);
        match watch.join() {
            Ok(true) => Err(Error::Late),
            _ => result,
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn a_run_that_takes_too_long_counts_for_nothing() {
        let nobody = Backend::Peer("of-a-unit-test".to_owned());
        let slow = || {
            thread::sleep(GLANCE * 2);
            Ok(1)
        };
        let mut patience = Patience::of(Clock::Seconds);
        assert_eq!(patiently(&nobody, patience, slow).unwrap(), 1);
        patience.time = Duration::ZERO;
        let late = patiently(&nobody, patience, slow);
        assert!(matches!(late, Err(Error::Late)), "{late:?}");
    }

    #[test]
    fn the_flags_of_an_order_are_the_command_lines() {
        let order = Order {
            state: PathBuf::new(),
            clock: Clock::Seconds,
            host: String::new(),
            backends: vec![Backend::Vm, Backend::Host, Backend::Peer("a".to_owned())],
            peers: vec!["a=/b/c".parse().unwrap()],
            experiments: Vec::new(),
            runs: 7,
            image: "an image".to_owned(),
            kernel: "micro".to_owned(),
            runtime: Some("runc".to_owned()),
            memory: "1G".to_owned(),
        };
        let words = [vec!["fief bench".to_owned()], order.flags()].concat();
        let flags = args::Args::try_parse_from(words).unwrap().flags;
        assert_eq!(flags.backends, order.backends[..2]);
        assert_eq!(flags.peers, order.peers);
        assert_eq!((flags.runs, flags.runtime), (7, order.runtime));
        assert_eq!(
            (flags.image, flags.kernel),
            (order.image, Some(order.kernel))
        );
        assert_eq!(flags.memory, order.memory);
    }
}
