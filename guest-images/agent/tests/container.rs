//! The agent as PID 1 of a container that is made here: fresh namespaces, a root of busybox alone. Needs root.

mod common;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use common::{deadline, output};
use fief_agent_proto::{
    Connection, Error, ExecRequest, ExitStatus, InitMode, SetClock, Shutdown, ShutdownAction,
    connect_unix,
};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe2};

const AGENT: &str = env!("CARGO_BIN_EXE_fief-agent");
const MAC: &str = "02:0a:63:00:00:02";
const PROGRAMS: [(&str, &str); 2] = [("bin/busybox", "/bin/busybox"), ("bin/fief-agent", AGENT)];
static STARTING: Mutex<()> = Mutex::new(());

/// What a test asks of its container's making.
#[derive(Default)]
struct Plan<'a> {
    words: &'a [&'a str],
    /// Descriptor 3 is `/dev/null`.
    no_socket: bool,
    /// The kernel does not let it end the system.
    no_reboot: bool,
    /// Nobody lets it go on.
    no_go: bool,
}

struct Container {
    /// The process that is PID 1's parent, as a shim is.
    parent: Pid,
    /// What let PID 1 go on, if anything did: as long as it is open, its keeper lives.
    _go: Option<File>,
    /// Its word about PID 1's end, as waitpid(2) has it.
    end: File,
    /// What PID 1 and all its children write; at its end when the last of them has ended.
    said: File,
    root: tempfile::TempDir,
}

impl Container {
    fn start(plan: &Plan) -> Container {
        let root = tempfile::tempdir().unwrap();
        furnish(root.path());
        let listener = UnixListener::bind(root.path().join("agent.socket")).unwrap();
        // Another test's container must not hold the other ends of these: they are made and given away in one.
        let alone = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let [
            (ready, is_ready),
            (may_wait, may_go),
            (end, ended),
            (said, says),
            (goes, lets_go),
        ] = [(); 5].map(|()| pipe2(OFlag::O_CLOEXEC).unwrap());
        // SAFETY: only plain files and system calls follow, and glibc keeps its allocator usable in a forked child.
        let parent = match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                drop((ready, may_go, end, said, lets_go));
                let words = File::from(says.try_clone().unwrap());
                std::panic::set_hook(Box::new(move |why| drop(writeln!(&words, "{why}"))));
                let made = std::panic::catch_unwind(|| {
                    unshare(
                        CloneFlags::CLONE_NEWUSER
                            | CloneFlags::CLONE_NEWNS
                            | CloneFlags::CLONE_NEWNET
                            | CloneFlags::CLONE_NEWUTS
                            | CloneFlags::CLONE_NEWIPC,
                    )
                    .unwrap();
                    File::from(is_ready).write_all(b"x").unwrap();
                    File::from(may_wait).read_exact(&mut [0]).unwrap();
                    keep(plan, root.path(), &listener, &goes, says, ended);
                });
                // SAFETY: a forked child leaves without the test's exit handlers.
                unsafe { nix::libc::_exit(i32::from(made.is_err())) }
            }
            ForkResult::Parent { child } => child,
        };
        let go = (!plan.no_go).then(|| File::from(lets_go));
        drop((is_ready, may_wait, ended, says, listener, goes, alone));
        File::from(ready).read_exact(&mut [0]).unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{parent}/{map}"), "0 0 65536").unwrap();
        }
        File::from(may_go).write_all(b"x").unwrap();
        if let Some(mut go) = go.as_ref() {
            go.write_all(b"x").unwrap();
        }
        Container {
            parent,
            _go: go,
            end: end.into(),
            said: said.into(),
            root,
        }
    }

    fn connect(&self) -> Connection {
        let stream = connect_unix(&self.root.path().join("agent.socket"), deadline()).unwrap();
        Connection::open(stream, deadline()).unwrap_or_else(|error| {
            let _ = kill(self.parent, Signal::SIGKILL);
            panic!("{error}; it said: {}", self.rest())
        })
    }

    /// What else its processes say until the last has ended.
    fn rest(&self) -> String {
        let mut said = Vec::new();
        loop {
            let left = deadline().saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.said.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
            assert!(ready > 0, "it does not end");
            let mut bytes = [0; 4096];
            match (&self.said).read(&mut bytes).unwrap() {
                0 => return String::from_utf8_lossy(&said).into_owned(),
                count => said.extend_from_slice(&bytes[..count]),
            }
        }
    }

    /// Sends PID 1 a signal from outside: it is its parent's one child.
    fn signal(&self, number: i32) {
        let path = format!("/proc/{0}/task/{0}/children", self.parent);
        let children = fs::read_to_string(path).unwrap_or_default();
        for child in children.split_whitespace() {
            // SAFETY: kill has no memory effects.
            unsafe { nix::libc::kill(child.parse().unwrap(), number) };
        }
    }

    /// How PID 1 ended, and what it and its children said.
    fn end(mut self) -> (WaitStatus, String) {
        let (mut status, said) = ([0; 4], self.rest());
        self.end
            .read_exact(&mut status)
            .unwrap_or_else(|_| panic!("no word of an end; it said: {said}"));
        let status = WaitStatus::from_raw(Pid::from_raw(1), i32::from_ne_bytes(status)).unwrap();
        (status, said)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.signal(nix::libc::SIGKILL);
        let _ = kill(self.parent, Signal::SIGKILL);
        let _ = waitpid(self.parent, None);
    }
}

