//! Starts commands. The agent has one thread, so between fork and exec the child may do what it likes.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use fief_agent_proto::{ErrorKind, ExecRequest, RemoteError, WindowSize};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, pipe2, setsid};

use crate::account::{self, Account};

/// docker's default.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The agent's own program file, also when no other path leads to it any more.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// A started command and the agent's ends of its channels, all non-blocking.
#[derive(Debug)]
pub struct Spawned {
    /// Also its process group and session.
    pub pid: Pid,
    pub stdin: Option<File>,
    pub stdout: File,
    pub stderr: Option<File>,
}

/// Starts what `request` asks for.
///
/// # Errors
/// With the kinds of `fief_agent_proto::ErrorKind`; nothing then runs.
pub fn spawn(request: &ExecRequest, default_user: Option<&str>) -> Result<Spawned, RemoteError> {
    let plan = Plan::new(request, default_user)?;
    let ends = Ends::new(request, &plan)?;
    let (report, reporter) = pipe2(OFlag::O_CLOEXEC).map_err(io_error("cannot make a pipe"))?;
    // SAFETY: the agent has one thread, so the child's copy of the heap and of every lock is consistent.
    let forked = unsafe { fork() }.map_err(io_error("cannot start a process"))?;
    let pid = match forked {
        ForkResult::Child => {
            let Err(failure) = plan.become_it(&ends.child);
            failure.report_and_exit(reporter);
        }
        ForkResult::Parent { child } => child,
    };
    drop(reporter);
    let mut failure = Vec::new();
    // Ends when the program runs, because the other end is close-on-exec.
    let read = File::from(report).read_to_end(&mut failure);
    if read.is_err() || !failure.is_empty() {
        // It was never a command; do not let the reaper find it.
        let _ = nix::sys::wait::waitpid(pid, None);
        return Err(Failure::decode(&failure).explain(request, &plan));
    }
    Ok(Spawned {
        pid,
        stdin: ends.stdin,
        stdout: ends.stdout,
        stderr: ends.stderr,
    })
}

/// Tells a terminal its size.
///
/// # Errors
/// The kernel's.
pub fn resize(terminal: &File, size: WindowSize) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open and TIOCSWINSZ reads one winsize.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

fn io_error<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> RemoteError {
    move |error| RemoteError {
        kind: ErrorKind::Io,
        message: format!("{what}: {}", error.into()),
    }
}

fn bad_request(message: impl Into<String>) -> RemoteError {
    RemoteError {
        kind: ErrorKind::BadRequest,
        message: message.into(),
    }
}

/// Everything the child needs, made before the fork.
struct Plan {
    account: Option<Account>,
    /// Where the program may be, in order.
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    /// Whether the client named the directory; a missing home is no error.
    cwd_required: bool,
    terminal: bool,
}

