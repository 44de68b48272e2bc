//! sshd, for tenants that somebody was given a key to. The host keys are the tenant's own, made when they are first needed.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use fief_agent_proto::InitMode;
use nix::unistd::{ForkResult, Pid, execve, fork, setsid};

use crate::log;
use crate::spawn::{DEFAULT_PATH, reset_signals};

const SSHD: &CStr = c"/usr/sbin/sshd";
const KEYS: &str = "/etc/ssh";
/// Made in no time, and every client of the last ten years knows one of them. RSA would take seconds.
const KINDS: [&str; 2] = ["ed25519", "ecdsa"];
/// Where sshd wants to be when it has given up its rights (Debian); systemd's unit makes it.
const PRIVSEP: &str = "/run/sshd";
/// Where systemd's units are, and what sshd's is called (Debian's name, others').
const UNIT_DIRECTORIES: [&str; 3] = [
    "/etc/systemd/system",
    "/lib/systemd/system",
    "/usr/lib/systemd/system",
];
const UNITS: [&str; 2] = ["ssh.service", "sshd.service"];

/// Where systemd takes orders, once it does.
const SYSTEMD: &str = "/run/systemd/private";

/// The process that becomes sshd, or has the image's init start it.
#[derive(Debug, Default)]
pub struct Sshd(Option<Pid>);

impl Sshd {
    /// Starts it, unless it runs already or the image has none. Returns at once.
    pub fn ensure(&mut self, init: InitMode) {
        if self.0.is_some() || !is_installed(Path::new("/")) || init == InitMode::Program {
            return;
        }
        // SAFETY: the agent has one thread, so the child's copy of the heap and of every lock is consistent.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                reset_signals();
                let _ = setsid();
                log::error(format!("sshd does not run: {}", become_it(init)));
                // SAFETY: a forked child leaves without its parent's exit handlers.
                unsafe { libc::_exit(1) }
            }
            Ok(ForkResult::Parent { child }) => self.0 = Some(child),
            Err(error) => log::error(format!("sshd does not run: {error}")),
        }
    }

    /// A process was reaped. Without sshd the tenant goes on; the next request starts another.
    pub fn exited(&mut self, pid: Pid) {
        if self.0 == Some(pid) {
            self.0 = None;
        }
    }
}

/// Whether there is one below `root`.
pub fn is_installed(root: &Path) -> bool {
    root.join("usr/sbin/sshd")
        .metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// In the child; returns only what failed.
fn become_it(init: InitMode) -> String {
    for kind in KINDS {
        if let Err(error) = make_key(kind) {
            return format!("cannot make its {kind} key: {error}");
        }
    }
    if init == InitMode::Image {
        return start_unit();
    }
    let mut builder = fs::DirBuilder::new();
    let _ = builder.mode(0o755).create(PRIVSEP);
    // In the foreground, so that its end is seen; its messages go to the console, because nobody else takes them.
    let error = run(SSHD, &[SSHD, c"-D", c"-e"]);
    format!("cannot run it: {error}")
}

/// The image's init starts it at later boots by itself, as its host keys are there then.
fn start_unit() -> String {
    let is_there = |unit: &&&str| {
        UNIT_DIRECTORIES
            .iter()
            .any(|directory| Path::new(directory).join(unit).exists())
    };
    let Some(unit) = UNITS.iter().find(is_there) else {
        return "the image's init is to start it, and has no unit for it that fief knows"
            .to_owned();
    };
    if !Path::new(SYSTEMD).exists() {
        // It has not come that far: when it does, it starts the unit by itself, whose keys are there now.
        // SAFETY: a forked child leaves without its parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    let unit = CString::new(*unit).unwrap_or_default();
    let systemctl = c"/usr/bin/systemctl";
    let error = run(systemctl, &[systemctl, c"--no-block", c"start", &unit]);
    format!("cannot run systemctl: {error}")
}

fn run(program: &CStr, words: &[&CStr]) -> nix::errno::Errno {
    if let Ok(null) = fs::File::open("/dev/null") {
        // SAFETY: only replaces standard input, which nothing in this process owns.
        unsafe { libc::dup2(null.as_raw_fd(), 0) };
    }
    // SAFETY: with CLOEXEC nothing is closed before the program starts; sessions are none of its affair.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as _) };
    let path = CString::new(format!("PATH={DEFAULT_PATH}")).unwrap_or_default();
    let Err(error) = execve(program, words, &[path.as_c_str()]);
    error
}

/// Makes a host key that is missing; it is there whole or not at all.
fn make_key(kind: &str) -> io::Result<()> {
    let path = format!("{KEYS}/ssh_host_{kind}_key");
    if fs::metadata(&path).is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    let unfinished = format!("{KEYS}/.fief_{kind}_key");
    let _ = fs::remove_file(&unfinished);
    // The reaper is another process: this one waits for its own child.
    let status = Command::new("/usr/bin/ssh-keygen")
        .args(["-q", "-t", kind, "-N", "", "-C", "", "-f", &unfinished])
        .stdin(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("ssh-keygen ended with {status}")));
    }
    fs::rename(format!("{unfinished}.pub"), format!("{path}.pub"))?;
    fs::rename(&unfinished, &path)
}
