//! `fief host`: the emulated host by hand.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use fief_agent_proto::ExecRequest;
use fief_host::EmulatedHost;
use fief_host::emulated::keeper;
use fief_host::qemu::Hardware;

use super::error::remote;
use super::run::StreamArgs;
use super::{Context, OWN_FAILURE, Result};
use crate::carry;
use crate::progress::Shown;
use crate::spec::Bytes;
use crate::terminal::{Signals, attend, cancel, output};

/// Flags of `fief host`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start the emulated host, or do nothing if it runs
    Start(StartArgs),
    /// Shut it down; its disk stays
    Stop,
    /// Tell whether it runs, and with what
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command in the emulated host itself, as root
    Exec {
        #[command(flatten)]
        streams: StreamArgs,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// The process that an emulated host lives in
    #[command(hide = true)]
    Keep { directory: PathBuf },
}

#[derive(Debug, clap::Args)]
struct StartArgs {
    /// Memory [4G]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Processors [1]
    #[arg(long, value_name = "N", conflicts_with = "icount", value_parser = clap::value_parser!(u8).range(1..=64))]
    cpus: Option<u8>,
    /// One processor whose clock counts instructions: repeatable measurements
    #[arg(long)]
    icount: bool,
    /// With an IOMMU
    #[arg(long)]
    iommu: bool,
    /// One more device, as QEMU's -device takes it
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// One more argument of QEMU's, for what a device stands on: --qemu-arg=-object --qemu-arg=memory-backend-ram,id=m,size=1G
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    qemu_arg: Vec<String>,
}

impl StartArgs {
    /// None: whatever runs is right.
    fn hardware(&self) -> Option<Hardware> {
        let asked = self.memory.is_some()
            || self.cpus.is_some()
            || self.icount
            || self.iommu
            || !self.device.is_empty()
            || !self.qemu_arg.is_empty();
        let usual = Hardware::default();
        asked.then(|| Hardware {
            memory_mib: self.memory.map_or(usual.memory_mib, Bytes::mib),
            cpus: self.cpus.unwrap_or(usual.cpus),
            icount: self.icount,
            iommu: self.iommu,
            devices: self.device.clone(),
            arguments: self.qemu_arg.clone(),
            ..usual
        })
    }
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let host = EmulatedHost::open(context.state());
    match &args.action {
        Action::Start(args) => {
            let images = context.images()?;
            let progress = Shown::default();
            let fresh = carry::start(context, &images, args.hardware().as_ref(), &progress)?;
            carry::copy_in(context, &images, &[], &progress)?;
            drop(progress);
            if fresh {
                carry::hold(context, &[])?;
            }
            output("the emulated host runs\n")?;
        }
        Action::Stop => {
            output(if host.stop()? {
                "the emulated host is stopped\n"
            } else {
                "the emulated host did not run\n"
            })?;
        }
        Action::Status { json } => output(&status(&host, *json)?)?,
        Action::Exec { streams, command } => {
            let streams = streams.streams()?;
            let signals = Signals::take_over()?;
            let connection = host.connect()?;
            let mut request = ExecRequest::new(command.iter().cloned());
            // `fief` in there is to use that machine's KVM: measured against real ones it would look too slow.
            request.env.push(("FIEF_HOST".into(), "native".into()));
            let code = attend(&connection, request, streams, &signals, &cancel).map_err(remote)?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(OWN_FAILURE)));
        }
        Action::Keep { directory } => keeper::keep(directory)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn status(host: &EmulatedHost, json: bool) -> Result<String> {
    let status = host.status();
    if json {
        return Ok(serde_json::to_string_pretty(&status)? + "\n");
    }
    let Some(hardware) = status.hardware.filter(|_| status.running) else {
        return Ok(format!(
            "not running; its disk takes {}\n",
            Bytes(status.disk_bytes)
        ));
    };
    let pid = status
        .pid
        .map(|pid| format!(" (process {pid})"))
        .unwrap_or_default();
    Ok(format!(
        "running{pid}: {}; its disk takes {}\nconsole: {}\n",
        in_words(&hardware),
        Bytes(status.disk_bytes),
        status.console.display()
    ))
}

fn in_words(hardware: &Hardware) -> String {
    let cpus = match hardware.cpus {
        1 => "1 processor".to_owned(),
        several => format!("{several} processors"),
    };
    let counting = if hardware.icount {
        " counting instructions"
    } else {
        ""
    };
    let memory = Bytes::from_mib(hardware.memory_mib);
    let iommu = if hardware.iommu { ", an IOMMU" } else { "" };
    format!("{cpus}{counting}, {memory} of memory{iommu}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_in_plain_words() {
        let usual = Hardware::default();
        assert_eq!(in_words(&usual), "1 processor, 4 GiB of memory");
        let large = Hardware {
            cpus: 4,
            memory_mib: 8192,
            iommu: true,
            ..usual.clone()
        };
        assert_eq!(in_words(&large), "4 processors, 8 GiB of memory, an IOMMU");
        let counting = Hardware {
            icount: true,
            ..usual
        };
        assert_eq!(
            in_words(&counting),
            "1 processor counting instructions, 4 GiB of memory"
        );
    }
}
