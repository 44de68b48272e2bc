//! Other processes, without mistaking one for another: a process id may have been given to a new process, a pidfd is
//! always the same one.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{self, Command, ExitStatus};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{PidfdFlags, Signal, WaitOptions, pidfd_open, waitpid};

use crate::store::Pid;

/// A process that was alive when this was made.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process with this id, if there is one now.
    pub fn open(pid: i32) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(pid)?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(Self)
    }

    /// Whether a process with this id lives: one that has ended, and that its parent has not taken notice of yet, does not.
    pub fn lives(pid: i32) -> bool {
        Self::open(pid).is_some_and(|process| !process.wait(Duration::ZERO))
    }

    /// The process that is meant, not a later one with its number.
    pub fn open_exactly(pid: Pid) -> Option<Self> {
        let process = Self::open(pid.pid)?;
        // Looked at after it was opened: if the start is right now, the descriptor is of the right one.
        (start_ticks(pid.pid) == Some(pid.start_ticks)).then_some(process)
    }

    /// Sends a signal; a process that has ended needs none.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.signal_number(signal.as_raw())
    }

    /// Sends a signal by its number, also one of those that are the programs' own (signal(7), "Real-time signals"); a process
    /// that has ended needs none.
    ///
    /// # Errors
    /// It belongs to somebody else.
    pub fn signal_number(&self, number: i32) -> io::Result<()> {
        // SAFETY: takes a descriptor that is open, numbers, and a null pointer, which stands for what kill(2) says.
        let sent = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                number,
                std::ptr::null::<nix::libc::siginfo_t>(),
                0,
            )
        };
        match nix::errno::Errno::result(sent) {
            Err(error) if error != nix::errno::Errno::ESRCH => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Waits until it has ended, at most `patience`. True if it has.
    pub fn wait(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut fds, timeout), Ok(1..))
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A child of this process, whether this process made it or it became its child because its own parent ended.
#[derive(Debug)]
pub struct Child {
    pid: rustix::process::Pid,
    process: Process,
    status: Option<ExitStatus>,
}

impl Child {
    /// The child with this id, which nobody has waited for.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let none = || io::Error::from(io::ErrorKind::NotFound);
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).ok_or_else(none)?;
        Ok(Self {
            pid,
            process: Process::open(pid.as_raw_nonzero().get()).ok_or_else(none)?,
            status: None,
        })
    }

    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Readable when it has ended.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it at once. It may have ended by itself.
    ///
    /// # Errors
    /// No permission.
    pub fn kill(&self) -> io::Result<()> {
        self.process.signal(Signal::KILL)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Somebody else has waited for it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.wait_with(WaitOptions::NOHANG)
    }

    /// Waits for its end; how it ended.
    ///
    /// # Errors
    /// Somebody else has waited for it.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            match self.wait_with(WaitOptions::empty()) {
                Ok(Some(status)) => return Ok(status),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }

    fn wait_with(&mut self, options: WaitOptions) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let ended = waitpid(Some(self.pid), options)?;
            self.status = ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(self.status)
    }
}

/// How a command came to an end.
#[derive(Debug)]
pub enum Finished {
    With(ExitStatus),
    /// It was killed, as it took longer than it may.
    TooLate,
    /// It was killed, as nobody wants its result any more.
    GivenUp,
}

/// Runs a command to its end, for at most `patience`, and until `give_up` is readable.
///
/// # Errors
/// It cannot be started, or not be waited for; it has ended all the same.
pub fn finish(
    command: &mut Command,
    patience: Duration,
    give_up: Option<BorrowedFd<'_>>,
) -> io::Result<Finished> {
    let deadline = Instant::now() + patience;
    let mut made = command.spawn()?;
    let finished = wait_for(&mut made, deadline, give_up);
    if !matches!(finished, Ok(Finished::With(_))) {
        // Also where it cannot be waited for.
        made.kill()?;
        made.wait()?;
    }
    finished
}

