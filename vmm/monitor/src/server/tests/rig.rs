use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use fief_api::{BootSource, Client, InstanceState};
use fief_devices::limiter::{self, Limit};
use fief_devices::ram::ReleasePages;
use fief_devices::virtio::balloon::{self, Balloon, BalloonControl};
use fief_devices::worker::{SharedWorker, ThreadKind};
use vm_memory::GuestAddress;

use crate::config::{DriveConfig, PassthroughConfig, VmConfig};
use crate::events::Events;
use crate::machine::files::Files;
use crate::machine::{
    AllPlugged, Event, ExitReason, MachineError, Notice, OnEvent, Plugged, Released,
};
use crate::server::control::{Control, End, Guest};
use crate::server::draft::Draft;
use crate::server::session::Session;
use crate::server::{ApiSocket, Limits, Server};

/// What was done to the machine, and the means to end it.
#[derive(Default)]
pub struct Notes {
    pub done: Mutex<Vec<String>>,
    pub config: Mutex<Option<VmConfig>>,
    pub on_event: Mutex<Option<OnEvent>>,
    /// The last limits of an interface, rx and tx.
    pub limits: Mutex<Option<(limiter::Limits, limiter::Limits)>>,
    /// Error of the next attempt to build.
    pub build_error: Mutex<Option<MachineError>>,
    /// The next pause waits for a message here.
    pub hold: Mutex<Option<mpsc::Receiver<()>>>,
    /// The drives and devices that the machine has.
    pub plugged: Mutex<AllPlugged>,
    /// Error of the next drive or device that is added.
    pub plug_error: Mutex<Option<MachineError>>,
}

impl Notes {
    fn note(&self, what: &str) {
        self.done.lock().unwrap().push(what.to_owned());
    }

    fn attach(&self, config: &DriveConfig) {
        let mut plugged = self.plugged.lock().unwrap();
        plugged.drives.push(fresh(&config.id));
    }

    fn attach_device(&self, config: &PassthroughConfig) {
        let mut plugged = self.plugged.lock().unwrap();
        plugged.devices.push(fresh(&config.id));
    }

    pub fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }
}

fn fresh(id: &str) -> Plugged {
    Plugged {
        id: id.to_owned(),
        leaving: false,
    }
}

fn leave(plugged: &mut [Plugged], id: &str) {
    plugged.iter_mut().find(|one| one.id == id).unwrap().leaving = true;
}

struct FakeMachine {
    notes: Arc<Notes>,
    /// A real one, that no guest has a driver for.
    balloon: Option<BalloonControl>,
}

/// Nothing is ever given back.
struct Nothing;

impl ReleasePages for Nothing {
    fn release(&self, start: GuestAddress, length: u64) -> std::io::Result<()> {
        panic!("{length} bytes at {start:?} are given back without a guest");
    }
}

impl FakeMachine {
    fn new(config: &VmConfig, notes: &Arc<Notes>) -> Self {
        let balloon = config.balloon.map(|config| {
            let offered = balloon::BalloonConfig {
                deflate_on_oom: config.deflate_on_oom,
                statistics: config.statistics,
                reporting: config.reporting,
            };
            let worker = SharedWorker::spawn(ThreadKind::Slow, "test").unwrap();
            let balloon = Balloon::new(offered, Arc::new(Nothing), worker).unwrap();
            balloon.control().set_target(config.target_mib);
            balloon.control()
        });
        Self {
            notes: Arc::clone(notes),
            balloon,
        }
    }
}

impl Guest for FakeMachine {
    fn resume(&self) -> Result<(), MachineError> {
        self.notes.note("resume");
        Ok(())
    }

    fn pause(&self) -> Result<(), MachineError> {
        // Not in the condition: the lock would be held while waiting.
        let hold = self.notes.hold.lock().unwrap().take();
        if let Some(hold) = hold {
            hold.recv().unwrap();
        }
        self.notes.note("pause");
        Ok(())
    }

    fn press_power_button(&self) {
        self.notes.note("power button");
    }

    fn balloon(&self) -> Option<BalloonControl> {
        self.balloon.clone()
    }

    fn add_drive(&self, config: &DriveConfig) -> Result<(), MachineError> {
        if let Some(error) = self.notes.plug_error.lock().unwrap().take() {
            return Err(error);
        }
        self.notes.note(&format!("add {}", config.id));
        self.notes.attach(config);
        Ok(())
    }

    fn release_drive(&self, id: &str) -> Result<(), MachineError> {
        self.notes.note(&format!("release {id}"));
        leave(&mut self.notes.plugged.lock().unwrap().drives, id);
        Ok(())
    }

    fn replace_drive_file(&self, id: &str, path: &Path) -> Result<(), MachineError> {
        self.notes.note(&format!("{id} is {}", path.display()));
        Ok(())
    }

    fn limit_drive(&self, id: &str, limits: limiter::Limits) -> Result<(), MachineError> {
        let size = |limit: Option<Limit>| limit.map(|limit| limit.size);
        let (bytes, ops) = (size(limits.bandwidth), size(limits.ops));
        self.notes.note(&format!("{id} has {bytes:?} {ops:?}"));
        Ok(())
    }

