use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use super::forward::MAX_CONNECTIONS;
use super::server::{Inside, Ports, start};
use super::*;

/// An inside that publishes what it is told to, and answers each connection with what it said.
#[derive(Default)]
struct Played {
    published: Mutex<Vec<Port>>,
    addresses: Mutex<Vec<Ipv4Addr>>,
    /// Connections at once, and the most there ever were.
    carried: Mutex<(usize, usize)>,
}

struct Shared(Arc<Played>);

impl Inside for Shared {
    fn published(&self) -> io::Result<Vec<Port>> {
        Ok(self.0.published.lock().unwrap().clone())
    }

    fn add_address(&self, address: Ipv4Addr) -> io::Result<()> {
        self.0.addresses.lock().unwrap().push(address);
        Ok(())
    }

    fn carry(&self, port: Port, mut local: &TcpStream) -> io::Result<()> {
        // Held but not published: nobody listens there.
        if !self.0.published.lock().unwrap().contains(&port) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let count = |change: &dyn Fn(usize) -> usize| {
            let mut carried = self.0.carried.lock().unwrap();
            carried.0 = change(carried.0);
            carried.1 = carried.1.max(carried.0);
        };
        count(&|now| now + 1);
        let mut bytes = Vec::new();
        let echoed = local
            .read_to_end(&mut bytes)
            .and_then(|_| local.write_all(&bytes));
        // The client must not see the end before it is counted.
        count(&|now| now - 1);
        let _ = local.shutdown(Shutdown::Write);
        echoed
    }
}

/// A keeper's ports, and the host they belong to.
struct Keeper {
    state: tempfile::TempDir,
    inside: Arc<Played>,
    ports: Arc<Ports>,
}

impl Keeper {
    fn new(published: &[Port]) -> Self {
        let state = tempfile::tempdir().unwrap();
        std::fs::create_dir(state.path().join("host")).unwrap();
        let control = UnixListener::bind(state.path().join("host/ports.sock")).unwrap();
        let inside = Arc::new(Played::default());
        *inside.published.lock().unwrap() = published.to_vec();
        let ports = Ports::new(Box::new(Shared(Arc::clone(&inside)))).unwrap();
        start(&ports, control).unwrap();
        Self {
            state,
            inside,
            ports,
        }
    }

    fn hold(&self, ports: &[Port]) -> Result<Held, EmulatedError> {
        EmulatedHost::open(self.state.path()).hold(ports)
    }

    fn publish(&self, ports: &[Port]) {
        *self.inside.published.lock().unwrap() = ports.to_vec();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.ports.end();
    }
}

/// A port of this machine that only one test has: every address of 127/8 is here.
fn port(test: u8, number: u16) -> Port {
    Port {
        protocol: Transport::Tcp,
        address: Ipv4Addr::new(127, 77, 0, test),
        port: number,
    }
}

fn at(port: Port) -> (Ipv4Addr, u16) {
    (port.address, port.port)
}

fn is_free(port: Port) -> bool {
    TcpListener::bind(at(port)).is_ok()
}

fn echo(mut stream: &TcpStream, say: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(say)?;
    stream.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard)?;
    Ok(heard)
}

