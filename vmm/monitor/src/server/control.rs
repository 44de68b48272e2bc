//! The control thread: owns the machine, does what the API thread asks, and notices the end.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use fief_devices::limiter::Limits;
use fief_devices::virtio::balloon::{BalloonControl, BalloonReport};
use tokio::sync::oneshot;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::with_causes;
use crate::config::{DriveConfig, PassthroughConfig, VmConfig};
use crate::events::Events;
use crate::machine::{
    AllPlugged, Event, ExitReason, Machine, MachineError, Notice, OnEvent, Released,
};

/// What the API thread asks for.
#[derive(Debug)]
pub enum Command {
    /// Build the machine and let it run.
    Start(Box<VmConfig>),
    Pause,
    Resume,
    PressPowerButton,
    AddDrive(Box<DriveConfig>),
    /// Asks the guest to release the drive with this id.
    ReleaseDrive(String),
    /// Puts another file behind the drive, or reads the size of its file again.
    ReplaceDriveFile(String, PathBuf),
    LimitDrive(String, Limits),
    AddDevice(Box<PassthroughConfig>),
    /// Asks the guest to release the passed-through device with this id.
    ReleaseDevice(String),
    /// Answers with the drives and passed-through devices that the machine has.
    ListPlugged(oneshot::Sender<AllPlugged>),
    Balloon(BalloonCommand),
    /// Other limits for a network interface.
    LimitInterface {
        id: String,
        rx: Limits,
        tx: Limits,
    },
}

/// What is asked of the machine's balloon.
#[derive(Debug)]
pub enum BalloonCommand {
    /// Take this many MiB.
    SetTarget(u32),
    /// Ask for statistics this often, in seconds.
    SetInterval(u16),
    /// Ask for new statistics; they are sent when the guest answers.
    Refresh(oneshot::Sender<BalloonReport>),
    /// Send what is known.
    Report(oneshot::Sender<BalloonReport>),
}

impl BalloonCommand {
    fn carry_out(self, balloon: &BalloonControl) {
        match self {
            Self::SetTarget(mib) => balloon.set_target(mib),
            Self::SetInterval(seconds) => balloon.set_interval(seconds),
            Self::Refresh(reply) => balloon.refresh(Box::new(|report| {
                // The client may be gone, here and below.
                let _ = reply.send(report);
            })),
            Self::Report(reply) => {
                let _ = reply.send(balloon.report());
            }
        }
    }
}

/// Done, or a sentence that says why not.
pub type Outcome = Result<(), String>;

enum Message {
    Command(Command, oneshot::Sender<Outcome>),
    /// The guest let go of something.
    Released(Released),
    /// Something happened to a passed-through device.
    Noticed(String, Notice),
    /// The machine with this number ended.
    Ended(u64, ExitReason),
}

/// Sends to the control thread. The eventfd lets that thread wait for messages and signals at once.
#[derive(Clone)]
pub struct Post {
    sender: mpsc::Sender<Message>,
    bell: Arc<EventFd>,
}

impl Post {
    /// Asks for something; the answer comes through the receiver, unless the control thread is gone.
    pub fn ask(&self, command: Command) -> oneshot::Receiver<Outcome> {
        let (reply, outcome) = oneshot::channel();
        self.send(Message::Command(command, reply));
        outcome
    }

    fn send(&self, message: Message) {
        // Neither can fail while the control thread lives, and nobody is interested once it has ended.
        if self.sender.send(message).is_ok() {
            self.ring();
        }
    }

    /// Wakes the control thread.
    fn ring(&self) {
        // A full counter, the only way this fails, wakes it as well.
        let _ = self.bell.write(1);
    }
}

/// A machine, as far as the control thread is concerned. Tests have their own.
pub trait Guest {
    /// # Errors
    /// The machine has ended.
    fn resume(&self) -> Result<(), MachineError>;
    /// # Errors
    /// The machine has ended.
    fn pause(&self) -> Result<(), MachineError>;
    fn press_power_button(&self);
    /// # Errors
    /// The drive cannot be made, or the bus is full.
    fn add_drive(&self, config: &DriveConfig) -> Result<(), MachineError>;
    /// # Errors
    /// There is no such drive.
    fn release_drive(&self, id: &str) -> Result<(), MachineError>;
    /// # Errors
    /// There is no such drive, or the file cannot be one.
    fn replace_drive_file(&self, id: &str, path: &Path) -> Result<(), MachineError>;
    /// # Errors
    /// There is no such drive.
    fn limit_drive(&self, id: &str, limits: Limits) -> Result<(), MachineError>;
    /// # Errors
    /// The device cannot be had, or the bus is full.
    fn add_device(&self, config: &PassthroughConfig) -> Result<(), MachineError>;
    /// # Errors
    /// There is no such device, or it stays.
    fn release_device(&self, id: &str) -> Result<(), MachineError>;
    /// Closes the devices that the guest has let go of.
    fn close_left(&self);
    fn plugged(&self) -> AllPlugged;
    /// There is no such interface, or it cannot go on.
    fn limit_interface(&self, id: &str, rx: Limits, tx: Limits) -> Result<(), MachineError>;
    /// A way to speak to its balloon, if it has one.
    fn balloon(&self) -> Option<BalloonControl>;
}

