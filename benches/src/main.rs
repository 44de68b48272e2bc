//! `fief-bench`: what isolation costs and what it buys, measured. `docs/benchmarks.md` explains each experiment.
//!
//! [`front`] is what people meet. It starts a [`runner`] where tenants run, this machine or the emulated host, and hears from
//! it by [`event`]s; [`experiments`] are what the runner does to [`subject`]s, and [`probe`] is what it runs in them.

mod act;
mod args;
mod channels;
mod emulator;
mod enter;
mod error;
mod event;
mod exhaust;
mod experiments;
mod filter;
mod front;
mod machine;
mod measure;
mod net;
mod probe;
mod report;
mod runner;
mod statistics;
mod subject;
mod tracing;
mod visit;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Part};

/// fief's own failures, as docker's.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.part {
        Some(Part::Probe(args)) => probe::main(&args).map(|()| ExitCode::SUCCESS),
        Some(Part::Time(args)) => probe::time(&args).map(|()| ExitCode::SUCCESS),
        Some(Part::Exhaust(args)) => exhaust::main(&args).map(|()| ExitCode::SUCCESS),
        Some(Part::Flood(args)) => net::flood(&args).map(|()| ExitCode::SUCCESS),
        Some(Part::Serve) => net::serve().map(|()| ExitCode::SUCCESS),
        Some(Part::Act(args)) => act::main(&args).map(|()| ExitCode::SUCCESS),
        Some(Part::Channels) => channels::main().map(|()| ExitCode::SUCCESS),
        Some(Part::Visit) => visit::main().map(|()| ExitCode::SUCCESS),
        Some(Part::Enter(args)) => enter::main(&args),
        Some(Part::Inside(args)) => subject::monitor::inside(&args),
        Some(Part::Runner(args)) => runner::main(&args).map(|()| ExitCode::SUCCESS),
        None => front::main(&args.flags),
    };
    done.unwrap_or_else(|error| {
        eprintln!("fief bench: {error}");
        ExitCode::from(OWN_FAILURE)
    })
}
