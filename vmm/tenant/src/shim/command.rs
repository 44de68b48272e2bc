//! The command of a tenant that runs detached: nobody else is there to run it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use fief_agent_proto::{Connection, ExecRequest, Shutdown, ShutdownAction, Terminals, pump};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::agent;
use crate::failure::chain;
use crate::store::Tenant;

/// A command in the tenant, on a thread of its own.
pub struct Running {
    output: OwnedFd,
    thread: JoinHandle<()>,
    code: Arc<OnceLock<i32>>,
}

/// Runs `request` as soon as the agent answers; then shuts the tenant down.
///
/// # Errors
/// No pipe or thread is to be had.
pub fn run(tenant: &Tenant, request: &ExecRequest) -> io::Result<Running> {
    let (output, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let code = Arc::new(OnceLock::new());
    let (tenant, request, result) = (tenant.clone(), request.clone(), Arc::clone(&code));
    let thread = std::thread::Builder::new()
        .name("command".to_owned())
        .spawn(move || {
            let ended = attend(&tenant, &request, into.as_fd());
            let _ = result.set(ended.unwrap_or_else(|error| {
                // Into the log, where the command's output would be.
                let _ = writeln!(File::from(into), "fief: {}", chain(&error));
                error.shell_code()
            }));
        })?;
    Ok(Running {
        output,
        thread,
        code,
    })
}

fn attend(
    tenant: &Tenant,
    request: &ExecRequest,
    into: BorrowedFd<'_>,
) -> Result<i32, fief_agent_proto::Error> {
    let connection: Connection = agent::connect(tenant, &|| true)?;
    let ended = connection.exec(request).and_then(|process| {
        pump(
            process,
            Terminals {
                stdin: None,
                stdout: into,
                stderr: into,
            },
        )
    });
    // Whatever became of the command: without it the tenant has nothing to do.
    let _ = connection.shutdown(Shutdown {
        action: ShutdownAction::Poweroff,
        force: false,
    });
    Ok(ended?.shell_code())
}

impl Running {
    /// What it prints, to be read without waiting; ends when the command has ended.
    pub fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    /// Waits for the thread; the command's exit code, if it came that far. Only once the tenant has ended: a connection
    /// to it then breaks.
    pub fn join(self) -> Option<i32> {
        // Nobody reads any more: a writer must not wait for that.
        drop(self.output);
        let _ = self.thread.join();
        self.code.get().copied()
    }
}
