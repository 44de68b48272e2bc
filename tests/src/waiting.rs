//! Waiting, with an end: for a command, or for something that nothing announces.

use std::process::{Child, Command, Output};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longer than anything here takes on the slowest machine: only a hang gets there, and then its test says at what.
pub const PATIENCE: Duration = Duration::from_secs(900);
/// Between two looks at something that nothing announces.
const LOOK: Duration = Duration::from_millis(100);

/// Runs `command` to its end.
///
/// # Panics
/// It cannot be started, or hangs: then it is killed.
pub fn output(mut command: Command) -> Output {
    let child = command.spawn().expect("the command starts");
    end_of(child, &format!("{command:?}"))
}

/// Waits for the end of a started command; `what` is for the message should it hang.
///
/// # Panics
/// It hangs: then it is killed.
pub fn end_of(child: Child, what: &str) -> Output {
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (ended, end) = mpsc::channel();
    let waiter = std::thread::spawn(move || ended.send(child.wait_with_output()));
    let output = end.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        // Not waited for yet by the thread, so the process id is still its own.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        panic!("hangs after {} s: {what}", PATIENCE.as_secs())
    });
    let _ = waiter.join();
    output.expect("a command can be waited for")
}

/// Looks again and again until there is something to see. For what nothing announces; what fief or the kernel can be
/// asked to wait for (`fief wait`, the end of a process, a line from a pipe) is waited for that way.
///
/// # Panics
/// It never comes.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(
            Instant::now() < deadline,
            "not within {} s: {what}",
            PATIENCE.as_secs()
        );
        std::thread::sleep(LOOK);
    }
}
