//! `fief bench`: becomes `fief-bench`, which is beside this program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use super::context::binary;
use super::{Context, Error, Result};

/// All of it is for `fief-bench`, `--help` included.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    words: Vec<OsString>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let program = binary("fief-bench", "FIEF_BENCH")?;
    let mut bench = Command::new(&program);
    bench
        .args(&args.words)
        .env("FIEF", std::env::current_exe()?);
    bench.env("FIEF_HOST", context.choice().to_string());
    bench.env("FIEF_STATE_DIR", context.state());
    let error = bench.exec();
    Err(Error::new(format!(
        "cannot run {}: {error}; build it with `make build`, or set FIEF_BENCH to where it is",
        program.display()
    )))
}
