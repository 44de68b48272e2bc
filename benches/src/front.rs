//! What people meet: starts a runner where tenants run, shows how far it is, and tells what it found.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fief::cli::Context;
use fief_host::{HostChoice, HostKind};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::Flags;
use crate::error::{Error, Result, failed, on, other};
use crate::event::Event;
use crate::experiments;
use crate::machine::{fief, on_request_to_end, said};
use crate::report::{Clock, Report, html, table};
use crate::runner::Order;
use crate::subject::{self, Backend, Peer};

/// Where this program is in the emulated host.
const INSIDE: &str = "/usr/local/bin/fief-bench";
/// Room for ten tenants, their disks and the image.
const MEMORY_INSIDE: &str = "8G";
/// What is measured there is in RAM: the emulation's disk is no disk to measure.
const STATE_INSIDE: &str = "/dev/shm/fief-bench";

/// The runner, to be told of Ctrl-C; 0: there is none.
static RUNNER: AtomicI32 = AtomicI32::new(0);
/// The signal that asked for the end; 0: none did.
static ASKED: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(signal: i32) {
    ASKED.store(signal, Ordering::Relaxed);
    let runner = RUNNER.load(Ordering::Relaxed);
    if runner > 0 {
        // SAFETY: kill(2) is async-signal-safe and takes numbers; the child is not waited for before the number is taken back.
        unsafe { libc::kill(runner, signal) };
    }
}