impl Guest for Machine {
    fn resume(&self) -> Result<(), MachineError> {
        Machine::resume(self)
    }

    fn pause(&self) -> Result<(), MachineError> {
        Machine::pause(self)
    }

    fn press_power_button(&self) {
        Machine::press_power_button(self);
    }

    fn add_drive(&self, config: &DriveConfig) -> Result<(), MachineError> {
        Machine::add_drive(self, config)
    }

    fn release_drive(&self, id: &str) -> Result<(), MachineError> {
        Machine::release_drive(self, id)
    }

    fn replace_drive_file(&self, id: &str, path: &Path) -> Result<(), MachineError> {
        Machine::replace_drive_file(self, id, path)
    }

    fn limit_drive(&self, id: &str, limits: Limits) -> Result<(), MachineError> {
        Machine::limit_drive(self, id, limits)
    }

    fn add_device(&self, config: &PassthroughConfig) -> Result<(), MachineError> {
        Machine::add_device(self, config)
    }

    fn release_device(&self, id: &str) -> Result<(), MachineError> {
        Machine::release_device(self, id)
    }

    fn close_left(&self) {
        Machine::close_left(self);
    }

    fn plugged(&self) -> AllPlugged {
        Machine::plugged(self)
    }

    fn limit_interface(&self, id: &str, rx: Limits, tx: Limits) -> Result<(), MachineError> {
        Machine::limit_interface(self, id, rx, tx)
    }

    fn balloon(&self) -> Option<BalloonControl> {
        Machine::balloon(self)
    }
}

/// Builds machines. Dropping what it made ends that machine.
pub type Build = Box<dyn FnMut(&VmConfig, OnEvent) -> Result<Box<dyn Guest>, MachineError>>;

/// How the control thread came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The machine ended.
    Machine(ExitReason),
    /// This signal asked the monitor to end.
    Signal(i32),
}

/// The control thread's side.
pub struct Control {
    post: Post,
    messages: mpsc::Receiver<Message>,
    signals: Option<Signals>,
    build: Build,
    machine: Option<Box<dyn Guest>>,
    /// Number of the machine that is running or was tried last.
    number: u64,
    /// Restarts in place that no event tells of yet. A number and not a message each: a guest that restarts faster than
    /// its events can be written must not fill the monitor's memory.
    restarts: Arc<AtomicU64>,
}

