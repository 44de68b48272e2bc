//! What the host gives a tenant: names in `/etc/hosts`, an account with keys, sshd.
//!
//! The files are written by a child, so a file system that hangs (a user's own FUSE mount, say) keeps nobody waiting. In
//! `/etc` the child is root, and only root can have prepared anything there. In a home it is that home's user: whatever
//! its owner planted there, the child can do nothing that this user could not do.

mod accounts;
mod block;
mod files;
mod sshd;

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fief_agent_proto::{ErrorKind, ExitStatus, Frame, Kind, Login, Provide, RemoteError};
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, pipe2};

use crate::account::Account;
use crate::log;
use crate::spawn::reset_signals;
use files::Failure;
pub use sshd::Sshd;

/// Longest that the files may take, in seconds; the kernel then ends the child.
const PATIENCE: libc::c_uint = 30;
/// Longest explanation that is passed on; shorter than any pipe.
const EXPLANATION: usize = 1024;

/// A request whose files are being written.
#[derive(Debug)]
pub struct Providing {
    pid: Pid,
    /// What the child has to say of a failure.
    report: File,
    exit: Option<ExitStatus>,
    /// There are keys, and nothing to log in to.
    lacks_sshd: bool,
}

impl Providing {
    /// Starts to write what `request` asks for below `root`.
    ///
    /// # Errors
    /// The request is out of bounds, or there can be no child.
    pub fn begin(request: &Provide, root: &Path) -> Result<Providing, RemoteError> {
        request.check().map_err(|error| RemoteError {
            kind: ErrorKind::BadRequest,
            message: error.to_string(),
        })?;
        let failed = |error: nix::errno::Errno| RemoteError {
            kind: ErrorKind::Io,
            message: format!("cannot start to write the tenant's files: {error}"),
        };
        let (report, reporter) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(failed)?;
        // SAFETY: the agent has one thread, so the child's copy of the heap and of every lock is consistent.
        match unsafe { fork() }.map_err(failed)? {
            ForkResult::Child => in_child(request, root, reporter),
            ForkResult::Parent { child } => Ok(Providing {
                pid: child,
                report: File::from(report),
                exit: None,
                lacks_sshd: gives_keys(request) && !sshd::is_installed(root),
            }),
        }
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// It was reaped.
    pub fn exited(&mut self, status: ExitStatus) {
        self.exit = Some(status);
    }

    /// The answer, once the child has ended.
    pub fn last_frame(&mut self, id: u32) -> Option<Frame> {
        let status = self.exit?;
        let mut text = Vec::new();
        let _ = self.report.read_to_end(&mut text);
        let message = match status {
            ExitStatus::Code(0) if !self.lacks_sshd => return Some(Frame::empty(id, Kind::Done)),
            ExitStatus::Code(0) => {
                "the account is there, but no sshd; install one in the tenant (openssh-server), then start it again"
                    .to_owned()
            }
            ExitStatus::Signal(libc::SIGALRM) => format!(
                "the tenant's files did not take what the host gives it for {PATIENCE} s; does a file system hang?"
            ),
            _ => String::from_utf8_lossy(&text).into_owned(),
        };
        // Whoever asked may have been nobody who reads it.
        log::error(format!("what the host gives is not all there: {message}"));
        let error = RemoteError {
            kind: ErrorKind::Io,
            message,
        };
        Frame::json(id, Kind::Error, &error)
    }
}

/// Whether somebody is to log in.
pub fn gives_keys(request: &Provide) -> bool {
    request
        .login
        .as_ref()
        .is_some_and(|login| !login.keys.is_empty())
}

fn in_child(request: &Provide, root: &Path, reporter: OwnedFd) -> ! {
    reset_signals();
    // SAFETY: plain system calls. The reporter stays: it is moved out of what is closed. Nothing else that the agent has
    // open is this child's affair, and it is about to become somebody else.
    unsafe {
        libc::alarm(PATIENCE);
        libc::dup2(reporter.as_raw_fd(), 3);
        libc::close_range(4, libc::c_uint::MAX, 0);
    }
    std::mem::forget(reporter);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let code = match write(request, root) {
        Ok(()) => 0,
        Err(failure) => {
            let text = failure.to_string();
            let text = text.as_bytes();
            // SAFETY: descriptor 3 is the pipe, and the bytes live until the call returns.
            unsafe { libc::write(3, text.as_ptr().cast(), text.len().min(EXPLANATION)) };
            1
        }
    };
    // SAFETY: a forked child leaves without its parent's exit handlers.
    unsafe { libc::_exit(code) }
}

/// Takes away the names of an earlier run: whether the host still gives them, it says in its next request, if there is one.
pub fn forget_names() {
    // A file that cannot be changed has no names of the host's in it.
    let _ = write_names(&[], Path::new("/"));
}

/// Writes everything. Ends as the login's user, if there is one.
fn write(request: &Provide, root: &Path) -> Result<(), Failure> {
    // Two requests at once would be in each other's way. Held to the end.
    let _lock = files::lock(&root.join("etc"))?;
    let names: Vec<String> = request
        .names
        .iter()
        .map(|(address, name)| format!("{address}\t{name}"))
        .collect();
    write_names(&names, root)?;
    let Some(login) = &request.login else {
        return Ok(());
    };
    let account = accounts::ensure(&login.name, root)?;
    if account.uid != 0 {
        allow_sudo(&login.name, root)?;
    }
    write_keys(login, &account, root)
}

fn write_names(names: &[String], root: &Path) -> Result<(), Failure> {
    let hosts = root.join("etc/hosts");
    files::update(&hosts, 0o644, |text| block::replace(text, names))
}

/// Becoming root needs no password: there is none. Without a sudo the file waits for one.
fn allow_sudo(name: &str, root: &Path) -> Result<(), Failure> {
    let directory = root.join("etc/sudoers.d");
    match fs::create_dir(&directory) {
        Ok(()) => fs::set_permissions(&directory, Permissions::from_mode(0o750)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(Failure::at(&directory))?;
    files::update(&directory.join("fief"), 0o440, |_| {
        format!("# Made by fief at every start.\n{name} ALL=(ALL:ALL) NOPASSWD: ALL\n")
    })
}

/// As the user, from here on.
fn write_keys(login: &Login, account: &Account, root: &Path) -> Result<(), Failure> {
    let home = account.home.as_deref().unwrap_or_default();
    let home = root.join(home.trim_start_matches('/'));
    if Uid::effective().is_root() {
        let groups: Vec<Gid> = account.groups.iter().copied().map(Gid::from_raw).collect();
        nix::unistd::setgroups(&groups)
            .and_then(|()| nix::unistd::setgid(Gid::from_raw(account.gid)))
            .and_then(|()| nix::unistd::setuid(Uid::from_raw(account.uid)))
            .map_err(|error| Failure::at(&home)(error.into()))?;
    }
    let directory = home.join(".ssh");
    match fs::create_dir(&directory) {
        Ok(()) => fs::set_permissions(&directory, Permissions::from_mode(0o700)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(Failure::at(&directory))?;
    files::update(&directory.join("authorized_keys"), 0o600, |text| {
        block::replace(text, &login.keys)
    })
}
