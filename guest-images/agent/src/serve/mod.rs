//! The agent's one loop: clients, their streams, children, signals and the power button, all through one `poll`.

mod button;
mod command;
mod file;
mod inbox;
mod session;
mod socket;
mod system;
mod transport;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fief_agent_proto::{AgentHello, Channel, ExitStatus, InitMode, Shutdown, ShutdownAction};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};

use crate::log;
use crate::provide::Sshd;
use button::PowerButtons;
use session::{Context, Session};
pub use transport::{INHERITED, Listener, open_serial};

/// Clients at once on a listener; more wait in its backlog.
const MAX_SESSIONS: usize = 64;
/// How often a serial port without a host side is looked at if no signal comes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a client for whom the kernel had no descriptor is tried again.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);

/// What systemd takes as a request for an end, from SIGRTMIN on (systemd(1), "Signals").
const POWEROFF: i32 = 4;
const REBOOT: i32 = 5;

/// What [`Server::run`] needs.
#[derive(Debug)]
pub struct Server {
    listener: Option<Listener>,
    /// When it may be asked for clients again, if the kernel had nothing left for one.
    listens_again: Option<Instant>,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    signals: SignalFd,
    buttons: PowerButtons,
    context: Context,
    scratch: Vec<u8>,
    turns: usize,
}

/// What a descriptor in the poll set belongs to.
#[derive(Debug, Clone, Copy)]
enum Token {
    Signals,
    Buttons(usize),
    Listener,
    Session(u64),
    Stream(u64, u32, Channel),
}

impl Server {
    /// A server without clients. Blocks the signals it handles, and SIGPIPE never ends it.
    ///
    /// # Errors
    /// No signal descriptor to be had.
    pub fn new(hello: AgentHello, default_user: Option<String>) -> io::Result<Server> {
        // SAFETY: SIGPIPE is ignored, no handler is installed.
        unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
        let mut set = SigSet::empty();
        // SIGIO is a serial port's host side; what the others ask for says `asked_by`.
        use Signal::{SIGCHLD, SIGINT, SIGIO, SIGPWR, SIGTERM, SIGUSR1, SIGUSR2};
        set.extend([SIGCHLD, SIGINT, SIGIO, SIGPWR, SIGTERM, SIGUSR1, SIGUSR2]);
        let mut set = *set.as_ref();
        for number in [POWEROFF, REBOOT] {
            // SAFETY: the set is valid, and the number is a signal's.
            unsafe { libc::sigaddset(&raw mut set, libc::SIGRTMIN() + number) };
        }
        // SAFETY: it began as an empty set.
        let set = unsafe { SigSet::from_sigset_t_unchecked(set) };
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let buttons = if hello.init == InitMode::Agent {
            PowerButtons::find()
        } else {
            PowerButtons::default()
        };
        let context = Context {
            root: (hello.init != InitMode::Program).then(|| "/".into()),
            default_user,
            sshd: Sshd::default(),
            hello,
            shutdown: None,
            condemned: Vec::new(),
        };
        Ok(Server {
            listener: None,
            listens_again: None,
            sessions: BTreeMap::new(),
            next_session: 0,
            signals,
            buttons,
            context,
            scratch: vec![0; 64 * 1024],
            turns: 0,
        })
    }

    /// Serves clients that connect to `listener`.
    pub fn listen(&mut self, listener: Listener) {
        self.listener = Some(listener);
    }

    /// Serves one client after another on a serial port.
    pub fn serve_serial(&mut self, port: std::fs::File) {
        self.add(Session::new(port, true));
    }

    /// Lets a program be given what a host gives its tenants, below a directory that stands for the tenant's root.
    pub fn provide_below(&mut self, root: PathBuf) {
        self.context.root = Some(root);
    }

