//! The command line.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use crate::act;
use crate::enter;
use crate::exhaust;
use crate::experiments;
use crate::net;
use crate::probe;
use crate::subject::{Backend, Peer, monitor};

/// What isolation costs, and what it buys: the same work in virtual machines, containers and on the plain host
#[derive(Debug, Parser)]
#[command(name = "fief bench", bin_name = "fief bench", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pub flags: Flags,
    #[command(subcommand)]
    pub part: Option<Part>,
}

const EXAMPLES: &str = "\
Examples:
  fief bench --list                               what can be measured
  fief bench --only getpid,start --runs 10        two experiments
  fief bench --backends vm,container --html report.html
  fief bench --only start,memory --peer firecracker=./firecracker   beside another monitor
  fief bench --from result.json --html report.html   the page of what --json wrote

Where Linux does not boot on this machine's KVM, tenants run in the emulated host, and instructions are counted instead of
seconds. docs/benchmarks.md explains each experiment.";

/// What people say.
#[derive(Debug, Clone, clap::Args)]
pub struct Flags {
    /// What to compare
    #[arg(
        long,
        value_name = "BACKEND",
        value_delimiter = ',',
        default_value = "vm,container,host"
    )]
    pub backends: Vec<Backend>,
    /// Compare another monitor, too: a program that takes Firecracker's --no-api --config-file FILE (may be repeated)
    #[arg(long = "peer", value_name = "NAME=PATH")]
    pub peers: Vec<Peer>,
    /// List the experiments
    #[arg(long)]
    pub list: bool,
    /// Experiments to run, by name [all]
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(experiments::names()),
        hide_possible_values = true
    )]
    pub only: Vec<String>,
    /// Runs of each experiment and backend, after one that is not counted
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// Image of the tenants: bench, which has all that is run in them, or another for what needs nothing of that
    #[arg(long, default_value = "bench")]
    pub image: String,
    /// Kernel of the virtual machines: debian, tuned, micro [debian; micro in the emulated host, where debian waits in busy loops]
    #[arg(long)]
    pub kernel: Option<String>,
    /// OCI runtime of the containers: crun, runc or a path [the first that is there]
    #[arg(long)]
    pub runtime: Option<String>,
    /// Memory of each tenant
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: String,
    /// Also run, on this machine, what takes all of something from whoever else works on it
    #[arg(long)]
    pub i_know_this_harms_this_host: bool,
    /// Write everything that was measured, each run, as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a report for people, one page that needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Measure nothing: show what --json wrote, and make --html of it
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["backends", "peers", "list", "only", "runs", "image", "kernel", "runtime", "memory", "json"]
    )]
    pub from: Option<PathBuf>,
}

/// Parts of this program that run elsewhere.
#[derive(Debug, Subcommand)]
pub enum Part {
    #[command(hide = true)]
    Probe(probe::Args),
    #[command(hide = true)]
    Time(probe::Timed),
    #[command(hide = true)]
    Exhaust(exhaust::Args),
    #[command(hide = true)]
    Flood(net::Flood),
    #[command(hide = true)]
    Serve,
    #[command(hide = true)]
    Act(act::Args),
    #[command(hide = true)]
    Channels,
    #[command(hide = true)]
    Visit,
    #[command(hide = true)]
    Enter(enter::Args),
    #[command(hide = true)]
    Inside(monitor::Inside),
    #[command(hide = true)]
    Runner(Runner),
}

/// A runner's orders: [`crate::runner::Order`] as JSON.
#[derive(Debug, clap::Args)]
pub struct Runner {
    pub order: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_shown_with_no_flag_of_a_measurement() {
        let parse = |words: &[&str]| Args::try_parse_from([&["fief-bench"], words].concat());
        let args = parse(&["--from", "a.json", "--html", "a.html"]).unwrap();
        assert!(args.flags.from.is_some() && args.flags.html.is_some());
        for flag in [
            ["--runs", "3"],
            ["--json", "b.json"],
            ["--image", "debian"],
            ["--peer", "a=b"],
        ] {
            assert!(parse(&flag).is_ok());
            let both = [&["--from", "a.json"], &flag[..]].concat();
            assert!(parse(&both).is_err(), "{both:?}");
        }
    }
}