    fn add_device(&self, config: &PassthroughConfig) -> Result<(), MachineError> {
        if let Some(error) = self.notes.plug_error.lock().unwrap().take() {
            return Err(error);
        }
        self.notes.note(&format!("add device {}", config.id));
        self.notes.attach_device(config);
        Ok(())
    }

    fn release_device(&self, id: &str) -> Result<(), MachineError> {
        self.notes.note(&format!("release device {id}"));
        leave(&mut self.notes.plugged.lock().unwrap().devices, id);
        Ok(())
    }

    fn close_left(&self) {
        self.notes.note("close");
    }

    fn plugged(&self) -> AllPlugged {
        self.notes.plugged.lock().unwrap().clone()
    }

    fn limit_interface(
        &self,
        id: &str,
        rx: limiter::Limits,
        tx: limiter::Limits,
    ) -> Result<(), MachineError> {
        self.notes.note(&format!("limits of {id}"));
        *self.notes.limits.lock().unwrap() = Some((rx, tx));
        Ok(())
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.notes.note("gone");
    }
}

pub struct Rig {
    pub dir: tempfile::TempDir,
    pub socket: PathBuf,
    pub notes: Arc<Notes>,
    server: Option<Server>,
    control: Option<JoinHandle<End>>,
}

/// MiB of the imagined host.
pub const HOST_MIB: u64 = 4096;

pub fn limits() -> Limits {
    Limits::with_body(1000)
}

impl Rig {
    pub fn new() -> Self {
        Self::with(limits())
    }

    pub fn with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let notes = Arc::new(Notes::default());
        let socket = dir.path().join("api");
        let (posts, post) = mpsc::channel();
        let noted = Arc::clone(&notes);
        let events = Events::open(&Files::new(), Some(&dir.path().join("events"))).unwrap();
        let control = std::thread::spawn(move || {
            let build = Box::new(move |config: &VmConfig, on_event: OnEvent| {
                if let Some(error) = noted.build_error.lock().unwrap().take() {
                    return Err(error);
                }
                *noted.config.lock().unwrap() = Some(config.clone());
                config.drives.iter().for_each(|drive| noted.attach(drive));
                let devices = config.passthrough.iter();
                devices.for_each(|device| noted.attach_device(device));
                *noted.on_event.lock().unwrap() = Some(on_event);
                Ok(Box::new(FakeMachine::new(config, &noted)) as Box<dyn Guest>)
            });
            let mut control = Control::new(build, None).unwrap();
            posts.send(control.post()).unwrap();
            control.run(&events).unwrap()
        });
        let draft = Draft::new(Files::new(), HOST_MIB).unwrap();
        let session = Session::new(
            "test".to_owned(),
            draft,
            InstanceState::NotStarted,
            post.recv().unwrap(),
            Files::new(),
        );
        let server = Server::start(ApiSocket::bind(&socket).unwrap(), session, limits).unwrap();
        Self {
            dir,
            socket,
            notes,
            server: Some(server),
            control: Some(control),
        }
    }

    pub fn client(&self) -> Client {
        Client::new(&self.socket).with_timeout(Duration::from_secs(60))
    }

    /// Makes a file in the rig's directory.
    pub fn file(&self, name: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, "content").unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn boot_source(&self) -> BootSource {
        BootSource {
            kernel_image_path: self.file("kernel"),
            initrd_path: None,
            boot_args: None,
        }
    }

    /// Configures the least and starts.
    pub fn start(&self) {
        self.client().put_boot_source(&self.boot_source()).unwrap();
        self.client().start().unwrap();
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    /// Sends bytes and gives everything that comes back until the server closes.
    pub fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // The server may have closed already.
        let _ = stream.write_all(request);
        read_to_end(&mut stream)
    }

    /// The guest lets go of a drive.
    pub fn release(&self, id: &str) {
        (self.notes.plugged.lock().unwrap().drives).retain(|drive| drive.id != id);
        self.tell(Event::Released(Released::Drive(id.to_owned())));
    }

    /// What the machine does when its guest has let go of a passed-through device.
    pub fn release_device(&self, id: &str) {
        (self.notes.plugged.lock().unwrap().devices).retain(|device| device.id != id);
        self.tell(Event::Released(Released::Device(id.to_owned())));
    }

    /// What the machine does when something happens to a passed-through device.
    pub fn notice(&self, id: &str, notice: Notice) {
        self.tell(Event::Noticed(id.to_owned(), notice));
    }

    fn tell(&self, event: Event) {
        let on_event = self.notes.on_event.lock().unwrap();
        on_event.as_ref().unwrap()(event);
    }

    /// What the machine does when its guest asks for a reset.
    pub fn restart_machine(&self) {
        let on_event = self.notes.on_event.lock().unwrap();
        on_event.as_ref().unwrap()(Event::Restarted);
    }

    /// Ends the machine and gives what the control thread made of it.
    pub fn end_machine(&mut self, reason: ExitReason) -> End {
        let on_event = self.notes.on_event.lock().unwrap().take().unwrap();
        on_event(Event::Ended(reason));
        self.control.take().unwrap().join().unwrap()
    }

    pub fn shut_down(&mut self) {
        self.server.take().unwrap().shut_down();
    }
}

/// Reads until the other side closes, or resets because it did not read all of ours.
pub fn read_to_end(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => text.extend_from_slice(&buffer[..got]),
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                break;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}
