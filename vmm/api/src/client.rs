//! A blocking client. One connection a request: nothing to keep alive, nothing to go stale.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::routes::Endpoint;
use crate::{
    ActionType, Balloon, BalloonStats, BalloonStatsUpdate, BalloonUpdate, BootSource,
    DevicePassthrough, Drive, Entropy, Fault, FullVmConfiguration, InstanceActionInfo,
    InstanceInfo, Lifecycle, Logger, MachineConfiguration, MachineConfigurationUpdate,
    NetworkInterface, PartialDrive, PartialNetworkInterface, Serial, Version, Vm, VmState, Vsock,
};

/// How long a request may take in all. Starting a machine in the emulated host takes seconds.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// Largest head of an answer, in headers.
const MAX_HEADERS: usize = 32;

/// Pause between two tries to reach a monitor that is starting.
const RETRY: Duration = Duration::from_millis(2);

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to the monitor's API socket {}: {source}; is the monitor running?", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("the monitor did not answer {request} within {} s", after.as_secs())]
    Timeout { request: String, after: Duration },
    #[error("the connection to the monitor broke during {request}: {source}")]
    Io { request: String, source: io::Error },
    #[error("the monitor's answer to {request} is not understood: {what}")]
    Answer { request: String, what: String },
    /// The monitor said no; the message is its own.
    #[error("{fault_message}")]
    Refused {
        request: String,
        status: u16,
        fault_message: String,
    },
}

/// Speaks to one monitor.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

