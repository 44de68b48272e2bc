//! What tenants in the emulated host offer is reached from this machine: published ports, and the monitor's API.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use fief_tests::{Said, feed, fief, run, spawn, state_directory, waiting};
use nix::libc::linger;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use super::backend::Backend;
use super::{Tenant, json};

/// Serves port 7000, each connection by a process of its own. A client that says `u` first is listened to until its end,
/// then given the file `out`; one that says `d` is given the file and its end, then listened to.
const SERVER: &str = r#"
use IO::Socket::INET;
sub take { my $client = shift; open my $in, '>', '/tmp/new';
    while (sysread $client, my $bytes, 65536) { print $in $bytes }
    close $in; rename '/tmp/new', '/tmp/in' }
sub give { my $client = shift; open my $out, '<', '/tmp/out';
    while (sysread $out, my $bytes, 65536) {
        for (my $at = 0; $at < length $bytes; $at += syswrite $client, $bytes, length($bytes) - $at, $at) {} }
    shutdown $client, 1 }
my $listener = IO::Socket::INET->new(LocalPort => 7000, Listen => 200, ReuseAddr => 1) or die;
$SIG{CHLD} = 'IGNORE'; $| = 1; print "serving\n";
while (my $client = $listener->accept) {
    next if fork;
    sysread $client, my $how, 1 or exit;
    if ($how eq 'u') { take($client); give($client) } else { give($client); take($client) }
    exit;
}
"#;

/// Ports of this machine that these tests publish; no others of the rig do.
const SERVED: u16 = 27_001;
const DISPUTED: u16 = 27_002;
const LASTING: u16 = 27_003;

/// Ends when dropped.
struct Server(Child);

impl Server {
    fn start(tenant: &str) -> Self {
        let arguments = ["exec", tenant, "--", "perl", "-e", SERVER];
        let mut child = fief(arguments).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "serving");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

fn sha256(bytes: Vec<u8>) -> String {
    let mut command = Command::new("sha256sum");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Said::from(feed(command.spawn().unwrap(), bytes)).ok()
}

/// Bytes that do not repeat in any period of a buffer.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut bytes)
        .unwrap();
    bytes
}

/// Says `say` and hears all there is, `u` or `d` first.
fn exchange(port: u16, how: u8, say: &[u8]) -> Vec<u8> {
    let mut stream = connect(port);
    let mut heard = Vec::new();
    stream.write_all(&[how]).unwrap();
    if how == b'd' {
        stream.read_to_end(&mut heard).unwrap();
    }
    stream.write_all(say).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    if how == b'u' {
        stream.read_to_end(&mut heard).unwrap();
    }
    heard
}

fn keeper_descriptors() -> usize {
    let status = json(&run("host status --json").ok());
    fs::read_dir(format!("/proc/{}/fd", status["pid"]))
        .unwrap()
        .count()
}

both!(a_published_port_carries_16_mib_each_way_and_each_end_alone);
fn a_published_port_carries_16_mib_each_way_and_each_end_alone(backend: Backend) {
    let tenant = backend.start("served", &format!("--publish {SERVED}:7000"));
    let out = tenant
        .sh("head -c 16777216 /dev/urandom > /tmp/out; sha256sum < /tmp/out")
        .ok();
    // Nobody listens yet, and a client is told so.
    let early = connect(SERVED).read(&mut [0]).unwrap_err();
    assert_eq!(early.kind(), ErrorKind::ConnectionReset);
    let _server = Server::start("served");
    for how in *b"ud" {
        let said = noise(16 << 20);
        let heard = exchange(SERVED, how, &said);
        assert_eq!(heard.len(), 16 << 20);
        assert_eq!(sha256(heard), out);
        let said = sha256(said);
        waiting::until("the server has it all", || {
            (tenant.sh("sha256sum < /tmp/in").out.trim_end() == said).then_some(())
        });
    }
}

both!(a_hundred_clients_that_misbehave_leave_nothing_and_hold_nobody_up);
fn a_hundred_clients_that_misbehave_leave_nothing_and_hold_nobody_up(backend: Backend) {
    let tenant = backend.start("patient", &format!("--publish {DISPUTED}:7000"));
    tenant.sh("echo here > /tmp/out").ok();
    let _server = Server::start("patient");
    assert_eq!(exchange(DISPUTED, b'u', b"x"), b"here\n");
    let settled = || {
        let now = keeper_descriptors();
        assert_eq!(exchange(DISPUTED, b'u', b"x"), b"here\n");
        now
    };
    let before = settled();
    let mut silent = Vec::new();
    for number in 0..100 {
        let mut client = connect(DISPUTED);
        match number % 4 {
            // Some stay and say nothing; the rest goes in every way there is.
            0 => silent.push(client),
            1 => drop(client),
            2 => {
                client.write_all(b"d").unwrap();
                let now = linger {
                    l_onoff: 1,
                    l_linger: 0,
                };
                setsockopt(&client, sockopt::Linger, &now).unwrap();
            }
            _ => {
                client.write_all(b"u").unwrap();
                client.shutdown(Shutdown::Write).unwrap();
            }
        }
    }
    assert_eq!(exchange(DISPUTED, b'u', b"x"), b"here\n");
    drop(silent);
    waiting::until("the keeper has let go of them all", || {
        (settled() <= before).then_some(())
    });
    // The tenant goes, and its port with it: also under a client that waits.
    let mut waits = connect(DISPUTED);
    waits.write_all(b"u").unwrap();
    run("rm -f patient").ok();
    assert!(matches!(waits.read(&mut [0]), Ok(0) | Err(_)));
    TcpListener::bind(("127.0.0.1", DISPUTED)).unwrap();
}