impl Control {
    /// # Errors
    /// No eventfd could be made.
    pub fn new(build: Build, signals: Option<Signals>) -> io::Result<Self> {
        let (sender, messages) = mpsc::channel();
        let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self {
            post: Post { sender, bell },
            messages,
            signals,
            build,
            machine: None,
            number: 0,
            restarts: Arc::default(),
        })
    }

    /// For whoever wants to ask for something.
    pub fn post(&self) -> Post {
        self.post.clone()
    }

    /// Builds the machine and lets it run.
    ///
    /// # Errors
    /// Why it could not, in one line. Another try may succeed.
    pub fn start(&mut self, config: &VmConfig, events: &Events) -> Outcome {
        if self.machine.is_some() {
            return Err("the microVM is running already".to_owned());
        }
        self.number = self.number.wrapping_add(1);
        let (post, number) = (self.post(), self.number);
        let restarts = Arc::clone(&self.restarts);
        let on_event: OnEvent = Box::new(move |event| match event {
            Event::Restarted => {
                restarts.fetch_add(1, Ordering::AcqRel);
                post.ring();
            }
            Event::Released(what) => post.send(Message::Released(what)),
            Event::Noticed(id, notice) => post.send(Message::Noticed(id, notice)),
            Event::Ended(reason) => post.send(Message::Ended(number, reason)),
        });
        let said = |error: MachineError| with_causes(&error);
        let machine = (self.build)(config, on_event).map_err(said)?;
        machine.resume().map_err(said)?;
        self.machine = Some(machine);
        events.started();
        Ok(())
    }

    /// Serves until the machine ends or a signal asks for the end. The machine is gone when this returns.
    ///
    /// # Errors
    /// Waiting failed.
    pub fn run(&mut self, events: &Events) -> io::Result<End> {
        loop {
            while let Ok(message) = self.messages.try_recv() {
                self.tell_restarts(events);
                if let Some(reason) = self.handle(message, events) {
                    self.machine = None;
                    return Ok(End::Machine(reason));
                }
            }
            let signal = self.wait()?;
            self.tell_restarts(events);
            if let Some(signal) = signal {
                self.machine = None;
                return Ok(End::Signal(signal));
            }
        }
    }

    /// Writes the event of each restart. Before the messages: the machine's end comes after its restarts.
    fn tell_restarts(&self, events: &Events) {
        for _ in 0..self.restarts.swap(0, Ordering::AcqRel) {
            events.rebooted();
        }
    }

    /// Gives the reason if the machine has ended.
    fn handle(&mut self, message: Message, events: &Events) -> Option<ExitReason> {
        match message {
            // The end of a machine that could not be started is no news: its start was answered with an error.
            Message::Ended(number, reason) => {
                (number == self.number && self.machine.is_some()).then_some(reason)
            }
            Message::Released(what) => {
                if let (Released::Device(_), Some(machine)) = (&what, &self.machine) {
                    machine.close_left();
                }
                events.released(&what);
                None
            }
            Message::Noticed(id, notice) => {
                events.noticed(&id, notice);
                self.answer_notice(&id, notice);
                None
            }
            Message::Command(command, reply) => {
                let outcome = self.obey(command, events);
                // The client may be gone.
                let _ = reply.send(outcome);
                None
            }
        }
    }

    /// Whoever wants a device back is to have it, if the guest can release it.
    fn answer_notice(&self, id: &str, notice: Notice) {
        if let (Notice::Requested, Some(machine)) = (notice, &self.machine)
            && let Err(error) = machine.release_device(id)
        {
            tracing::warn!("{error}; stop the machine, and the host has it back");
        }
    }

    fn obey(&mut self, command: Command, events: &Events) -> Outcome {
        if let Command::Start(config) = command {
            return self.start(&config, events);
        }
        let machine = self.machine.as_ref().ok_or("there is no microVM yet")?;
        let done = match command {
            Command::Start(_) => Ok(()),
            Command::Pause => machine.pause(),
            Command::Resume => machine.resume(),
            Command::PressPowerButton => {
                machine.press_power_button();
                Ok(())
            }
            Command::AddDrive(config) => machine.add_drive(&config),
            Command::ReleaseDrive(id) => machine.release_drive(&id),
            Command::ReplaceDriveFile(id, path) => machine.replace_drive_file(&id, &path),
            Command::LimitDrive(id, limits) => machine.limit_drive(&id, limits),
            Command::AddDevice(config) => machine.add_device(&config),
            Command::ReleaseDevice(id) => machine.release_device(&id),
            Command::ListPlugged(reply) => {
                // The client may be gone.
                let _ = reply.send(machine.plugged());
                Ok(())
            }
            Command::LimitInterface { id, rx, tx } => machine.limit_interface(&id, rx, tx),
            Command::Balloon(command) => {
                let balloon = machine.balloon().ok_or("the microVM has no balloon")?;
                command.carry_out(&balloon);
                Ok(())
            }
        };
        done.map_err(|error| with_causes(&error))
    }

    /// Waits for a message or a signal; gives the signal.
    fn wait(&self) -> io::Result<Option<i32>> {
        let signals = self.signals.as_ref().map_or(-1, |s| s.0.as_raw_fd());
        let entry = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // poll(2) ignores entries with a negative descriptor.
        let mut entries = [entry(self.post.bell.as_raw_fd()), entry(signals)];
        // SAFETY: the pointer and the count describe `entries`.
        let ready = unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        // Empty it: a message that comes after this rings again. EAGAIN means that it was the other descriptor.
        let _ = self.post.bell.read();
        self.signals.as_ref().map_or(Ok(None), Signals::take)
    }
}

/// SIGTERM, SIGINT and SIGHUP, read from a descriptor instead of ending the process at once.
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks them for this thread and all that it starts from now on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn block() -> io::Result<Self> {
        // SAFETY: a sigset_t of zeros is valid memory for sigemptyset to initialise; all pointers are to locals.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                libc::sigaddset(&mut set, signal);
            }
            let refused = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            if refused != 0 {
                return Err(io::Error::from_raw_os_error(refused));
            }
            let fd = libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The next signal, if there is one.
    fn take(&self) -> io::Result<Option<i32>> {
        // SAFETY: the structure is plain old data, for which zeros are valid.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        // SAFETY: the kernel writes at most `size` bytes, which is the size of `info`.
        let got = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) };
        if got < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        Ok(i32::try_from(info.ssi_signo).ok())
    }
}
