//! `fief start`, and what `fief run` shares with it.

use std::path::Path;
use std::process::ExitCode;

use super::{Context, Error, Result, prepare};
use crate::progress::Shown;
use crate::shim::{Attached, Order, StartError};
use crate::spec::TenantName;
use crate::store::{Exit, Locked, Store, Tenant};
use crate::terminal::{Signals, output};

/// This binary, also when the file it came from was replaced since.
const SELF: &str = "/proc/self/exe";

/// Flags of `fief start`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tenants to start
    #[arg(required = true, value_name = "NAME")]
    names: Vec<TenantName>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    let images = context.images()?;
    let progress = Shown::default();
    for name in &args.names {
        let spec = store.tenant(name)?.spec()?;
        spec.check(prepare::total_memory()?)?;
        let root = prepare::image_of(&images, name, &spec, &progress)?;
        let files = prepare::boot_files(&images, context, &spec, root, &progress)?;
        let locked = store.lock(name)?;
        let order = Order {
            name: name.clone(),
            directory: text(locked.tenant.directory()),
            files,
            attached: false,
            command: None,
        };
        progress.step("starting the tenant");
        let (tenant, _) = crate::shim::start(Path::new(SELF), locked, &order)
            .map_err(|(_locked, error)| cannot_start(name, error))?;
        fief_images::Progress::end(&progress);
        let signals = Signals::take_over()?;
        await_agent(&store, &tenant, &signals)?;
        output(&format!("{name}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
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
        asked.get().is_none()
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