    /// Serves until someone asks for an end.
    ///
    /// # Errors
    /// `poll` failed, which it should not.
    pub fn run(&mut self) -> io::Result<Shutdown> {
        loop {
            self.turn()?;
            if let Some(shutdown) = self.context.shutdown.take() {
                return Ok(shutdown);
            }
        }
    }

    fn add(&mut self, session: Session) {
        self.sessions.insert(self.next_session, session);
        self.next_session += 1;
    }

    fn turn(&mut self) -> io::Result<()> {
        let timeout = self.timeout();
        self.turns = self.turns.wrapping_add(1);
        let (mut fds, tokens) = self.poll_set();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events: Vec<(Token, PollFlags)> = tokens
            .into_iter()
            .zip(&fds)
            .map(|(token, fd)| (token, fd.revents().unwrap_or(PollFlags::empty())))
            .filter(|(_, events)| !events.is_empty())
            .collect();
        drop(fds);
        for (token, events) in events {
            self.ready(token, events);
        }
        let now = Instant::now();
        self.listens_again = self.listens_again.filter(|at| *at > now);
        for session in self.sessions.values_mut() {
            session.turn(now, &mut self.context, &mut self.scratch);
        }
        self.sessions.retain(|_, session| !session.is_over());
        self.context.condemned.retain(|(group, at)| {
            let later = *at > now;
            if !later {
                let _ = killpg(*group, Signal::SIGKILL);
            }
            later
        });
        Ok(())
    }

    fn timeout(&mut self) -> PollTimeout {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        let mut at = |time: Option<Instant>| next = next.into_iter().chain(time).min();
        for session in self.sessions.values_mut() {
            at(session.deadline());
            at(session.is_busy().then_some(now));
            at(session.waits_for_host().then_some(now + LOOK_AGAIN));
        }
        at(self.context.condemned.iter().map(|(_, at)| *at).min());
        at(self.listens_again);
        next.map_or(PollTimeout::NONE, |at| {
            // Rounded up, or the last millisecond would spin.
            let left = at.saturating_duration_since(now);
            let left = if left.is_zero() {
                left
            } else {
                left + Duration::from_micros(999)
            };
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        })
    }

    fn poll_set(&self) -> (Vec<PollFd<'_>>, Vec<Token>) {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let mut tokens = vec![Token::Signals];
        for (index, button) in self.buttons.files().iter().enumerate() {
            fds.push(PollFd::new(button.as_fd(), PollFlags::POLLIN));
            tokens.push(Token::Buttons(index));
        }
        if let Some(listener) = self
            .listener
            .as_ref()
            .filter(|_| self.sessions.len() < MAX_SESSIONS && self.listens_again.is_none())
        {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
            tokens.push(Token::Listener);
        }
        for (id, session) in &self.sessions {
            if let Some((fd, flags)) = session.interest() {
                fds.push(PollFd::new(fd, flags));
                tokens.push(Token::Session(*id));
            }
            let first = fds.len();
            session.stream_interests(|stream, channel, fd| {
                fds.push(fd);
                tokens.push(Token::Stream(*id, stream, channel));
            });
            // Whoever comes first takes the room there is: let it be another one each time.
            let streams = fds.len() - first;
            if streams > 0 {
                let shift = self.turns % streams;
                fds[first..].rotate_left(shift);
                tokens[first..].rotate_left(shift);
            }
        }
        (fds, tokens)
    }

