//! The machine that is measured on, and fief on it.

use std::ffi::OsStr;
use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::error::{Error, Result, failed};
use crate::report::Environment;
use crate::runner::Order;

/// The `fief` beside this program, or that of FIEF.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let given = std::env::var_os("FIEF").map(PathBuf::from);
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("fief"));
        given.or_else(beside).unwrap_or_else(|| "fief".into())
    })
}

/// A command line of fief.
pub fn fief<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program());
    command.args(words);
    command
}

/// Runs a command to its end: what it printed.
///
/// # Errors
/// It cannot be started, or ends with another code than 0; with its last words.
pub fn said(command: &mut Command) -> Result<String> {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    let line = words.join(" ");
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(failed(format!("run {line}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Command {
        command: line,
        how: format!("failed ({})", output.status),
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A command that has begun, and is ended when this goes.
#[derive(Debug)]
pub struct Begun(Child);

impl Deref for Begun {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Begun {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Begins a command whose output can be read.
///
/// # Errors
/// It cannot be started.
pub fn begin(command: &mut Command) -> Result<Begun> {
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let child = command.stdout(Stdio::piped()).spawn();
    child.map(Begun).map_err(failed("begin a command"))
}

/// Has `handler` called when somebody asks this process to end: by Ctrl-C, by kill(1), or by the end of the terminal.
///
/// # Safety
/// It does nothing but what is async-signal-safe (signal-safety(7)).
///
/// # Errors
/// The kernel refuses.
pub unsafe fn on_request_to_end(handler: extern "C" fn(i32)) -> Result<()> {
    let handler = SigHandler::Handler(handler);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the caller's promise.
        let set = unsafe { sigaction(signal, &action) };
        set.map_err(|errno| failed("handle signals")(errno.into()))?;
    }
    Ok(())
}

/// What a report tells about where it was made.
pub fn environment(order: &Order) -> Environment {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let value = text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        });
        value.unwrap_or_else(|| "unknown".to_owned())
    };
    let first = |command: &mut Command| {
        let text = said(command).unwrap_or_default();
        text.lines().next().unwrap_or("unknown").to_owned()
    };
    let runtime = order.runtime.as_deref().unwrap_or("crun");
    Environment {
        clock: order.clock,
        host: order.host.clone(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        processor: field(&read("/proc/cpuinfo"), "model name"),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
        memory: field(&read("/proc/meminfo"), "MemTotal"),
        kvm: kvm(),
        fief: first(&mut fief(["version"])),
        runtime: first(Command::new(runtime).arg("--version")),
        image: order.image.clone(),
        guest_kernel: order.kernel.clone(),
        peers: order
            .peers
            .iter()
            .map(|peer| {
                // A program that is no monitor may do anything.
                let mut version = Command::new("timeout");
                version.arg("10").arg(&peer.program).arg("--version");
                (peer.name.clone(), first(&mut version))
            })
            .collect(),
        tenant: format!("1 processor, {} of memory, a disk of 2G", order.memory),
    }
}

/// Which KVM there is, and whether it has nested paging.
fn kvm() -> String {
    for (module, flag) in [("kvm_intel", "ept"), ("kvm_amd", "npt")] {
        let parameter = format!("/sys/module/{module}/parameters/{flag}");
        if let Ok(value) = fs::read_to_string(parameter) {
            let on = matches!(value.trim(), "Y" | "1");
            let paging = if on { "nested paging" } else { "shadow paging" };
            return format!("{module}, {paging}");
        }
    }
    if Path::new("/dev/kvm").exists() {
        "of another kind".to_owned()
    } else {
        "none".to_owned()
    }
}