/// A root with busybox and nothing else.
fn furnish(root: &Path) {
    for directory in [
        "bin", "sbin", "etc", "dev", "proc", "sys", "run", "tmp", "old",
    ] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    // What is mounted there: a copy could not be run while another test's fork has it open for writing.
    for (program, _) in PROGRAMS {
        File::create(root.join(program)).unwrap();
    }
    for name in ["sh", "reboot", "poweroff", "tr", "cat", "hostname", "ip"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    symlink("../bin/busybox", root.join("sbin/init")).unwrap();
    fs::write(root.join("etc/inittab"), "::shutdown:/bin/busybox true\n").unwrap();
}

/// In the new namespaces: does what a runtime does, waits for PID 1 and says how it ended.
fn keep(
    plan: &Plan,
    root: &Path,
    listener: &UnixListener,
    goes: &OwnedFd,
    says: OwnedFd,
    ended: OwnedFd,
) {
    let nothing = None::<&str>;
    let bind = |from: &Path, to: &Path| {
        mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing).unwrap();
    };
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing).unwrap();
    bind(root, root);
    for (to, from) in PROGRAMS {
        bind(Path::new(from), &root.join(to));
    }
    for node in ["null", "zero", "urandom"] {
        let path = root.join("dev").join(node);
        File::create(&path).unwrap();
        bind(&Path::new("/dev").join(node), &path);
    }
    let link = format!("link add eth0 address {MAC} type veth peer name other");
    for words in [&link, "link set other up"] {
        assert!(
            Command::new("ip")
                .args(words.split(' '))
                .status()
                .unwrap()
                .success()
        );
    }
    unshare(CloneFlags::CLONE_NEWPID).unwrap();
    let mut agent = Command::new("/bin/fief-agent");
    agent.arg("--container").args(plan.words);
    agent.stdin(Stdio::null()).stderr(says.try_clone().unwrap());
    agent.stdout(says).env_clear();
    let (root, socket, no_reboot) = (root.to_owned(), listener.as_raw_fd(), plan.no_reboot);
    let (no_socket, goes) = (plan.no_socket, goes.as_raw_fd());
    // SAFETY: system calls and what they need.
    unsafe {
        agent.pre_exec(move || {
            let proc = root.join("proc");
            mount(Some("proc"), &proc, Some("proc"), MsFlags::empty(), nothing)?;
            nix::unistd::chdir(&root)?;
            nix::unistd::pivot_root(".", "old")?;
            nix::mount::umount2("/old", nix::mount::MntFlags::MNT_DETACH)?;
            nix::unistd::chdir("/")?;
            let third = if no_socket { 0 } else { socket };
            nix::libc::dup2(third, 3);
            // Where it was there already, that did nothing.
            nix::libc::fcntl(3, nix::libc::F_SETFD, 0);
            nix::libc::dup2(goes, 4);
            nix::libc::fcntl(4, nix::libc::F_SETFD, 0);
            if no_reboot {
                // linux/capability.h: CAP_SYS_BOOT.
                nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, 22);
            }
            Ok(())
        });
    }
    #[expect(clippy::zombie_processes, reason = "the raw status is wanted")]
    let child = agent.spawn().unwrap();
    drop(agent);
    let mut status = 0;
    // SAFETY: it writes one int.
    unsafe { nix::libc::waitpid(child.id().cast_signed(), &raw mut status, 0) };
    File::from(ended).write_all(&status.to_ne_bytes()).unwrap();
}

