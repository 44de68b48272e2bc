//! Why a request or a configuration file is refused.

use std::io;
use std::path::PathBuf;

use crate::boot::cmdline::CmdlineError;
use crate::config::ConfigError;
use crate::logger::LogError;

/// The message goes to the client as `fault_message`; see [`status`](Self::status).
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Route(#[from] fief_api::RouteError),
    #[error("a GET or DELETE request takes no body; send it without one")]
    UnwantedBody,
    #[error("the body is empty; it must be a JSON object")]
    NoBody,
    #[error("the update names no field; give at least one")]
    EmptyUpdate,
    #[error("the body is not what {request} takes: {source}")]
    Json {
        request: String,
        source: serde_json::Error,
    },
    #[error(
        "the body is longer than {limit} bytes; start fief-vmm with a larger --http-api-max-payload-size"
    )]
    TooLarge { limit: usize },
    #[error("the body did not come within {0} s")]
    SlowBody(u64),
    #[error("the body could not be read to its end")]
    BrokenBody,
    #[error("the id in the path is '{path}', the one in the body '{body}'; they must be the same")]
    IdMismatch { path: String, body: String },
    #[error("{0} is not supported after starting the microVM; configure it before InstanceStart")]
    AfterStart(String),
    #[error(
        "{0} is not supported before starting the microVM; send the action InstanceStart first"
    )]
    BeforeStart(String),
    #[error("{0}")]
    Unsupported(&'static str),
    #[error("there is no drive {0}; GET /vm/config lists them")]
    NoDrive(String),
    #[error(
        "there is a drive {0} already; choose another drive_id, or DELETE that one and wait until the guest has \
         released it"
    )]
    DriveExists(String),
    #[error("there is no passed-through device {0}; GET /vm/config lists them")]
    NoDevice(String),
    #[error(
        "there is a passed-through device {0} already; choose another id, or DELETE that one and wait until the guest has \
         released it"
    )]
    DeviceExists(String),
    #[error("the drive {0} has no path_on_host; say which file is behind it")]
    NoDrivePath(String),
    #[error(
        "destination is File but there is no serial_out_path; give one, or another destination"
    )]
    NoSerialPath,
    #[error("serial_out_path is given but destination is {0}; leave one of them out")]
    SerialPathUnused(&'static str),
    #[error("there is no balloon; configure one with PUT /balloon before the microVM is started")]
    NoBalloon,
    #[error(
        "the balloon has no statistics; start the microVM with a stats_polling_interval_s, or with stats_on_demand"
    )]
    NoStatistics,
    #[error(
        "stats_polling_interval_s cannot become 0 after the start, as that switches the statistics off; give at least 1"
    )]
    EndOfStatistics,
    #[error("there is no kernel; configure boot-source first")]
    NoKernel,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    #[error("there is no interface {0}; GET /vm/config lists them")]
    NoInterface(String),
    #[error("cannot attach to the tap {name} (host_dev_name): {source}")]
    Tap { name: String, source: io::Error },
    #[error("cannot open the {what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("nothing can be made at the {what} {}: {why}", path.display())]
    Place {
        what: &'static str,
        path: PathBuf,
        why: &'static str,
    },
    #[error("{}", with_causes(.0))]
    Log(#[from] LogError),
    /// What the control thread says of a command.
    #[error("{0}")]
    Machine(String),
    #[error("the monitor is about to exit")]
    Exiting,
}

impl RequestError {
    /// HTTP status: Firecracker's 400 for everything but a body that is too long.
    pub fn status(&self) -> hyper::StatusCode {
        match self {
            Self::TooLarge { .. } => hyper::StatusCode::PAYLOAD_TOO_LARGE,
            Self::SlowBody(_) => hyper::StatusCode::REQUEST_TIMEOUT,
            _ => hyper::StatusCode::BAD_REQUEST,
        }
    }
}

/// An error and its causes, each told once, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some messages already contain their cause.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
