//! `fief stats`: what running tenants use, now.

mod sample;

use std::collections::HashMap;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fief_agent_proto::Stats as Inside;
use serde::Serialize;

use super::{Context, Result};
use crate::carry::Needs;
use crate::spec::{Bytes, TenantName};
use crate::store::{Store, Tenant, now};
use crate::table::{ago, table};
use crate::terminal::{Streams, output};
use sample::Sample;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a tenant's agent may take to take a connection.
const ANSWER: Duration = Duration::from_secs(2);

/// Flags of `fief stats`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "CPU: of one processor, over the last second. MEMORY: of the host, with what the monitor may use. INSIDE: \
    used as the tenant's own kernel counts. READ, WRITTEN, RECEIVED and SENT count since its start."
)]
pub struct Args {
    /// One look instead of one a second
    #[arg(long)]
    no_stream: bool,
    /// As JSON, a line for each tenant at each look
    #[arg(long)]
    json: bool,
    /// Tenants [all that run]
    #[arg(value_name = "NAME")]
    names: Vec<TenantName>,
}

impl Args {
    pub fn needs(&self) -> Needs {
        let tty = !self.no_stream
            && !self.json
            && std::io::stdin().is_terminal()
            && std::io::stdout().is_terminal();
        Needs {
            streams: Streams { stdin: false, tty },
            ..Needs::default()
        }
    }
}

/// What one tenant uses. What cannot be counted on this machine is left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    name: String,
    /// Percent of one processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
    /// Processor time since its start, in nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_limit_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inside_memory_used_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inside_memory_total_bytes: Option<u64>,
    disk_used_bytes: u64,
    disk_size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_written_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    net_received_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    net_sent_bytes: Option<u64>,
    /// Processes inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<u32>,
    /// Threads of the monitor and the shim.
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<u64>,
    uptime_seconds: u64,
}

impl Row {
    fn new(before: Option<&Sample>, sample: &Sample, inside: Option<&Inside>) -> Self {
        let cpu_percent = before.and_then(|before| {
            let spent = sample.cpu_ns?.checked_sub(before.cpu_ns?)?;
            let passed = sample.at.checked_duration_since(before.at)?.as_nanos();
            (passed > 0).then(|| (spent as f64 / passed as f64 * 1000.0).round() / 10.0)
        });
        Self {
            name: sample.name.clone(),
            cpu_percent,
            cpu_ns: sample.cpu_ns,
            memory_bytes: sample.memory,
            memory_limit_bytes: sample.memory_limit,
            inside_memory_used_bytes: inside.map(|inside| {
                inside
                    .memory_total_bytes
                    .saturating_sub(inside.memory_available_bytes)
            }),
            inside_memory_total_bytes: inside.map(|inside| inside.memory_total_bytes),
            disk_used_bytes: sample.disk_used,
            disk_size_bytes: sample.disk_size,
            disk_read_bytes: sample.read,
            disk_written_bytes: sample.written,
            net_received_bytes: sample.received,
            net_sent_bytes: sample.sent,
            processes: inside.map(|inside| inside.processes),
            threads: sample.threads,
            uptime_seconds: now().saturating_sub(sample.started),
        }
    }

    fn cells(&self) -> Vec<String> {
        let size =
            |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| Bytes(bytes).to_string());
        let of = |used: Option<u64>, all: Option<u64>| match (used, all) {
            (Some(used), Some(all)) => format!("{} of {}", Bytes(used), Bytes(all)),
            (used, _) => size(used),
        };
        vec![
            self.name.clone(),
            self.cpu_percent
                .map_or("-".to_owned(), |percent| format!("{percent:.1} %")),
            of(self.memory_bytes, self.memory_limit_bytes),
            of(
                self.inside_memory_used_bytes,
                self.inside_memory_total_bytes,
            ),
            of(Some(self.disk_used_bytes), Some(self.disk_size_bytes)),
            size(self.disk_read_bytes),
            size(self.disk_written_bytes),
            size(self.net_received_bytes),
            size(self.net_sent_bytes),
            self.processes
                .map_or("-".to_owned(), |processes| processes.to_string()),
            ago(self.uptime_seconds),
        ]
    }
}