/// # Errors
/// Nothing could be measured.
pub fn main(flags: &Flags) -> Result<ExitCode> {
    if flags.list {
        return list();
    }
    if let Some(path) = &flags.from {
        tell(&Report::read(path)?, flags)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Found out now, not after an hour.
    let peers = subject::peer::found(&flags.peers)?;
    for path in [&flags.json, &flags.html].into_iter().flatten() {
        let opened = fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(on("write", path))?;
    }
    // SAFETY: the handler stores to atomics and calls kill(2).
    unsafe { on_request_to_end(pass_on) }?;
    let place = Place::find()?;
    let order = place.order(flags, &peers);
    if order.experiments.is_empty() {
        return Err(Error::Other(
            "all that was asked for takes something from everybody on this machine; run it in the emulated host (FIEF_HOST=emulated), or \
             with --i-know-this-harms-this-host".to_owned(),
        ));
    }
    let begun = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut report = Report::new(begun.map_or(0, |since| since.as_secs()), order.flags());
    let measured = place
        .begin(&order, &peers)
        .and_then(|runner| listen(runner, &mut report));
    place.end();
    measured?;
    if report.experiments.is_empty() && ASKED.load(Ordering::Relaxed) == 0 {
        return Err(Error::Other("nothing was measured".to_owned()));
    }
    tell(&report, flags)?;
    Ok(match ASKED.load(Ordering::Relaxed) {
        0 => ExitCode::SUCCESS,
        signal => ExitCode::from(u8::try_from(128 + signal).unwrap_or(crate::OWN_FAILURE)),
    })
}

/// On the terminal, and in the files that are wanted.
fn tell(report: &Report, flags: &Flags) -> Result<()> {
    print(&table(report))?;
    if let Some(path) = &flags.json {
        let text = serde_json::to_string_pretty(report)
            .map_err(|error| Error::Other(format!("the report cannot be written: {error}")))?;
        fs::write(path, text + "\n").map_err(on("write", path))?;
    }
    if let Some(path) = &flags.html {
        fs::write(path, html(report)).map_err(on("write", path))?;
    }
    Ok(())
}

fn list() -> Result<ExitCode> {
    let longest = experiments::names().iter().map(|name| name.len()).max();
    let width = longest.unwrap_or(0) + 3;
    for one in experiments::all() {
        let figures: Vec<_> = one.figures.iter().map(|figure| figure.title).collect();
        let (title, figures) = (one.title, figures.join(", "));
        print(&format!("{:width$}{title} ({figures})\n", one.name))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> Result<()> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(failed("write to standard output"))
}

/// Where tenants run.
struct Place {
    kind: HostKind,
    why: String,
    /// The state directory of this side.
    state: PathBuf,
}

impl Place {
    fn find() -> Result<Self> {
        let choice = std::env::var("FIEF_HOST").unwrap_or_else(|_| "auto".to_owned());
        let choice: HostChoice = choice.parse().map_err(other)?;
        let state = std::env::var_os("FIEF_STATE_DIR").map(PathBuf::from);
        let context = Context::new(choice, state).map_err(|error| other(error.text()))?;
        let decision = context.decide();
        Ok(Self {
            kind: decision.kind,
            why: decision.why,
            state: context.state().to_owned(),
        })
    }

    fn order(&self, flags: &Flags, peers: &[Peer]) -> Order {
        let (clock, kind, state, kernel) = match self.kind {
            HostKind::Native => (Clock::Seconds, "native", self.state.clone(), "debian"),
            HostKind::Emulated => {
                let state = STATE_INSIDE.into();
                (Clock::Instructions, "emulated", state, "micro")
            }
        };
        let names = experiments::names().into_iter();
        let wanted =
            |name: &&str| flags.only.is_empty() || flags.only.iter().any(|only| only == name);
        // In the emulated host there is nobody else.
        let may_harm = self.kind == HostKind::Emulated || flags.i_know_this_harms_this_host;
        let allowed =
            |name: &&str| may_harm || experiments::named(name).is_some_and(|one| !one.harms);
        let mut backends = flags.backends.clone();
        backends.extend(peers.iter().map(|peer| Backend::Peer(peer.name.clone())));
        backends.sort();
        backends.dedup();
        let program = |peer: &Peer| match self.kind {
            HostKind::Native => peer.program.clone(),
            HostKind::Emulated => format!("{INSIDE}-peer-{}", peer.name).into(),
        };
        let peers = peers.iter().map(|peer| Peer {
            program: program(peer),
            ..peer.clone()
        });
        Order {
            state,
            clock,
            host: format!("{kind}: {}", self.why),
            backends,
            peers: peers.collect(),
            experiments: names
                .filter(wanted)
                .filter(allowed)
                .map(str::to_owned)
                .collect(),
            runs: flags.runs,
            image: flags.image.clone(),
            kernel: flags.kernel.clone().unwrap_or_else(|| kernel.to_owned()),
            runtime: flags.runtime.clone(),
            memory: flags.memory.clone(),
        }
    }

    /// Makes ready what tenants need, and starts the runner.
    fn begin(&self, order: &Order, peers: &[Peer]) -> Result<Child> {
        let text = serde_json::to_string(order)
            .map_err(|error| Error::Other(format!("the order cannot be written: {error}")))?;
        let own = std::env::current_exe().map_err(failed("find this program"))?;
        let mut runner = match self.kind {
            HostKind::Native => {
                self.setup(&self.state, order)?;
                let mut runner = Command::new(own);
                runner.env("FIEF_STATE_DIR", &self.state);
                runner.env("FIEF_HOST", "native");
                runner
            }
            HostKind::Emulated => {
                self.prepare_emulated(order, &own)?;
                for (from, to) in peers.iter().zip(&order.peers) {
                    self.put(&from.program, &to.program)?;
                }
                let state = format!("FIEF_STATE_DIR={STATE_INSIDE}");
                let mut runner = self.inside();
                runner.args([
                    "host",
                    "exec",
                    "--",
                    "env",
                    "FIEF_HOST=native",
                    &state,
                    INSIDE,
                ]);
                runner
            }
        };
        // Ctrl-C is for this process, which passes it on once.
        runner.args(["runner", &text]).process_group(0);
        runner.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = runner.spawn().map_err(failed("start the measurement"))?;
        RUNNER.store(child.id().cast_signed(), Ordering::Relaxed);
        Ok(child)
    }

    /// A machine of its own, whose clock counts instructions.
    fn emulated_state(&self) -> PathBuf {
        self.state.join("bench")
    }

    fn inside(&self) -> Command {
        let mut command = fief::<&str>([]);
        command.env("FIEF_HOST", "emulated");
        command.env("FIEF_STATE_DIR", self.emulated_state());
        command
    }

    fn prepare_emulated(&self, order: &Order, own: &Path) -> Result<()> {
        let state = self.emulated_state();
        fs::create_dir_all(&state).map_err(on("make", &state))?;
        let images = state.join("images");
        if !images.exists() {
            // Those that are there need not be made again.
            let link = std::os::unix::fs::symlink("../images", &images);
            link.map_err(on("make", &images))?;
        }
        said(
            self.inside()
                .args(["host", "start", "--icount", "--memory", MEMORY_INSIDE]),
        )?;
        self.setup(&state, order)?;
        let script = format!(
            "rm -rf {STATE_INSIDE} && mkdir {STATE_INSIDE} && cp -a /var/lib/fief/images {STATE_INSIDE}"
        );
        said(
            self.inside()
                .args(["host", "exec", "--", "sh", "-c", &script]),
        )?;
        self.put(own, Path::new(INSIDE))
    }

    /// Copies a program into the emulated host.
    fn put(&self, own: &Path, inside: &Path) -> Result<()> {
        let program = fs::File::open(own).map_err(on("read", own))?;
        let mut copy = self.inside();
        let script = r#"cat > "$0" && chmod 755 "$0""#;
        copy.args(["host", "exec", "-i", "--", "sh", "-c", script]);
        let status = copy.arg(inside).stdin(program).status();
        let status = status.map_err(failed("copy a program into the emulated host"))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Other(format!(
            "{} cannot be copied into the emulated host ({status}); does its memory suffice for the image?",
            own.display()
        )))
    }

    fn setup(&self, state: &Path, order: &Order) -> Result<()> {
        let mut setup = fief(["setup", "--image", &order.image]);
        setup.env("FIEF_STATE_DIR", state);
        // A kernel of a path is its owner's.
        if !order.kernel.contains('/') {
            setup.args(["--kernel", &order.kernel]);
        }
        said(&mut setup).map(drop)
    }

    /// Stops what was started for the measurement alone.
    fn end(&self) {
        RUNNER.store(0, Ordering::Relaxed);
        if self.kind == HostKind::Emulated {
            let _ = said(self.inside().args(["host", "stop"]));
        }
    }
}

/// Hears a runner to its end.
fn listen(mut runner: Child, report: &mut Report) -> Result<()> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  ({eta} left)");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_secs(1));
    bar.set_message("making the tenants");
    let lines = runner.stdout.take().map(BufReader::new);
    let mut now = String::new();
    for line in lines.into_iter().flat_map(BufRead::lines) {
        let line = line.map_err(failed("hear the measurement"))?;
        let Ok(event) = serde_json::from_str::<Event>(&line) else {
            return Err(Error::Other(format!("the measurement said: {line}")));
        };
        match &event {
            Event::Begun { steps, .. } => bar.set_length(*steps),
            Event::Step {
                experiment,
                backend,
            } => {
                bar.inc(1);
                bar.set_message(format!("{experiment}, {}", backend.name()));
                if bar.is_hidden() && now != *experiment {
                    now.clone_from(experiment);
                    let (done, all) = (bar.position(), bar.length().unwrap_or(0));
                    eprintln!("fief bench: {experiment} (step {done} of {all})");
                }
            }
            _ => {}
        }
        report.hear(event);
    }
    bar.finish_and_clear();
    let status = runner.wait().map_err(failed("wait for the measurement"))?;
    if status.success() || ASKED.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    if report.experiments.is_empty() {
        return Err(Error::Other(format!("the measurement ended with {status}")));
    }
    eprintln!("fief bench: the measurement ended early, with {status}; what it finished:");
    Ok(())
}
