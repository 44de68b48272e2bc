//! The command line: Firecracker's flags and a few of our own.

mod run;

use std::path::PathBuf;

use clap::Parser;
use fief_api::LogLevel;

pub use run::run;

/// Firecracker's default: its clients look there.
pub const DEFAULT_API_SOCK: &str = "/run/firecracker.socket";

/// What the process ends with. 128 + n stands for the signal n, as in shells.
pub mod exit_code {
    /// The guest powered off or rebooted.
    pub const OK: u8 = 0;
    /// The monitor or KVM failed.
    pub const FAILED: u8 = 1;
    /// The guest's kernel panicked.
    pub const GUEST_PANIC: u8 = 20;
    /// A vCPU shut down after a triple fault.
    pub const TRIPLE_FAULT: u8 = 21;
    /// The configuration file does not describe a machine that can be built (Firecracker's code).
    pub const BAD_CONFIGURATION: u8 = 152;
    /// The command line is wrong (Firecracker's code).
    pub const BAD_ARGUMENTS: u8 = 153;
    /// Added to the number of a signal.
    pub const SIGNAL: u8 = 128;
}

/// fief-vmm runs one virtual machine. It takes Firecracker's flags, API and configuration files.
#[derive(Debug, Parser)]
#[command(name = "fief-vmm", version, color = clap::ColorChoice::Never)]
pub struct Args {
    /// Unix socket to serve the API on
    #[arg(long, value_name = "PATH", default_value = DEFAULT_API_SOCK)]
    pub api_sock: PathBuf,

    /// JSON description of a machine, which is started at once
    #[arg(long, value_name = "PATH")]
    pub config_file: Option<PathBuf>,

    /// Serve no API; needs --config-file
    #[arg(long, requires = "config_file")]
    pub no_api: bool,

    /// Name of this instance: 1 to 64 letters, digits and dashes
    #[arg(long, default_value = "anonymous-instance", value_parser = instance_id)]
    pub id: String,

    /// File or named pipe for the log (standard error without it)
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<String>,

    /// How much to log: Off, Error, Warning, Info, Debug or Trace (Info without it)
    #[arg(long)]
    pub level: Option<LogLevel>,

    /// Show the level of each log line
    #[arg(long)]
    pub show_level: bool,

    /// Show the source file and line of each log line
    #[arg(long)]
    pub show_log_origin: bool,

    /// Log only this module and those inside it
    #[arg(long)]
    pub module: Option<String>,

    /// File or named pipe for events as JSON lines: started, reboot, panic, exit
    #[arg(long, value_name = "PATH")]
    pub event_path: Option<PathBuf>,

    /// Longest body of an API request in bytes
    #[arg(long, value_name = "BYTES", default_value_t = fief_api::DEFAULT_MAX_PAYLOAD)]
    pub http_api_max_payload_size: usize,

    /// Wall clock when the process was started, in microseconds, to log how long starting took
    #[arg(long, value_name = "US")]
    pub start_time_us: Option<u64>,

    /// CPU time of the process when it was started, in microseconds, to log how much starting took
    #[arg(long, value_name = "US")]
    pub start_time_cpu_us: Option<u64>,

    /// CPU time that the parent used for starting, in microseconds; added to the above
    #[arg(long, value_name = "US")]
    pub parent_cpu_time_us: Option<u64>,

    /// A device node that whoever starts the monitor has opened for it: PATH is not opened, but is what descriptor FD is
    #[arg(long = "device-fd", value_name = "PATH=FD", value_parser = device_fd)]
    pub device_fds: Vec<DeviceFd>,

    /// Accepted; devices are always on PCI
    #[arg(long)]
    pub enable_pci: bool,

    /// Accepted; has no effect
    #[arg(long)]
    pub boot_timer: bool,

    /// Say as JSON what this machine's KVM can do, and end
    #[arg(long)]
    pub probe: bool,
}

/// A descriptor in place of a device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFd {
    pub path: PathBuf,
    pub descriptor: i32,
}

fn device_fd(text: &str) -> Result<DeviceFd, String> {
    let parts = text.rsplit_once('=');
    let parsed = parts.and_then(|(path, fd)| {
        let descriptor = fd.parse().ok().filter(|fd: &i32| *fd > 2)?;
        let path = PathBuf::from(path);
        path.is_absolute().then_some(DeviceFd { path, descriptor })
    });
    parsed.ok_or_else(|| {
        "give the node's path and a descriptor above 2, as in /dev/vfio/7=5".to_owned()
    })
}

fn instance_id(id: &str) -> Result<String, String> {
    let fine = |c: char| c == '-' || c.is_alphanumeric();
    if (1..=64).contains(&id.chars().count()) && id.chars().all(fine) {
        return Ok(id.to_owned());
    }
    Err("use 1 to 64 letters, digits and dashes".to_owned())
}

/// What to print instead of running, and the exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Instead {
    pub text: String,
    pub code: u8,
}

/// Reads the command line; `arguments` begins with the program's name.
///
/// # Errors
/// The text of --help or --version, or what is wrong in one line.
pub fn parse<I, T>(arguments: I) -> Result<Args, Instead>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    Args::try_parse_from(arguments).map_err(|error| {
        let text = error.render().to_string();
        if !error.use_stderr() {
            return Instead {
                text,
                code: exit_code::OK,
            };
        }
        Instead {
            text: one_line(&text),
            code: exit_code::BAD_ARGUMENTS,
        }
    })
}

/// clap says what is wrong, gives tips, and repeats the usage; the usage is left to --help.
fn one_line(text: &str) -> String {
    let parts: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:"))
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let parts = parts.join("; ").replace(":; ", ": ");
    let what = parts.strip_prefix("error: ").unwrap_or(&parts);
    format!("fief-vmm: {what}; see fief-vmm --help\n")
}

#[cfg(test)]
mod tests;