const HEADER: [&str; 11] = [
    "NAME",
    "CPU",
    "MEMORY",
    "INSIDE",
    "DISK",
    "READ",
    "WRITTEN",
    "RECEIVED",
    "SENT",
    "PROCESSES",
    "UPTIME",
];

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    for name in &args.names {
        // A name that is none, or does not run, is told at once.
        store.running(name)?;
    }
    let mut agents = Agents::default();
    let mut before = look(&store, args, &mut agents)?;
    loop {
        std::thread::sleep(INTERVAL);
        let samples = look(&store, args, &mut agents)?;
        let rows: Vec<Row> = samples
            .values()
            .map(|sample| {
                let inside = agents.latest(&sample.name);
                Row::new(before.get(&sample.name), sample, inside.as_ref())
            })
            .collect();
        show(rows, args)?;
        if args.no_stream || (!args.names.is_empty() && samples.is_empty()) {
            return Ok(ExitCode::SUCCESS);
        }
        before = samples;
    }
}

fn look(store: &Store, args: &Args, agents: &mut Agents) -> Result<HashMap<String, Sample>> {
    let mut samples = HashMap::new();
    for tenant in store.tenants()? {
        if !args.names.is_empty() && !args.names.contains(&tenant.name) {
            continue;
        }
        if let Some(sample) = Sample::of(&tenant) {
            agents.ask(&tenant);
            samples.insert(sample.name.clone(), sample);
        }
    }
    Ok(samples)
}

fn show(mut rows: Vec<Row>, args: &Args) -> Result<()> {
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    if args.json {
        let mut text = String::new();
        for row in rows {
            text.push_str(&serde_json::to_string(&row)?);
            text.push('\n');
        }
        return Ok(output(&text)?);
    }
    let mut text = table(&HEADER, rows.iter().map(Row::cells));
    if !args.no_stream && std::io::stdout().is_terminal() {
        // What does not fit would scroll away at each look.
        let size = rustix::termios::tcgetwinsize(std::io::stdout());
        let height = size.map_or(usize::MAX, |size| usize::from(size.ws_row.max(2)));
        let lines: Vec<&str> = text.lines().take(height - 1).collect();
        // ECMA-48: the cursor to the upper left, each line's rest and what is below erased.
        text = format!("\x1b[H{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"));
    }
    Ok(output(&text)?)
}

/// What the tenants' agents say, each asked by a thread of its own: one that does not answer holds up nobody.
#[derive(Default)]
struct Agents(HashMap<String, Agent>);

struct Agent {
    /// Which run of the tenant it is.
    started: u64,
    latest: Arc<Mutex<Option<Inside>>>,
}

impl Agents {
    /// Begins to ask a tenant, once for each of its runs.
    fn ask(&mut self, tenant: &Tenant) {
        let Ok(Some(state)) = tenant.state() else {
            return;
        };
        let name = tenant.name.to_string();
        if self
            .0
            .get(&name)
            .is_some_and(|agent| agent.started == state.started)
        {
            return;
        }
        let latest = Arc::new(Mutex::new(None));
        let (tenant, place) = (tenant.clone(), Arc::downgrade(&latest));
        let asking = std::thread::Builder::new().spawn(move || {
            while let Some(place) = place.upgrade() {
                let Ok(connection) = crate::agent::try_connect(&tenant, Instant::now() + ANSWER)
                else {
                    drop(place);
                    std::thread::sleep(INTERVAL);
                    continue;
                };
                while let Ok(inside) = connection.stats() {
                    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(inside);
                    std::thread::sleep(INTERVAL);
                }
                return;
            }
        });
        // Without a thread for it there is nothing from inside.
        let _ = asking;
        self.0.insert(
            name,
            Agent {
                started: state.started,
                latest,
            },
        );
    }

    fn latest(&self, name: &str) -> Option<Inside> {
        let agent = self.0.get(name)?;
        agent
            .latest
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[cfg(test)]
mod tests;