/// Waits for a child, which is killed by the caller if it has not ended.
fn wait_for(
    made: &mut process::Child,
    deadline: Instant,
    give_up: Option<BorrowedFd<'_>>,
) -> io::Result<Finished> {
    let process = Process::open(made.id().cast_signed());
    let gone = || io::Error::other("no descriptor for a process is to be had");
    let process = process.ok_or_else(gone)?;
    loop {
        let mut fds = vec![PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        fds.extend(give_up.map(|give_up| PollFd::new(give_up, PollFlags::POLLIN)));
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(
            &mut fds,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let happened = |fd: &PollFd| fd.any().unwrap_or(true);
        if happened(&fds[0]) {
            return Ok(Finished::With(made.wait()?));
        }
        return Ok(if fds.get(1).is_some_and(happened) {
            Finished::GivenUp
        } else {
            Finished::TooLate
        });
    }
}

/// Held by who waits for a child that it has made, on any thread but the one that calls [`reap_adopted`].
static OWN_CHILD: RwLock<()> = RwLock::new(());

/// To be held by a thread beside the main one from before it makes a child until it has waited for it.
pub fn own_child() -> RwLockReadGuard<'static, ()> {
    OWN_CHILD.read().unwrap_or_else(PoisonError::into_inner)
}

/// Takes notice of children that have ended and that nobody waits for, as they became this process's by the end of their own
/// parents. While another thread waits for a child of its own, of none: a later call does.
pub fn reap_adopted() {
    if let Ok(_nobody_waits) = OWN_CHILD.try_write() {
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
    }
}

/// Does `work` on a thread of its own: whatever namespace that changes to, this one stays.
///
/// # Errors
/// No thread is to be had.
pub fn elsewhere<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, work)?;
        let done = thread.join();
        Ok(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Capabilities by their bits (Linux, include/uapi/linux/capability.h).
pub const NET_ADMIN: u32 = 12;
pub const SYS_ADMIN: u32 = 21;
pub const SYS_RESOURCE: u32 = 24;

/// Whether this process has a capability (capabilities(7)).
pub fn has_capability(bit: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    capabilities.is_some_and(|set| set & (1 << bit) != 0)
}

/// Describes a process of ours so that it can be found again.
pub fn identify(pid: u32) -> Option<Pid> {
    let pid = i32::try_from(pid).ok()?;
    Some(Pid {
        pid,
        start_ticks: start_ticks(pid)?,
    })
}

fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold spaces and parentheses; it ends at the last ')'.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// A child that nobody else waits for, and what holds it up.
    fn child(script: &str) -> (Child, Option<std::process::ChildStdin>) {
        #[expect(clippy::zombie_processes, reason = "the test waits by its id")]
        let mut made = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        (Child::of(made.id()).unwrap(), made.stdin.take())
    }

    #[test]
    fn a_child_is_waited_for_once_and_its_end_told_as_often_as_asked() {
        let (mut one, input) = child("read line; exit 7");
        assert_eq!(one.try_wait().unwrap(), None);
        drop(input);
        assert!(one.process().wait(Duration::from_secs(60)));
        assert_eq!(one.wait().unwrap().code(), Some(7));
        assert_eq!(one.try_wait().unwrap().unwrap().code(), Some(7));
        one.kill().unwrap();
        let (mut two, _input) = child("read line");
        two.kill().unwrap();
        assert_eq!(two.wait().unwrap().signal(), Some(9));
        // One of the numbers that programs give a meaning themselves.
        let (mut three, _input) = child("read line");
        three.process().signal_number(38).unwrap();
        assert_eq!(three.wait().unwrap().signal(), Some(38));
        three.process().signal_number(38).unwrap();
    }

    #[test]
    fn a_process_is_found_again_by_number_and_start_and_a_stranger_is_not() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = identify(child.id()).unwrap();
        assert!(
            Process::open_exactly(Pid {
                start_ticks: pid.start_ticks + 1,
                ..pid
            })
            .is_none()
        );
        let process = Process::open_exactly(pid).unwrap();
        assert!(!process.wait(Duration::ZERO));
        let number = child.id().cast_signed();
        assert!(Process::lives(number));
        process.signal(Signal::KILL).unwrap();
        assert!(process.wait(Duration::from_secs(60)));
        // Not waited for yet, it still has its number.
        assert!(Process::open(number).is_some() && !Process::lives(number));
        child.wait().unwrap();
        process.signal(Signal::KILL).unwrap();
        assert!(Process::open_exactly(pid).is_none());
    }

    #[test]
    fn children_that_a_thread_waits_for_are_left_to_it() {
        // Of a process of its own: other tests have children in this one.
        if std::env::var_os("FIEF_TEST_REAPS").is_none() {
            let name = "process::tests::children_that_a_thread_waits_for_are_left_to_it";
            let mut alone = Command::new(std::env::current_exe().unwrap());
            alone.args(["--exact", name]).env("FIEF_TEST_REAPS", "1");
            assert!(alone.status().unwrap().success());
            return;
        }
        let ended = || {
            let (child, _input) = child("exit 3");
            assert!(child.process().wait(LONG));
            child
        };
        let waits = own_child();
        let mut one = ended();
        reap_adopted();
        assert_eq!(one.wait().unwrap().code(), Some(3));
        drop(waits);
        let mut nobodys = ended();
        reap_adopted();
        nobodys.wait().unwrap_err();
    }

    /// Far longer than a test may take.
    const LONG: Duration = Duration::from_secs(86400);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_that_does_not_end_is_killed_and_waited_for() {
        let ended = finish(&mut shell("exit 7"), LONG, None).unwrap();
        assert!(matches!(ended, Finished::With(status) if status.code() == Some(7)));
        let ended = finish(&mut shell("exec sleep 86400"), Duration::ZERO, None).unwrap();
        assert!(matches!(ended, Finished::TooLate), "{ended:?}");
        let (give_up, told) = nix::unistd::pipe().unwrap();
        let wanted = finish(&mut shell("exit 0"), LONG, Some(give_up.as_fd())).unwrap();
        assert!(matches!(wanted, Finished::With(status) if status.success()));
        nix::unistd::write(&told, b"x").unwrap();
        let ended = finish(&mut shell("exec sleep 86400"), LONG, Some(give_up.as_fd())).unwrap();
        assert!(matches!(ended, Finished::GivenUp), "{ended:?}");
    }
}
