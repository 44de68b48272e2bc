//! The way to a tenant's agent.

use std::time::{Duration, Instant};

use fief_agent_proto::{AGENT_PORT, Connection, Error, Result, connect_unix, connect_vsock_unix};

use crate::backend::{AGENT_SOCKET, VSOCK_SOCKET, socket, through};
use crate::process::Process;
use crate::store::Tenant;

/// How long a tenant may take to boot until its agent answers. A second or less on real KVM; on a busy emulated host
/// with a full Debian kernel, a minute.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(240);
/// One attempt: short, so that the end of a tenant is noticed, growing, so that a slow one is not asked in vain.
const FIRST_ATTEMPT: Duration = Duration::from_millis(250);
const LONGEST_ATTEMPT: Duration = Duration::from_secs(4);

/// Connects to the agent of a running tenant, waiting while it boots, as long as `lives` says that there is a point.
///
/// # Errors
/// The tenant ended, or did not answer in time, or could not set up its root.
pub fn connect(tenant: &Tenant, lives: &dyn Fn() -> bool) -> Result<Connection> {
    patiently(
        |until| try_connect(tenant, until),
        || !lives() || is_gone(tenant),
    )
}

/// Calls `attempt`, which is to be done by the time that it is given, until an agent has answered or `is_over` says that none
/// will; at most for [`BOOT_PATIENCE`].
///
/// # Errors
/// It is over, nobody answered in time, or the agent says that it could not set up its root.
pub fn patiently(
    mut attempt: impl FnMut(Instant) -> Result<Connection>,
    mut is_over: impl FnMut() -> bool,
) -> Result<Connection> {
    let deadline = Instant::now() + BOOT_PATIENCE;
    let mut patience = FIRST_ATTEMPT;
    loop {
        let error = match attempt(deadline.min(Instant::now() + patience)) {
            Err(error @ (Error::Deadline(_) | Error::Lost(_) | Error::Io { .. })) => error,
            other => return other,
        };
        if is_over() {
            return Err(Error::Lost("the tenant ended".to_owned()));
        }
        if Instant::now() >= deadline {
            return Err(error);
        }
        patience = (patience * 2).min(LONGEST_ATTEMPT);
    }
}

/// Whether nobody runs the tenant any more. A shim that was killed leaves its state behind.
fn is_gone(tenant: &Tenant) -> bool {
    match tenant.state() {
        Ok(Some(state)) => !Process::lives(state.shim_pid),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// One attempt.
///
/// # Errors
/// It did not answer by `deadline`.
pub fn try_connect(tenant: &Tenant, deadline: Instant) -> Result<Connection> {
    let gone = |error: std::io::Error| Error::Lost(error.to_string());
    let (directory, path) = socket(tenant, AGENT_SOCKET).map_err(gone)?;
    let stream = if path.exists() {
        connect_unix(&path, deadline)?
    } else {
        connect_vsock_unix(&through(&directory, VSOCK_SOCKET), AGENT_PORT, deadline)?
    };
    Connection::open(stream, deadline)
}