/// An answer, taken apart.
struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Client {
    /// A client for the API socket at `path`. Nothing is connected yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// Sets how long a request may take in all.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until a monitor that was just started answers, for at most `patience`.
    ///
    /// # Errors
    /// The last error once `patience` is over; at once for any error other than a socket that nobody listens on yet.
    pub fn wait_until_ready(&self, patience: Duration) -> Result<InstanceInfo, ClientError> {
        let end = Instant::now() + patience;
        loop {
            match self.describe_instance() {
                Err(ClientError::Connect { source, .. })
                    if is_not_there_yet(&source) && Instant::now() < end =>
                {
                    std::thread::sleep(RETRY);
                }
                result => return result,
            }
        }
    }

    /// # Errors
    /// See [`ClientError`]; so for every method below.
    pub fn describe_instance(&self) -> Result<InstanceInfo, ClientError> {
        self.get(&Endpoint::DescribeInstance)
    }

    pub fn version(&self) -> Result<Version, ClientError> {
        self.get(&Endpoint::Version)
    }

    pub fn machine_config(&self) -> Result<MachineConfiguration, ClientError> {
        self.get(&Endpoint::GetMachineConfig)
    }

    pub fn put_machine_config(&self, config: &MachineConfiguration) -> Result<(), ClientError> {
        self.send(&Endpoint::PutMachineConfig, config)
    }

    pub fn patch_machine_config(
        &self,
        update: &MachineConfigurationUpdate,
    ) -> Result<(), ClientError> {
        self.send(&Endpoint::PatchMachineConfig, update)
    }

    pub fn put_boot_source(&self, source: &BootSource) -> Result<(), ClientError> {
        self.send(&Endpoint::PutBootSource, source)
    }

    pub fn put_drive(&self, drive: &Drive) -> Result<(), ClientError> {
        self.send(&Endpoint::PutDrive(drive.drive_id.clone()), drive)
    }

    pub fn put_network_interface(&self, interface: &NetworkInterface) -> Result<(), ClientError> {
        let endpoint = Endpoint::PutNetworkInterface(interface.iface_id.clone());
        self.send(&endpoint, interface)
    }

    pub fn patch_network_interface(
        &self,
        interface: &PartialNetworkInterface,
    ) -> Result<(), ClientError> {
        let endpoint = Endpoint::PatchNetworkInterface(interface.iface_id.clone());
        self.send(&endpoint, interface)
    }

    pub fn patch_drive(&self, drive: &PartialDrive) -> Result<(), ClientError> {
        self.send(&Endpoint::PatchDrive(drive.drive_id.clone()), drive)
    }

    /// Asks the guest to release a drive. [`vm_config`](Self::vm_config) tells when it has.
    pub fn delete_drive(&self, id: &str) -> Result<(), ClientError> {
        let endpoint = Endpoint::DeleteDrive(id.to_owned());
        self.exchange(&endpoint, None).map(|_| ())
    }

    /// Gives a device to the guest, before the start or while it runs.
    pub fn put_device(&self, device: &DevicePassthrough) -> Result<(), ClientError> {
        self.send(&Endpoint::PutDevice(device.id.clone()), device)
    }

    pub fn device(&self, id: &str) -> Result<DevicePassthrough, ClientError> {
        self.get(&Endpoint::GetDevice(id.to_owned()))
    }

    /// Asks the guest to release a device; [`vm_config`](Self::vm_config) tells whether it has.
    pub fn delete_device(&self, id: &str) -> Result<(), ClientError> {
        let endpoint = Endpoint::DeleteDevice(id.to_owned());
        self.exchange(&endpoint, None).map(|_| ())
    }

    pub fn put_vsock(&self, vsock: &Vsock) -> Result<(), ClientError> {
        self.send(&Endpoint::PutVsock, vsock)
    }

    pub fn put_entropy(&self, entropy: &Entropy) -> Result<(), ClientError> {
        self.send(&Endpoint::PutEntropy, entropy)
    }

    pub fn balloon(&self) -> Result<Balloon, ClientError> {
        self.get(&Endpoint::GetBalloon)
    }

    pub fn put_balloon(&self, balloon: &Balloon) -> Result<(), ClientError> {
        self.send(&Endpoint::PutBalloon, balloon)
    }

    /// Asks the guest to give `amount_mib` MiB in all, more or fewer than before. It gives them as it can: watch
    /// `actual_mib` of [`balloon_statistics`](Self::balloon_statistics).
    pub fn patch_balloon(&self, amount_mib: u64) -> Result<(), ClientError> {
        self.send(&Endpoint::PatchBalloon, &BalloonUpdate { amount_mib })
    }

    /// What the guest says of its memory. With `stats_on_demand` it is asked now.
    pub fn balloon_statistics(&self) -> Result<BalloonStats, ClientError> {
        self.get(&Endpoint::GetBalloonStatistics)
    }

    pub fn patch_balloon_statistics(
        &self,
        stats_polling_interval_s: u64,
    ) -> Result<(), ClientError> {
        let update = BalloonStatsUpdate {
            stats_polling_interval_s,
        };
        self.send(&Endpoint::PatchBalloonStatistics, &update)
    }

    pub fn put_serial(&self, serial: &Serial) -> Result<(), ClientError> {
        self.send(&Endpoint::PutSerial, serial)
    }

    pub fn put_logger(&self, logger: &Logger) -> Result<(), ClientError> {
        self.send(&Endpoint::PutLogger, logger)
    }

    pub fn put_lifecycle(&self, lifecycle: &Lifecycle) -> Result<(), ClientError> {
        self.send(&Endpoint::PutLifecycle, lifecycle)
    }

    /// Builds the machine and lets it run.
    pub fn start(&self) -> Result<(), ClientError> {
        self.action(ActionType::InstanceStart)
    }

    /// Presses the guest's power button.
    pub fn press_power_button(&self) -> Result<(), ClientError> {
        self.action(ActionType::SendCtrlAltDel)
    }

    pub fn action(&self, action_type: ActionType) -> Result<(), ClientError> {
        self.send(&Endpoint::PutActions, &InstanceActionInfo { action_type })
    }

    pub fn pause(&self) -> Result<(), ClientError> {
        let state = VmState::Paused;
        self.send(&Endpoint::PatchVm, &Vm { state })
    }

    pub fn resume(&self) -> Result<(), ClientError> {
        let state = VmState::Resumed;
        self.send(&Endpoint::PatchVm, &Vm { state })
    }

    pub fn vm_config(&self) -> Result<FullVmConfiguration, ClientError> {
        self.get(&Endpoint::GetVmConfig)
    }

    /// Sends a request that the caller has put into words, and returns the answer's status and body, whatever they are.
    /// What is no printable ASCII in `method` and `path` is sent as `?`.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<(u16, Vec<u8>), ClientError> {
        let answer = self.answer_to(&request_line(method, path), body)?;
        Ok((answer.status, answer.body))
    }

    fn get<T: DeserializeOwned>(&self, endpoint: &Endpoint) -> Result<T, ClientError> {
        let (request, answer) = self.exchange(endpoint, None)?;
        serde_json::from_slice(&answer.body).map_err(|error| ClientError::Answer {
            request,
            what: error.to_string(),
        })
    }

    fn send<T: Serialize>(&self, endpoint: &Endpoint, body: &T) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Answer {
            request: request_name(endpoint),
            what: error.to_string(),
        })?;
        self.exchange(endpoint, Some(&body)).map(|_| ())
    }

    /// Sends a request and reads the answer; only a success comes back as one.
    fn exchange(
        &self,
        endpoint: &Endpoint,
        body: Option<&[u8]>,
    ) -> Result<(String, Answer), ClientError> {
        let request = request_name(endpoint);
        let answer = self.answer_to(&request, body)?;
        if (200..300).contains(&answer.status) {
            return Ok((request, answer));
        }
        let fault_message = match serde_json::from_slice::<Fault>(&answer.body) {
            Ok(fault) => fault.fault_message,
            Err(_) => format!(
                "the monitor refused {request} with status {}",
                answer.status
            ),
        };
        Err(ClientError::Refused {
            request,
            status: answer.status,
            fault_message,
        })
    }

    fn answer_to(&self, request: &str, body: Option<&[u8]>) -> Result<Answer, ClientError> {
        let deadline = Instant::now() + self.timeout;
        let stream = UnixStream::connect(&self.path).map_err(|source| ClientError::Connect {
            path: self.path.clone(),
            source,
        })?;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout {
                request: request.to_owned(),
                after: self.timeout,
            },
            _ => ClientError::Io {
                request: request.to_owned(),
                source,
            },
        };
        let not_understood = |what: String| ClientError::Answer {
            request: request.to_owned(),
            what,
        };
        let head = head_of(request, body.map(<[u8]>::len));
        // The server may refuse a body before it has read all of it: what it said then is worth more than our EPIPE.
        let sent = send_all(&stream, deadline, head.as_bytes())
            .and_then(|()| send_all(&stream, deadline, body.unwrap_or_default()));
        let raw = match (read_answer(&stream, deadline), sent) {
            (Ok(raw), Ok(())) => raw,
            (Ok(raw), Err(error)) if raw.is_empty() => return Err(failed(error)),
            (Ok(raw), Err(_)) => raw,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(failed(error)),
        };
        parse(&raw).map_err(not_understood)
    }
}