#[test]
fn a_port_is_taken_before_it_is_published_and_stays_while_it_is() {
    let keeper = Keeper::new(&[]);
    let port = port(1, 4000);
    let held = keeper.hold(&[port]).unwrap();
    assert!(!is_free(port));
    // Nothing is there yet: a client is told, not kept waiting.
    let early = TcpStream::connect(at(port)).unwrap();
    assert_eq!(
        echo(&early, b"x").unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    keeper.publish(&[port]);
    drop(held);
    let client = TcpStream::connect(at(port)).unwrap();
    assert_eq!(echo(&client, b"hello").unwrap(), b"hello");
    // Any command's end is a reason to look.
    keeper.publish(&[]);
    drop(keeper.hold(&[]).unwrap());
    assert!(is_free(port));
}

#[test]
fn a_command_that_failed_gives_its_ports_back() {
    let keeper = Keeper::new(&[]);
    let port = port(2, 4000);
    let held = keeper.hold(&[port]).unwrap();
    assert!(!is_free(port));
    drop(held);
    assert!(is_free(port));
}

#[test]
fn a_port_in_use_is_the_commands_error_and_nothing_is_taken() {
    let keeper = Keeper::new(&[]);
    let (free, used) = (port(3, 4000), port(3, 4001));
    let other = TcpListener::bind(at(used)).unwrap();
    let error = keeper.hold(&[free, used]).unwrap_err().to_string();
    assert!(
        error.contains("127.77.0.3:4001") && error.contains("in use"),
        "{error}"
    );
    assert!(is_free(free));
    drop(other);
    keeper.hold(&[free, used]).unwrap();
}

#[test]
fn a_port_of_udp_is_published_inside_alone_and_its_user_told() {
    let keeper = Keeper::new(&[]);
    let tcp = port(10, 4000);
    let udp = Port {
        protocol: Transport::Udp,
        ..tcp
    };
    let held = keeper.hold(&[tcp, udp]).unwrap();
    let [missing] = &held.missing[..] else {
        panic!("{:?}", held.missing)
    };
    let text = missing.to_string();
    assert!(
        text.contains("4000/udp") && text.contains("only TCP"),
        "{text}"
    );
    assert!(!is_free(tcp));
}

#[test]
fn a_port_in_the_way_of_our_own_is_left_to_the_fief_inside() {
    let keeper = Keeper::new(&[]);
    let one = port(11, 4100);
    let every = Port {
        address: Ipv4Addr::UNSPECIFIED,
        ..one
    };
    let first = keeper.hold(&[one, every]).unwrap();
    drop(keeper.hold(&[every]).unwrap());
    assert!(!is_free(one));
    drop(first);
    assert!(is_free(one) && is_free(every));
}

#[test]
fn two_commands_may_hold_one_port_and_it_is_there_for_both() {
    let keeper = Keeper::new(&[]);
    let port = port(4, 4000);
    let first = keeper.hold(&[port]).unwrap();
    // Whose it is the fief inside knows better.
    let second = keeper.hold(&[port]).unwrap();
    drop(first);
    assert!(!is_free(port));
    drop(second);
    assert!(is_free(port));
}

#[test]
fn a_keeper_that_begins_takes_what_is_published_and_tells_once_what_it_cannot_have() {
    let (good, used) = (port(5, 4000), port(5, 4001));
    let other = TcpListener::bind(at(used)).unwrap();
    let keeper = Keeper::new(&[good, used]);
    let held = keeper.hold(&[]).unwrap();
    assert_eq!(held.missing.len(), 1);
    assert_eq!(held.missing[0].port, used);
    assert!(!is_free(good));
    drop(other);
    drop(held);
    assert!(!is_free(used), "it was free again, and is taken now");
    assert!(keeper.hold(&[]).unwrap().missing.is_empty());
}

#[test]
fn connections_end_with_their_port() {
    let port = port(6, 4000);
    let keeper = Keeper::new(&[port]);
    drop(keeper.hold(&[]).unwrap());
    // A client that connects and says nothing.
    let mut silent = TcpStream::connect(at(port)).unwrap();
    keeper.publish(&[]);
    drop(keeper.hold(&[]).unwrap());
    // Its end, or its reset where it was not accepted yet.
    assert!(matches!(silent.read(&mut [0]), Ok(0) | Err(_)));
    assert!(is_free(port));
}

#[test]
fn clients_beyond_the_bound_wait_for_their_turn() {
    let port = port(7, 4000);
    let keeper = Keeper::new(&[port]);
    drop(keeper.hold(&[]).unwrap());
    let clients: Vec<TcpStream> = (0..MAX_CONNECTIONS + 20)
        .map(|_| TcpStream::connect(at(port)).unwrap())
        .collect();
    while keeper.inside.carried.lock().unwrap().0 < MAX_CONNECTIONS {
        std::thread::yield_now();
    }
    for client in &clients {
        assert_eq!(echo(client, b"turn").unwrap(), b"turn");
    }
    assert_eq!(*keeper.inside.carried.lock().unwrap(), (0, MAX_CONNECTIONS));
}

#[test]
fn the_inside_is_given_addresses_of_this_machine_but_not_its_loopback() {
    let keeper = Keeper::new(&[]);
    let loopback = port(8, 4000);
    keeper.hold(&[loopback]).unwrap();
    let nowhere = Port {
        address: Ipv4Addr::new(192, 0, 2, 1),
        ..loopback
    };
    let error = keeper.hold(&[nowhere]).unwrap_err().to_string();
    assert!(error.contains("an address of this machine"), "{error}");
    assert!(keeper.inside.addresses.lock().unwrap().is_empty());
    // One that only the inside knows of: another machine's disk, say.
    keeper.publish(&[loopback, nowhere]);
    drop(keeper.hold(&[loopback]).unwrap());
    assert_eq!(
        keeper.inside.addresses.lock().unwrap().first(),
        Some(&nowhere.address)
    );
}

#[test]
fn ports_without_a_keeper_are_refused_with_what_to_do() {
    let state = tempfile::tempdir().unwrap();
    let error = EmulatedHost::open(state.path()).hold(&[]).unwrap_err();
    assert!(error.to_string().contains("fief host stop"), "{error}");
}

#[test]
fn a_command_that_says_nonsense_or_nothing_holds_nothing() {
    let keeper = Keeper::new(&[]);
    let socket = keeper.state.path().join("host/ports.sock");
    for said in [&b""[..], b"nonsense\n", b"[1]\n", b"[]"] {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(said).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.contains("held"), said == b"[]", "{answer}");
    }
    drop(keeper.hold(&[port(9, 4000)]).unwrap());
}