impl Plan {
    fn new(request: &ExecRequest, default_user: Option<&str>) -> Result<Plan, RemoteError> {
        let root = Uid::effective().is_root();
        let default_user = if request.own { Some("0") } else { default_user };
        let wanted = request.user.as_deref().or(default_user);
        let account = match wanted {
            Some(user) => Some(account::look_up(user, Path::new("/etc"))?),
            // As root without a passwd, root still is 0.
            None if root => account::look_up("0", Path::new("/etc")).ok(),
            None => None,
        };
        let own = request.own.then_some(OWN_PROGRAM);
        let argv: Vec<&str> = own
            .into_iter()
            .chain(request.argv.iter().map(String::as_str))
            .collect();
        let program = argv.first().filter(|program| !program.is_empty());
        let program =
            program.ok_or_else(|| bad_request("the command is empty; say what to run"))?;
        let env = environment(request, account.as_ref());
        let path = env
            .iter()
            .find(|(name, _)| name == "PATH")
            .map_or(DEFAULT_PATH, |(_, path)| path);
        let candidates = if program.contains('/') {
            vec![(*program).to_owned()]
        } else {
            // An empty element means the working directory, as in a shell.
            let directory = |part: &str| if part.is_empty() { "." } else { part }.to_owned();
            path.split(':')
                .map(|part| format!("{}/{program}", directory(part)))
                .collect()
        };
        let home = account.as_ref().and_then(|account| account.home.clone());
        let text = |text: String| {
            CString::new(text).map_err(|_| bad_request("the command contains a NUL character"))
        };
        Ok(Plan {
            candidates: candidates.into_iter().map(text).collect::<Result<_, _>>()?,
            argv: argv
                .into_iter()
                .map(|word| text(word.to_owned()))
                .collect::<Result<_, _>>()?,
            env: env
                .into_iter()
                .map(|(name, value)| text(format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
            cwd: text(request.cwd.clone().or(home).unwrap_or_else(|| "/".into()))?,
            cwd_required: request.cwd.is_some(),
            terminal: request.tty.is_some(),
            // Without root nothing can be changed; the lookup served the environment.
            account: account.filter(|_| root),
        })
    }

    /// In the child: becomes the command; returns only what failed.
    fn become_it(&self, ends: &[OwnedFd; 3]) -> Result<std::convert::Infallible, Failure> {
        let failed = |step| {
            move |error: Errno| Failure {
                step,
                errno: error as i32,
            }
        };
        reset_signals();
        setsid().map_err(failed(Step::Session))?;
        // First out of the way of 0, 1 and 2, in case one of the ends has such a number.
        let high = |end: &OwnedFd| nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3));
        for (number, end) in ends.iter().enumerate() {
            let from = high(end).map_err(failed(Step::Descriptors))?;
            // SAFETY: dup2 only replaces descriptors of this process; nothing owns 0, 1 or 2 here.
            Errno::result(unsafe { libc::dup2(from, number as RawFd) })
                .map_err(failed(Step::Descriptors))?;
        }
        if self.terminal {
            // SAFETY: TIOCSCTTY takes an integer; descriptor 0 is the terminal.
            Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })
                .map_err(failed(Step::Terminal))?;
        }
        // All of the agent's descriptors are close-on-exec; this covers inherited ones.
        // SAFETY: close_range with CLOEXEC closes nothing before exec.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        if let Some(account) = &self.account {
            let groups: Vec<Gid> = account
                .groups
                .iter()
                .map(|gid| Gid::from_raw(*gid))
                .collect();
            nix::unistd::setgroups(&groups).map_err(failed(Step::User))?;
            nix::unistd::setgid(Gid::from_raw(account.gid)).map_err(failed(Step::User))?;
            nix::unistd::setuid(Uid::from_raw(account.uid)).map_err(failed(Step::User))?;
        }
        match nix::unistd::chdir(self.cwd.as_c_str()) {
            Err(error) if self.cwd_required => return Err(failed(Step::Directory)(error)),
            Err(_) => nix::unistd::chdir("/").map_err(failed(Step::Directory))?,
            Ok(()) => {}
        }
        // As execvp: a program that is there but not executable wins over one that is not there.
        let mut result = Errno::ENOENT;
        for candidate in &self.candidates {
            match nix::unistd::execve(candidate, &self.argv, &self.env) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(error @ Errno::EACCES) => result = error,
                Err(error) => return Err(failed(Step::Program)(error)),
                Ok(never) => match never {},
            }
        }
        Err(failed(Step::Program)(result))
    }
}

/// The command's environment: defaults, then what the request adds.
fn environment(request: &ExecRequest, account: Option<&Account>) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => value.clone_into(known),
        None => env.push((name.to_owned(), value.to_owned())),
    };
    set("PATH", DEFAULT_PATH);
    set(
        "HOME",
        account
            .and_then(|account| account.home.as_deref())
            .unwrap_or("/"),
    );
    if let Some(name) = account.and_then(|account| account.name.as_deref()) {
        set("USER", name);
        set("LOGNAME", name);
    }
    set(
        "SHELL",
        account
            .and_then(|account| account.shell.as_deref())
            .unwrap_or("/bin/sh"),
    );
    if request.tty.is_some() {
        set("TERM", "xterm");
    }
    for (name, value) in &request.env {
        set(name, value);
    }
    env
}

/// Both sides' ends of the channels.
struct Ends {
    child: [OwnedFd; 3],
    stdin: Option<File>,
    stdout: File,
    stderr: Option<File>,
}

impl Ends {
    fn new(request: &ExecRequest, plan: &Plan) -> Result<Ends, RemoteError> {
        match request.tty {
            Some(size) => {
                Ends::terminal(request, size, plan).map_err(io_error("cannot make a terminal"))
            }
            None => Ends::pipes(request).map_err(io_error("cannot make pipes")),
        }
    }

