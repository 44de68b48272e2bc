//! `fief doctor`.

use std::process::ExitCode;

use fief_host::HostKind;
use fief_host::doctor::{Health, Report, examine};

use super::{Context, Result};
use crate::terminal::output;

/// Flags of `fief doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let report = examine(
        context.choice(),
        context.monitor(),
        context.agent(),
        context.state(),
    );
    output(&if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        text(&report)
    })?;
    Ok(if report.healthy() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn text(report: &Report) -> String {
    let kind = match report.host.kind {
        HostKind::Native => "native",
        HostKind::Emulated => "emulated",
    };
    let mut text = format!("   host            {kind}: {}\n", report.host.why);
    for check in &report.checks {
        let mark = match check.health {
            Health::Ok => "ok ",
            Health::Warning => "!  ",
            Health::Missing => "NO ",
        };
        text.push_str(&format!("{mark}{:<15} {}\n", check.name, check.found));
        if let Some(remedy) = &check.remedy {
            text.push_str(&format!("{:18} {remedy}\n", ""));
        }
    }
    text
}
