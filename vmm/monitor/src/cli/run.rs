//! From a command line to an exit code.

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::path::PathBuf;

use fief_api::InstanceState;

use super::{Args, DeviceFd, exit_code};
use crate::config::VmConfig;
use crate::events::{self, EventError, Events};
use crate::logger::{self, LogError};
use crate::machine::files::Files;
use crate::machine::{ExitReason, Machine};
use crate::server::control::{Control, End, Signals};
use crate::server::draft::Draft;
use crate::server::error::{RequestError, with_causes};
use crate::server::file::{self, FileError};
use crate::server::session::Session;
use crate::server::{ApiSocket, Limits, Server, SocketError};

/// Why the monitor could not do its work.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Events(#[from] EventError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the configuration file does not describe a machine")]
    Configuration(#[source] RequestError),
    #[error("the machine that the configuration file describes cannot be started: {0}")]
    Start(String),
    #[error(
        "--device-fd {}={descriptor}: there is no such descriptor, or it was given twice; pass each opened and once",
        path.display()
    )]
    Descriptor { path: PathBuf, descriptor: i32 },
    #[error("the host does not give the monitor what it needs")]
    Host(#[source] io::Error),
}

impl Fatal {
    fn code(&self) -> u8 {
        match self {
            Self::File(_) | Self::Configuration(_) | Self::Start(_) => exit_code::BAD_CONFIGURATION,
            _ => exit_code::FAILED,
        }
    }
}

/// Runs the monitor until its machine ends.
pub fn run(args: &Args) -> u8 {
    if args.probe {
        return print(&crate::probe::probe());
    }
    logger::install(&args.id);
    let files = match take_devices(args) {
        Ok(devices) => Files::with_devices(devices),
        Err(fatal) => return tell(&fatal),
    };
    let events = match Events::open(&files, args.event_path.as_deref()) {
        Ok(events) => events,
        Err(error) => return tell(&error.into()),
    };
    match serve(args, &files, &events) {
        Ok(end) => {
            let (reason, code) = judge(end);
            tracing::info!("the microVM ended: {}", events::name(&reason));
            if let ExitReason::Failed(why) = &reason {
                complain(&format!("the microVM failed: {why}"));
            }
            events.ended(&reason, code);
            code
        }
        Err(fatal) => {
            events.ended(&ExitReason::Failed(with_causes(&fatal)), fatal.code());
            tell(&fatal)
        }
    }
}

