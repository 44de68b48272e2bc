//! The starting side: a `fief` that makes a shim and hears how it went.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::WORD;
use super::channel::{Channel, Order, Report, Request};
use crate::store::{Exit, Held, Locked, Tenant};

/// Why a tenant could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot start a shim: {0}")]
    Shim(#[from] io::Error),
    /// The shim's own words.
    #[error("{0}")]
    Failed(String),
    #[error(
        "the shim ended without a word; `fief logs` and monitor.log in the tenant's directory may tell why"
    )]
    Silent,
}

/// A tenant that lives no longer than this.
#[derive(Debug)]
pub struct Attached {
    channel: Channel,
    unlimited: Vec<String>,
}

impl Attached {
    /// Limits of the spec that this machine cannot enforce, one clause each.
    pub fn unlimited(&self) -> &[String] {
        &self.unlimited
    }

    /// Ends the tenant now, without asking it.
    pub fn kill(&self) {
        // A shim that is gone has ended it.
        let _ = self.channel.send(&Request::Kill);
    }

    /// A second handle on the socket: readable when the tenant has ended.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn watch(&self) -> io::Result<UnixStream> {
        self.channel.stream().try_clone()
    }

    /// Waits until the tenant has ended and everything is cleaned up. None if its shim was killed.
    pub fn wait(mut self) -> Option<Exit> {
        let mut exit = None;
        while let Ok(Some(report)) = self.channel.receive() {
            if let Report::Ended(ended) = report {
                exit = Some(ended);
            }
        }
        exit
    }
}

/// Starts the shim of a locked tenant, from the binary `fief`; returns when its machine runs. The shim then has the lock.
///
/// On failure the lock is back, for the caller to clean up.
///
/// # Errors
/// See [`StartError`].
pub fn start(
    fief: &Path,
    locked: Locked,
    order: &Order,
) -> Result<(Tenant, Attached), (Locked, StartError)> {
    let ours = match spawn(fief, &locked) {
        Ok(ours) => ours,
        Err(error) => return Err((locked, error.into())),
    };
    let (channel, guard) = ours;
    // From here on our copy of the lock must not be freed: the shim has it.
    let tenant = locked.let_go();
    let mut channel = Channel::new(channel);
    let report = channel
        .send(order)
        .and_then(|()| channel.receive::<Report>());
    let error = match report {
        Ok(Some(Report::Running { unlimited })) => {
            return Ok((tenant, Attached { channel, unlimited }));
        }
        Ok(Some(Report::Failed(why))) => StartError::Failed(why),
        Ok(_) => StartError::Silent,
        Err(error) => StartError::Shim(error),
    };
    // It closes its end when it is done.
    while matches!(channel.receive::<Report>(), Ok(Some(_))) {}
    Err((Locked::adopt(tenant, Held::adopt(guard)), error))
}

fn spawn(fief: &Path, locked: &Locked) -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    let guard = locked.share_lock()?;
    let mut shim = Command::new(fief);
    shim.arg0("fief").arg(WORD).arg(locked.tenant.name.as_str());
    shim.stdin(Stdio::from(locked.share_lock()?))
        .stdout(Stdio::from(OwnedFd::from(theirs)));
    // It leaves this session at once, and outlives this process if the tenant does. One that cannot even do that says nothing.
    drop(shim.spawn()?);
    Ok((ours, guard))
}
