//! `fief start`, and what `fief run` shares with it.

use std::path::Path;
use std::process::ExitCode;

use fief_images::Images;

use super::{Context, Error, OWN_FAILURE, Result, prepare};
use crate::progress::Shown;
use crate::shim::{Attached, Order, StartError};
use crate::spec::{RestartPolicy, TenantName};
use crate::store::{Exit, Locked, Status, StoppedBy, Store, Tenant};
use crate::terminal::{Signals, output, say};

/// This binary, also when the file it came from was replaced since.
pub const SELF: &str = "/proc/self/exe";

/// Flags of `fief start`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// All that are to run by themselves: those with --autostart, and those whose restart policy is always, or
    /// unless-stopped and that were not stopped
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Tenants to start
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<TenantName>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let starter = Starter::new(context)?;
    if args.all {
        return starter.start_all();
    }
    for name in &args.names {
        starter.start(name)?;
        output(&format!("{name}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What starting tenants needs.
pub struct Starter<'a> {
    context: &'a Context,
    pub store: Store,
    images: Images,
    progress: Shown,
}

impl<'a> Starter<'a> {
    pub fn new(context: &'a Context) -> Result<Self> {
        Ok(Self {
            context,
            store: context.store()?,
            images: context.images()?,
            progress: Shown::default(),
        })
    }

    /// Starts a tenant that is stopped, and waits until it answers.
    pub fn start(&self, name: &TenantName) -> Result<()> {
        let tenant = self.launch(name)?;
        let signals = Signals::take_over()?;
        await_agent(&self.store, &tenant, &signals)
    }

    /// Starts a tenant that is stopped; returns when its machine runs.
    fn launch(&self, name: &TenantName) -> Result<Tenant> {
        let spec = self.store.tenant(name)?.spec()?;
        spec.check(prepare::total_memory()?)?;
        let root = prepare::image_of(&self.images, name, &spec, &self.progress)?;
        let files = prepare::files(&self.images, self.context, &spec, root, &self.progress)?;
        let locked = self.store.lock(name)?;
        locked.forget_stop()?;
        let order = Order {
            name: name.clone(),
            directory: text(locked.tenant.directory()),
            files,
            attached: false,
            command: None,
            quiet: None,
        };
        self.progress.step("starting the tenant");
        let (tenant, attached) = crate::shim::start(Path::new(SELF), locked, &order)
            .map_err(|(_locked, error)| cannot_start(name, error))?;
        fief_images::Progress::end(&self.progress);
        tell_unlimited(&self.store, attached.unlimited());
        Ok(tenant)
    }

    /// Starts all that are to run by themselves. One that cannot be started does not keep the others from it.
    fn start_all(&self) -> Result<ExitCode> {
        let mut failed = false;
        for tenant in self.store.tenants()? {
            if !starts_by_itself(&tenant) {
                continue;
            }
            match self.launch(&tenant.name) {
                Ok(_) => output(&format!("{}\n", tenant.name))?,
                Err(error) => {
                    failed = true;
                    say(&error.text());
                }
            }
        }
        Ok(if failed {
            ExitCode::from(OWN_FAILURE)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// Whether `fief start --all` starts a tenant: as docker's daemon decides when it begins, and those with --autostart.
fn starts_by_itself(tenant: &Tenant) -> bool {
    let (status, _) = tenant.status();
    let Ok(spec) = tenant.spec() else {
        return false;
    };
    let ran = status == Status::Stopped;
    let kept = match spec.restart {
        RestartPolicy::Always => ran,
        RestartPolicy::UnlessStopped => {
            ran && !matches!(tenant.stopped_by(), Ok(Some(StoppedBy::User)))
        }
        RestartPolicy::No | RestartPolicy::OnFailure(_) => false,
    };
    kept || (spec.autostart && (ran || status == Status::Created))
}

/// Says which limits this machine cannot enforce; not again until the answer is another one.
pub fn tell_unlimited(store: &Store, unlimited: &[String]) {
    let said = store.root().join("unlimited");
    if unlimited.is_empty() {
        let _ = std::fs::remove_file(said);
        return;
    }
    let text = crate::cgroup::unlimited(unlimited);
    if std::fs::read_to_string(&said).is_ok_and(|before| before == text) {
        return;
    }
    say(&format!("fief: {text}"));
    // Should that fail, it is said again.
    let _ = std::fs::write(said, text);
}

/// A path as text; the store has made sure that it is.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn cannot_start(name: &TenantName, error: StartError) -> Error {
    Error::from(error).context(&format!("cannot start tenant '{name}'"))
}

/// Starts a tenant that was just made; if that fails, it never was.
pub fn start_new(locked: Locked, order: &Order) -> Result<(Tenant, Attached)> {
    crate::shim::start(Path::new(SELF), locked, order).map_err(|(locked, error)| {
        let told = cannot_start(&order.name, error);
        match locked.remove() {
            Ok(()) => told,
            Err(error) => Error::from(error).context("and what was made of it cannot be removed"),
        }
    })
}

/// Waits until a detached tenant's agent answers.
pub fn await_agent(store: &Store, tenant: &Tenant, signals: &Signals) -> Result<()> {
    let asked = std::cell::Cell::new(None);
    let lives = || {
        asked.set(asked.get().or(signals.asked_to_end()));
        // One that its policy starts again and again is not waited for.
        let again = matches!(tenant.state(), Ok(Some(state)) if state.restarts > 0);
        asked.get().is_none() && !again
    };
    let connected = crate::agent::connect(tenant, &lives);
    let error = match connected {
        Ok(connection) => {
            crate::provide::give_or_warn(&connection, tenant);
            return Ok(());
        }
        Err(error) => error,
    };
    if let Some(signal) = asked.get() {
        let message = format!(
            "not waiting any longer; tenant '{0}' goes on, `fief stop {0}` ends it",
            tenant.name
        );
        return Err(Error::new(message).with_code(128 + signal as i32));
    }
    let console = last_words(tenant);
    // Its shim may be writing down the end just now.
    let idle = store
        .wait_idle(tenant, std::time::Duration::from_secs(2))
        .unwrap_or(false);
    let why = match tenant.exit() {
        Ok(Some(exit)) if idle => end_in_words(&exit),
        _ => crate::failure::chain(&error),
    };
    Err(Error::new(format!(
        "tenant '{0}' did not come up: {why}{console}; `fief logs {0}` shows its console, `fief rm -f {0}` removes it",
        tenant.name
    )))
}

/// How a tenant ended.
pub fn end_in_words(exit: &Exit) -> String {
    match &exit.detail {
        Some(detail) => format!("{} ({detail})", exit.reason.words()),
        None => exit.reason.words().to_owned(),
    }
}

/// The last line of the console, which often tells why.
pub fn last_words(tenant: &Tenant) -> String {
    let text = std::fs::read(tenant.console()).unwrap_or_default();
    let tail = &text[text.len().saturating_sub(4096)..];
    let tail = String::from_utf8_lossy(tail);
    let line = tail
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty());
    let plain = |line: &str| {
        line.chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect::<String>()
    };
    line.map(|line| format!("; the console's last line: {}", plain(line)))
        .unwrap_or_default()
}
