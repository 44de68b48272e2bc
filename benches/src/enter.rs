//! A command in a group of its own, with another root: the plain host's share of what a tenant has.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use fief::cgroup::Group;
use fief::network::namespace;
use fief::spec::Isolation;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::error::{Result, failed, on};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The group, see [`Group::named`]
    #[arg(long)]
    group: String,
    /// The network namespace, see ip-netns(8)
    #[arg(long)]
    netns: Option<String>,
    /// The root of its files
    #[arg(long)]
    root: Option<PathBuf>,
    #[arg(last = true, required = true)]
    words: Vec<String>,
}

/// Becomes the command.
///
/// # Errors
/// It cannot.
pub fn main(args: &Args) -> Result<ExitCode> {
    // What stays of this process is the program that it becomes.
    let _origin = Group::named(&args.group)
        .enter(Isolation::Vm)
        .map_err(failed("enter the group of the measurement"))?;
    if let Some(name) = &args.netns {
        let path = namespace::path(name);
        let opened = namespace::open(name).map_err(on("open", &path))?;
        setns(opened, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| on("enter", &path)(errno.into()))?;
    }
    if let Some(root) = &args.root {
        std::os::unix::fs::chroot(root).map_err(on("change the root to", root))?;
        std::env::set_current_dir("/").map_err(failed("change to the new root"))?;
    }
    // What is measured does not outlive the measurement.
    set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| failed("be ended with the measurement")(errno.into()))?;
    let (program, words) = args.words.split_first().unzip();
    let program = program.map_or("", String::as_str);
    let error = Command::new(program).args(words.unwrap_or_default()).exec();
    Err(failed(format!("run {program}"))(error))
}