    fn pipes(request: &ExecRequest) -> io::Result<Ends> {
        let (child_in, stdin) = if request.stdin {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            (read, Some(non_blocking(write)?))
        } else {
            (OwnedFd::from(File::open("/dev/null")?), None)
        };
        let (stdout, child_out) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, child_err) = pipe2(OFlag::O_CLOEXEC)?;
        let child = [child_in, child_out, child_err];
        Ok(Ends {
            child,
            stdin,
            stdout: non_blocking(stdout)?,
            stderr: Some(non_blocking(stderr)?),
        })
    }

    fn terminal(request: &ExecRequest, size: WindowSize, plan: &Plan) -> io::Result<Ends> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = nix::fcntl::open("/dev/ptmx", flags, nix::sys::stat::Mode::empty())?;
        let unlock: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads one int.
        Errno::result(unsafe {
            libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock)
        })?;
        // The peer by descriptor, not by path: what is mounted at /dev/pts does not matter.
        // SAFETY: TIOCGPTPEER takes open flags and returns a new descriptor, owned by nobody else.
        let slave = unsafe {
            let fd = Errno::result(libc::ioctl(
                master.as_raw_fd(),
                libc::TIOCGPTPEER,
                flags.bits(),
            ))?;
            OwnedFd::from_raw_fd(fd)
        };
        if let Some(account) = &plan.account {
            nix::unistd::fchown(slave.as_fd(), Some(Uid::from_raw(account.uid)), None)?;
        }
        let stdout = non_blocking(master)?;
        resize(&stdout, size)?;
        let stdin = if request.stdin {
            Some(stdout.try_clone()?)
        } else {
            None
        };
        Ok(Ends {
            child: [slave.try_clone()?, slave.try_clone()?, slave],
            stdin,
            stdout,
            stderr: None,
        })
    }
}

fn non_blocking(fd: OwnedFd) -> io::Result<File> {
    let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(
        &fd,
        nix::fcntl::FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK),
    )?;
    Ok(File::from(fd))
}

/// Signal dispositions and the mask as a fresh program expects them; the agent blocks and ignores some.
pub fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: setting the default disposition; numbers that have none are refused, which is fine.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Session = 1,
    Descriptors,
    Terminal,
    User,
    Directory,
    Program,
}

struct Failure {
    step: Step,
    errno: i32,
}

impl Failure {
    /// In the child.
    fn report_and_exit(self, reporter: OwnedFd) -> ! {
        let mut bytes = vec![self.step as u8];
        bytes.extend(self.errno.to_le_bytes());
        // Five bytes fit into any pipe; if the agent is gone nobody asks.
        let _ = nix::unistd::write(&reporter, &bytes);
        // SAFETY: _exit leaves without running the agent's own exit handlers, which is what a forked child must do.
        unsafe { libc::_exit(127) }
    }

    fn decode(bytes: &[u8]) -> Failure {
        let steps = [
            Step::Session,
            Step::Descriptors,
            Step::Terminal,
            Step::User,
            Step::Directory,
            Step::Program,
        ];
        let step = bytes
            .first()
            .and_then(|byte| steps.into_iter().find(|step| *step as u8 == *byte));
        let errno = bytes
            .get(1..5)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, i32::from_le_bytes);
        Failure {
            step: step.unwrap_or(Step::Session),
            errno,
        }
    }

    fn explain(&self, request: &ExecRequest, plan: &Plan) -> RemoteError {
        let program = request.argv.first().map_or("", String::as_str);
        let why = Errno::from_raw(self.errno).desc();
        let (kind, message) = match (self.step, Errno::from_raw(self.errno)) {
            (Step::Program, Errno::ENOENT | Errno::ENOTDIR) if program.contains('/') => (
                ErrorKind::CommandNotFound,
                format!("cannot run {program}: {why}"),
            ),
            (Step::Program, Errno::ENOENT | Errno::ENOTDIR) => (
                ErrorKind::CommandNotFound,
                format!("cannot run {program}: no such program in the tenant's PATH"),
            ),
            (Step::Program, _) => (
                ErrorKind::NotExecutable,
                format!("cannot run {program}: {why}"),
            ),
            (Step::Directory, _) => {
                let cwd = plan.cwd.to_string_lossy();
                (
                    ErrorKind::NotFound,
                    format!("cannot run {program} in {cwd}: {why}"),
                )
            }
            (Step::User, _) => (ErrorKind::Io, format!("cannot become the user: {why}")),
            (step, _) => (
                ErrorKind::Io,
                format!("cannot start {program} ({step:?}): {why}"),
            ),
        };
        RemoteError { kind, message }
    }
}