fn is_not_there_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn request_name(endpoint: &Endpoint) -> String {
    let (method, path) = endpoint.request_line();
    // A drive id of the caller's goes into the path.
    request_line(method.name(), &path)
}

/// Nothing in `method` or `path` may end the line.
fn request_line(method: &str, path: &str) -> String {
    let plain = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_ascii_graphic() { c } else { '?' })
            .collect()
    };
    format!("{} {}", plain(method), plain(path))
}

fn head_of(request: &str, body: Option<usize>) -> String {
    let mut head = format!(
        "{request} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\nConnection: close\r\n"
    );
    if let Some(length) = body {
        head.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {length}\r\n"
        ));
    }
    head.push_str("\r\n");
    head
}

/// Time left until `deadline`.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left)
}

fn send_all(mut stream: &UnixStream, deadline: Instant, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until the server closes the connection, as it was asked to.
fn read_answer(mut stream: &UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(raw),
            Ok(got) => raw.extend_from_slice(buffer.get(..got).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The server closed without reading all that we sent; what came before still counts.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !raw.is_empty() => {
                return Ok(raw);
            }
            Err(error) => return Err(error),
        }
        if raw.len() > MAX_ANSWER {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the answer is longer than {MAX_ANSWER} bytes"),
            ));
        }
    }
}

fn parse(raw: &[u8]) -> Result<Answer, String> {
    if raw.is_empty() {
        return Err("the connection was closed without an answer".to_owned());
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let length = match head.parse(raw) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Err("it ends within its head".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    let status = head.code.ok_or("it has no status")?;
    let mut body = raw.get(length..).unwrap_or_default();
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("it has a transfer encoding".to_owned());
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let announced = std::str::from_utf8(header.value)
                .ok()
                .and_then(|value| value.trim().parse::<usize>().ok())
                .ok_or("its Content-Length is no number")?;
            body = body
                .get(..announced)
                .ok_or_else(|| format!("it ends after {} of {announced} bytes", body.len()))?;
        }
    }
    Ok(Answer {
        status,
        body: body.to_owned(),
    })
}