fn ended_by(signal: Signal) -> WaitStatus {
    WaitStatus::Signaled(Pid::from_raw(1), signal, false)
}

fn exited(code: i32) -> WaitStatus {
    WaitStatus::Exited(Pid::from_raw(1), code)
}

fn request(action: ShutdownAction, force: bool) -> Shutdown {
    Shutdown { action, force }
}

#[test]
fn commands_run_with_a_name_and_a_network_by_the_words_of_the_arguments() {
    let container = Container::start(&Plan {
        words: &[
            "fief.hostname=alice",
            "fief.mac=02:0a:63:00:00:02",
            "fief.address=10.99.0.2/32",
            "fief.gateway=10.99.0.1",
            "fief.mtu=1400",
            "fief.dns=192.0.2.1",
            "fief.user=7:8",
            "fief.root=drive",
        ],
        ..Plan::default()
    });
    let connection = container.connect();
    assert_eq!(connection.hello().init, InitMode::Agent);
    let (status, out, _) = connection
        .exec(&common::shell("echo $$ $(cat /proc/1/comm); exit 7"))
        .unwrap()
        .output()
        .unwrap();
    assert_eq!(status, ExitStatus::Code(7));
    assert!(out.ends_with(b" fief-agent\n"), "{out:?}");
    assert_eq!(output(&connection, "hostname"), "alice\n");
    let files = output(&connection, "cat /etc/hostname /etc/hosts /etc/resolv.conf");
    assert!(files.starts_with("alice\n") && files.contains("127.0.1.1\talice\n"));
    assert!(files.contains("nameserver 192.0.2.1\n"), "{files}");
    let shown = output(&connection, "ip address show; ip route show");
    for part in [
        "mtu 1400",
        MAC,
        "inet 10.99.0.2/32",
        "default via 10.99.0.1 dev eth0",
        "inet 127.0.0.1/8",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    // The words' user, and no descriptor of the agent's: 3 is the listing's own.
    let script = "/bin/busybox id -u; /bin/busybox ls /proc/self/fd | /bin/busybox wc -l";
    assert_eq!(output(&connection, script), "7\n4\n");
    connection
        .shutdown(request(ShutdownAction::Poweroff, false))
        .unwrap();
    let (_, said) = container.end();
    // What is for machines is told; of what a container does not have, nothing is.
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        matches!(lines[..], [bad, asked] if bad.contains("'fief.root=drive'") && asked.contains("Poweroff")),
        "{said}"
    );
}

#[test]
fn a_request_ends_it_with_the_signal_that_the_kernel_has_for_it() {
    for force in [false, true] {
        for (action, signal) in [
            (ShutdownAction::Poweroff, Signal::SIGINT),
            (ShutdownAction::Reboot, Signal::SIGHUP),
        ] {
            let container = Container::start(&Plan::default());
            let connection = container.connect();
            connection.shutdown(request(action, force)).unwrap();
            let (status, said) = container.end();
            assert_eq!(status, ended_by(signal), "{said}");
        }
    }
}

#[test]
fn where_it_may_not_end_the_system_its_exit_code_says_the_same() {
    for (action, code) in [(ShutdownAction::Poweroff, 0), (ShutdownAction::Reboot, 129)] {
        let container = Container::start(&Plan {
            no_reboot: true,
            ..Plan::default()
        });
        container
            .connect()
            .shutdown(request(action, false))
            .unwrap();
        let (status, said) = container.end();
        assert_eq!(status, exited(code), "{said}");
    }
}