/// The device nodes that came as descriptors; they are closed for programs that this one might start.
fn take_devices(args: &Args) -> Result<Vec<(PathBuf, File)>, Fatal> {
    let mut taken = Vec::new();
    for DeviceFd { path, descriptor } in &args.device_fds {
        // SAFETY: fcntl looks at any number; it fails for one that is no open descriptor.
        let flags = unsafe { libc::fcntl(*descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
        let twice = args
            .device_fds
            .iter()
            .filter(|other| other.descriptor == *descriptor);
        if flags < 0 || twice.count() > 1 {
            return Err(Fatal::Descriptor {
                path: path.clone(),
                descriptor: *descriptor,
            });
        }
        // SAFETY: the descriptor is open, was passed for this, and is taken once: nothing in this process had it before.
        let file = unsafe { File::from_raw_fd(*descriptor) };
        taken.push((path.clone(), file));
    }
    Ok(taken)
}

fn judge(end: End) -> (ExitReason, u8) {
    match end {
        End::Signal(signal) => {
            let signal = u8::try_from(signal).unwrap_or_default();
            let code = exit_code::SIGNAL.saturating_add(signal);
            (ExitReason::Stopped, code)
        }
        End::Machine(reason) => {
            let code = match reason {
                ExitReason::PowerOff | ExitReason::Reboot | ExitReason::Stopped => exit_code::OK,
                ExitReason::Panic => exit_code::GUEST_PANIC,
                ExitReason::TripleFault => exit_code::TRIPLE_FAULT,
                ExitReason::Failed(_) => exit_code::FAILED,
            };
            (reason, code)
        }
    }
}

/// Everything from here to the end of the machine; what it made is gone when it returns.
fn serve(args: &Args, files: &Files, events: &Events) -> Result<End, Fatal> {
    logger::configure(&log_settings(args), files)?;
    tracing::info!("running fief-vmm {}", env!("CARGO_PKG_VERSION"));
    // Before any other thread, so that all of them leave the signals to this one.
    let signals = Signals::block().map_err(Fatal::Host)?;
    let mut draft = Draft::new(files.clone(), host_mib()).map_err(Fatal::Configuration)?;
    let config = configured(args, files, &mut draft)?;
    let machine_files = files.clone();
    let build = Box::new(move |config: &VmConfig, on_event| -> Result<Box<_>, _> {
        let machine = Machine::build(config, &machine_files, on_event)?;
        Ok(Box::new(machine) as Box<_>)
    });
    let mut control = Control::new(build, Some(signals)).map_err(Fatal::Host)?;
    let server = match args.no_api {
        true => None,
        false => Some(serve_api(args, files, draft, config.is_some(), &control)?),
    };
    log_start_time(args);
    if let Some(config) = config {
        control.start(&config, events).map_err(Fatal::Start)?;
    }
    let end = control.run(events).map_err(Fatal::Host);
    // Requests that still wait are answered by this, and only then is the server to end.
    drop(control);
    if let Some(server) = server {
        server.shut_down();
    }
    end
}

/// The machine of the configuration file, if one is given.
fn configured(args: &Args, files: &Files, draft: &mut Draft) -> Result<Option<VmConfig>, Fatal> {
    let Some(path) = &args.config_file else {
        return Ok(None);
    };
    let mut whole = file::read(files, path)?;
    if let Some(settings) = whole.logger.take() {
        logger::configure(&settings, files)?;
        draft.remember_logger(settings);
    }
    draft.put_all(whole).map_err(Fatal::Configuration)?;
    draft.finish().map(Some).map_err(Fatal::Configuration)
}

fn serve_api(
    args: &Args,
    files: &Files,
    draft: Draft,
    starts: bool,
    control: &Control,
) -> Result<Server, Fatal> {
    let socket = ApiSocket::bind(&args.api_sock)?;
    let state = match starts {
        true => InstanceState::Running,
        false => InstanceState::NotStarted,
    };
    let session = Session::new(args.id.clone(), draft, state, control.post(), files.clone());
    let limits = Limits::with_body(args.http_api_max_payload_size);
    Server::start(socket, session, limits).map_err(Fatal::Host)
}

fn log_settings(args: &Args) -> fief_api::Logger {
    fief_api::Logger {
        log_path: args.log_path.clone(),
        level: args.level,
        show_level: args.show_level.then_some(true),
        show_log_origin: args.show_log_origin.then_some(true),
        module: args.module.clone(),
    }
}

/// Memory of the host in MiB.
fn host_mib() -> u64 {
    // SAFETY: the structure is plain old data, for which zeros are valid; the pointer is to a local.
    let info = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        match libc::sysinfo(&mut info) {
            0 => info,
            // It fails for bad pointers only (sysinfo(2)). Then every size is allowed and mmap judges.
            _ => return u64::MAX,
        }
    };
    info.totalram.saturating_mul(u64::from(info.mem_unit)) >> 20
}

/// What Firecracker reports as metrics: how long the process took to come this far.
fn log_start_time(args: &Args) {
    let now = |clock| {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the pointer is to a local.
        unsafe { libc::clock_gettime(clock, &mut time) };
        let part = |value: i64| u64::try_from(value).unwrap_or_default();
        part(time.tv_sec)
            .saturating_mul(1_000_000)
            .saturating_add(part(time.tv_nsec) / 1000)
    };
    if let Some(start) = args.start_time_us {
        let took = now(libc::CLOCK_REALTIME).saturating_sub(start);
        tracing::info!("starting took {took} us");
    }
    if let Some(start) = args.start_time_cpu_us {
        let took = now(libc::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(start);
        let took = took.saturating_add(args.parent_cpu_time_us.unwrap_or_default());
        tracing::info!("starting took {took} us of CPU time");
    }
}

/// Prints `text` to standard output; whoever closed that is not interested.
fn print(text: &str) -> u8 {
    let _ = io::Write::write_all(&mut io::stdout(), format!("{text}\n").as_bytes());
    exit_code::OK
}

fn tell(fatal: &Fatal) -> u8 {
    complain(&with_causes(fatal));
    fatal.code()
}

/// One line on standard error.
fn complain(what: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("fief-vmm: {what}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_exit_code() {
        let code = |reason| judge(End::Machine(reason)).1;
        assert_eq!(code(ExitReason::PowerOff), 0);
        assert_eq!(code(ExitReason::Reboot), 0);
        assert_eq!(code(ExitReason::Panic), 20);
        assert_eq!(code(ExitReason::TripleFault), 21);
        assert_eq!(code(ExitReason::Failed(String::new())), 1);
        assert_eq!(judge(End::Signal(15)), (ExitReason::Stopped, 143));
    }

    #[test]
    fn the_host_has_memory() {
        assert!((64..1 << 30).contains(&host_mib()), "{}", host_mib());
    }
}