    fn ready(&mut self, token: Token, events: PollFlags) {
        match token {
            Token::Signals => self.take_signals(),
            Token::Buttons(index) => {
                if self.buttons.pressed(index) {
                    log::info("the power button was pressed");
                    self.ask_for(ShutdownAction::Poweroff);
                }
            }
            Token::Listener => {
                match self.listener.as_ref().map(Listener::accept) {
                    Some(Ok(Some(stream))) => self.add(Session::new(stream, false)),
                    // It stays ready: to ask at once again would be to do nothing else.
                    Some(Err(_)) => self.listens_again = Some(Instant::now() + LISTEN_AGAIN),
                    Some(Ok(None)) | None => {}
                }
            }
            Token::Session(id) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.ready(events, &mut self.context, &mut self.scratch);
                }
            }
            Token::Stream(id, stream, channel) => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.stream_ready(stream, channel, events, &mut self.scratch);
                }
            }
        }
    }

    fn ask_for(&mut self, action: ShutdownAction) {
        self.context.shutdown.get_or_insert(Shutdown {
            action,
            force: false,
        });
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(libc::SIGCHLD);
            let outside = signal.ssi_pid == 0;
            if let Some(action) = asked_by(number, outside, self.context.hello.init) {
                self.ask_for(action);
            }
        }
        self.reap();
    }

    /// Takes every ended child, the orphans of a PID 1 included.
    fn reap(&mut self) {
        let now = Instant::now();
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status) = waitid(Id::All, flags) {
            let Some(pid) = status.pid() else { return };
            let waiting = self
                .context
                .condemned
                .iter()
                .position(|(group, _)| *group == pid);
            // While its leader is a zombie the group's number cannot be anyone else's.
            if waiting.is_some() || self.sessions.values().any(|session| session.condemned(pid)) {
                let _ = killpg(pid, Signal::SIGKILL);
            }
            waiting.map(|index| self.context.condemned.swap_remove(index));
            let status = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => ExitStatus::Code(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => ExitStatus::Signal(signal as i32),
                _ => continue,
            };
            self.context.sshd.exited(pid);
            self.sessions
                .values_mut()
                .any(|session| session.exited(pid, status, now));
        }
    }

    /// Ends every command (for an agent that is an ordinary program).
    pub fn end_commands(&mut self) {
        for session in self.sessions.values_mut() {
            session.lose(&mut self.context);
        }
        for (group, _) in self.context.condemned.drain(..) {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = waitpid(group, None);
        }
    }

    /// Has the image's init end the system, because only it knows how to stop its services.
    pub fn ask_init(action: ShutdownAction) {
        let (program, realtime) = match action {
            ShutdownAction::Poweroff => ("poweroff", POWEROFF),
            ShutdownAction::Reboot => ("reboot", REBOOT),
        };
        // systemd takes signals from the first moment; its commands need D-Bus.
        let init = std::fs::read_link("/proc/1/exe").unwrap_or_default();
        if init.file_name().is_some_and(|name| name == "systemd") {
            // SAFETY: kill has no memory effects.
            unsafe { libc::kill(1, libc::SIGRTMIN() + realtime) };
            return;
        }
        let mut command = Command::new(program);
        command
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        // The reaper takes it when it ends.
        match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => log::info(format!("ran {program} as process {}", child.id())),
            Err(error) => log::error(format!(
                "cannot run {program}: {error}; ask for a forced end instead"
            )),
        }
    }
}

/// What a signal to the agent asks for. `outside`: the sender is no process of this container (or it is the kernel).
fn asked_by(signal: i32, outside: bool, init: InitMode) -> Option<ShutdownAction> {
    match (init, signal) {
        // Whatever happens beside the image's init is that init's to decide.
        (InitMode::Image, _) | (_, libc::SIGCHLD | libc::SIGIO) => None,
        // A container's power button.
        (InitMode::Agent, libc::SIGTERM) if outside => Some(ShutdownAction::Poweroff),
        // The kernel's ctrl-alt-del, and what busybox's `reboot` sends to PID 1.
        (InitMode::Agent, libc::SIGINT | libc::SIGTERM) => Some(ShutdownAction::Reboot),
        (InitMode::Agent, number) if number == libc::SIGRTMIN() + REBOOT => {
            Some(ShutdownAction::Reboot)
        }
        // A failing power supply, and busybox's `halt` and `poweroff`; for a program, any of them.
        _ => Some(ShutdownAction::Poweroff),
    }
}