#[test]
fn signals_from_outside_and_from_inside_end_it_in_order() {
    let realtime = nix::libc::SIGRTMIN();
    for (number, signal) in [
        (nix::libc::SIGTERM, Signal::SIGINT),
        (realtime + 4, Signal::SIGINT),
        (realtime + 5, Signal::SIGHUP),
    ] {
        let container = Container::start(&Plan::default());
        container.connect().ping().unwrap();
        container.signal(number);
        let (status, said) = container.end();
        assert_eq!(status, ended_by(signal), "{number}: {said}");
    }
    for (program, signal) in [("reboot", Signal::SIGHUP), ("poweroff", Signal::SIGINT)] {
        let container = Container::start(&Plan::default());
        let _ = container
            .connect()
            .exec(&common::shell(program))
            .unwrap()
            .output();
        let (status, said) = container.end();
        assert_eq!(status, ended_by(signal), "{program}: {said}");
    }
}

#[test]
fn it_ends_with_its_parent_whoever_its_init_is() {
    for init in ["fief.init=agent", "fief.init=image"] {
        let container = Container::start(&Plan {
            words: &[init],
            ..Plan::default()
        });
        let connection = container.connect();
        // It outlives a client.
        drop(connection);
        container.connect().ping().unwrap();
        kill(container.parent, Signal::SIGKILL).unwrap();
        container.rest();
    }
}

#[test]
fn one_that_nobody_keeps_does_not_begin() {
    let container = Container::start(&Plan {
        no_go: true,
        ..Plan::default()
    });
    let (status, said) = container.end();
    assert_eq!(status, exited(1));
    assert!(said.contains("keeps this container has ended"), "{said}");
}

#[test]
fn without_a_socket_it_says_so_and_ends() {
    let container = Container::start(&Plan {
        no_socket: true,
        ..Plan::default()
    });
    let (status, said) = container.end();
    assert_eq!(status, exited(1));
    assert!(
        said.contains("descriptor 3 is no listening unix socket"),
        "{said}"
    );
}

#[test]
fn the_images_init_gets_the_container_and_the_agent_stays_beside() {
    for (action, signal) in [
        (ShutdownAction::Poweroff, Signal::SIGINT),
        (ShutdownAction::Reboot, Signal::SIGHUP),
    ] {
        let container = Container::start(&Plan {
            words: &["fief.init=image", "fief.hostname=bob"],
            ..Plan::default()
        });
        let connection = container.connect();
        assert_eq!(connection.hello().init, InitMode::Image);
        assert_eq!(output(&connection, "hostname"), "bob\n");
        let script = "tr '\\0' '\\n' < /proc/1/environ; cat /proc/1/comm; [ ! -e /proc/1/fd/3 ] && echo closed";
        let shown = output(&connection, script);
        assert!(shown.contains("container=fief\n"), "{shown}");
        assert!(shown.ends_with("init\nclosed\n"), "{shown}");
        // No path leads to the agent any more, and it is its own program still.
        assert_eq!(
            output(&connection, "/bin/busybox wc -c < /bin/fief-agent"),
            "0\n"
        );
        let version = ExecRequest {
            own: true,
            ..ExecRequest::new(["--version"])
        };
        let (status, out, _) = connection.exec(&version).unwrap().output().unwrap();
        assert_eq!(status, ExitStatus::Code(0));
        assert!(out.starts_with(b"fief-agent "), "{out:?}");
        connection.shutdown(request(action, false)).unwrap();
        let (status, said) = container.end();
        assert_eq!(status, ended_by(signal), "{said}");
    }
}

#[test]
fn the_clock_is_the_hosts_and_the_uptime_is_its_own() {
    let container = Container::start(&Plan::default());
    let connection = container.connect();
    let Err(Error::Remote(error)) = connection.set_clock(SetClock {
        unix_nanoseconds: 1,
    }) else {
        panic!("it was set")
    };
    assert!(error.message.contains("the host's"), "{}", error.message);
    let stat = output(&connection, "cat /proc/1/stat");
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let begun: f64 = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
    let passed = || {
        let kernels = fs::read_to_string("/proc/uptime").unwrap();
        kernels.split(' ').next().unwrap().parse::<f64>().unwrap() - begun / 100.0
    };
    let before = passed();
    let stats = connection.stats().unwrap();
    let after = passed();
    // Both files count hundredths.
    let possible = before - 0.02..after + 0.02;
    assert!(
        possible.contains(&stats.uptime_seconds),
        "{stats:?}, {possible:?}"
    );
    assert!(stats.processes <= 2, "{stats:?}");
}