#[test]
fn a_port_in_use_on_this_machine_is_the_commands_error_and_nothing_is_made() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let made = || run("ps -a --json").ok();
    let named = |what: &str| format!("{what} in-use --image busybox --publish {port}:80");
    run("rm -f in-use");
    for command in [named("create"), named("run -d --name")] {
        let error = run(&command).fails(125);
        assert!(
            error.contains(&format!("127.0.0.1:{port}")) && error.contains("in use"),
            "{error}"
        );
        assert!(!made().contains("in-use"));
    }
    drop(other);
    let _tenant = Tenant::create("in-use", &format!("--image busybox --publish {port}:80"));
    TcpListener::bind(("127.0.0.1", port)).unwrap_err();
    // Whose it is now the host inside knows.
    let second = format!("create second --image busybox --publish {port}:81");
    assert!(run(&second).fails(125).contains("in-use"));
    TcpListener::bind(("127.0.0.1", port)).unwrap_err();
    run("rm in-use").ok();
    TcpListener::bind(("127.0.0.1", port)).unwrap();
}

/// An emulated host that may be stopped without harm to other tests.
struct Own(PathBuf);

impl Own {
    fn new() -> Self {
        let state = state_directory().join("outside");
        fs::create_dir_all(&state).unwrap();
        let images = state.join("images");
        if !images.exists() {
            std::os::unix::fs::symlink(state_directory().join("images"), &images).unwrap();
        }
        fief_tests::host();
        Self(state)
    }

    fn run(&self, line: &str) -> Said {
        let mut command = fief(line.split_whitespace());
        command.env("FIEF_STATE_DIR", &self.0);
        waiting::output(command).into()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.run("rm -f lasting");
        self.run("host stop");
    }
}

both!(published_ports_are_back_when_the_emulated_host_is);
fn published_ports_are_back_when_the_emulated_host_is(backend: Backend) {
    let own = Own::new();
    own.run("rm -f lasting");
    let options = format!("{backend} --kernel micro --image busybox");
    own.run(&format!("create lasting {options} --publish {LASTING}:80"))
        .ok();
    let serve = || {
        own.run("start lasting").ok();
        own.run("exec lasting -- httpd -h /etc").ok();
        let mut stream = connect(LASTING);
        stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("lasting\n"), "{answer}");
    };
    serve();
    let mut waits = connect(LASTING);
    own.run("host stop").ok();
    assert!(matches!(waits.read(&mut [0]), Ok(0) | Err(_)));
    // Another program may have it meanwhile. The tenant is started all the same, and its user told.
    let other = TcpListener::bind(("127.0.0.1", LASTING)).unwrap();
    let told = own.run("host start");
    assert!(
        told.err.contains(&format!("127.0.0.1:{LASTING}")),
        "{}",
        told.err
    );
    told.ok();
    drop(other);
    own.run("host stop").ok();
    own.run("host start").ok();
    TcpListener::bind(("127.0.0.1", LASTING)).unwrap_err();
    serve();
}

#[test]
fn the_api_of_a_monitor_is_a_socket_on_this_side() {
    let _tenant = Tenant::start("spoken-to", "--kernel micro --image busybox");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let mut relay = spawn(&format!("api spoken-to --socket {}", path.display()));
    let mut lines = BufReader::new(relay.stdout.take().unwrap()).lines();
    assert_eq!(
        lines.next().unwrap().unwrap(),
        path.display().to_string(),
        "it serves now"
    );
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let client = fief_api::Client::new(&path);
    assert_eq!(client.describe_instance().unwrap().id, "spoken-to");
    // More of them than a monitor serves at once.
    std::thread::scope(|scope| {
        for _ in 0..30 {
            scope.spawn(|| client.vm_config().unwrap());
        }
    });
    let taken = run(&format!("api spoken-to --socket {}", path.display())).fails(125);
    assert!(taken.contains("exists already"), "{taken}");
    // The tenant's end is not the socket's.
    run("stop spoken-to").ok();
    client.version().unwrap_err();
    run("start spoken-to").ok();
    client.version().unwrap();
    kill(Pid::from_raw(relay.id().cast_signed()), Signal::SIGINT).unwrap();
    let ended = waiting::end_of(relay, "fief api");
    assert_eq!(ended.status.code(), Some(130));
    assert!(!path.exists());
}

#[test]
fn one_request_to_a_monitor_is_one_command() {
    let tenant = Tenant::start("asked", "--kernel micro --image busybox");
    let config = json(&run("api asked GET /vm/config").ok());
    assert_eq!(config["machine-config"]["vcpu_count"], 1);
    let state = || json(&run("api asked GET /").ok())["state"].clone();
    let pause = fief(["api", "asked", "patch", "/vm", r#"{"state": "Paused"}"#]);
    assert_eq!(Said::from(waiting::output(pause)).ok(), "");
    assert_eq!(state(), "Paused");
    let resume = feed(
        spawn("api asked PATCH /vm -"),
        br#"{"state": "Resumed"}"#.to_vec(),
    );
    Said::from(resume).ok();
    assert_eq!(state(), "Running");
    let refused = run("api asked PUT /nonsense");
    assert!(json(&refused.out)["fault_message"].is_string());
    refused.fails(1);
    run("stop asked").ok();
    assert!(
        run("api asked GET /")
            .fails(125)
            .contains("fief start asked")
    );
    assert!(run("api asked").fails(125).contains("fief start asked"));
    drop(tenant);
    run("api asked GET").fails(125);
}
