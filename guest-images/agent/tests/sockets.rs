//! Connections that a real agent makes for a client.

mod common;

use std::io::{ErrorKind as IoError, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread::{JoinHandle, spawn};

use common::Agent;
use fief_agent_proto::{Connect, Connection, Error, ErrorKind, Result};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

/// Two ends of a TCP connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn server() -> (TcpListener, Connect) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, Connect::Tcp(address))
}

/// A client's connection that is carried to `target`: the client's end, and how carrying ended.
fn carried(connection: &Connection, target: &Connect) -> (TcpStream, JoinHandle<Result<()>>) {
    let socket = connection.connect(target).unwrap();
    let (client, local) = pair();
    let joined = spawn(move || {
        let ended = socket.join(&local);
        if ended.is_err() {
            reset(local);
        }
        ended
    });
    (client, joined)
}

fn reset(stream: TcpStream) {
    let now = linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &now).unwrap();
}

/// Bytes without a period.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    (0..length / 4)
        .flat_map(|_| (next() as u32).to_le_bytes())
        .collect()
}

fn rest(mut stream: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn sixteen_mebibytes_go_each_way_at_once_and_each_end_is_passed_on_alone() {
    let agent = Agent::start();
    let connection = agent.connect();
    let (listener, target) = server();
    let (client, joined) = carried(&connection, &target);
    let (served, _) = listener.accept().unwrap();
    let (up, down) = (noise(16 << 20, 1), noise(16 << 20, 2));
    let both = |mut stream: TcpStream, say: Vec<u8>| {
        spawn(move || {
            let mut out = stream.try_clone().unwrap();
            let saying = spawn(move || {
                out.write_all(&say).unwrap();
                out.shutdown(Shutdown::Write).unwrap();
            });
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).unwrap();
            saying.join().unwrap();
            heard
        })
    };
    let (at_client, at_server) = (both(client, up.clone()), both(served, down.clone()));
    assert!(at_server.join().unwrap() == up && at_client.join().unwrap() == down);
    joined.join().unwrap().unwrap();
}

#[test]
fn either_side_may_end_first_and_go_on_listening() {
    let agent = Agent::start();
    let connection = agent.connect();
    let (listener, target) = server();
    for client_first in [true, false] {
        let (client, joined) = carried(&connection, &target);
        let (served, _) = listener.accept().unwrap();
        let (mut first, mut second) = if client_first {
            (&client, &served)
        } else {
            (&served, &client)
        };
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(second), b"question");
        // It hears of the end before it answers.
        second.write_all(b"answer").unwrap();
        second.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(first), b"answer");
        joined.join().unwrap().unwrap();
    }
}

#[test]
fn a_reset_is_no_end_on_either_side() {
    let agent = Agent::start();
    let connection = agent.connect();
    let (listener, target) = server();
    for client_breaks in [true, false] {
        let (client, joined) = carried(&connection, &target);
        let (served, _) = listener.accept().unwrap();
        // Both know of each other before.
        (&client).write_all(b"x").unwrap();
        (&served).read_exact(&mut [0]).unwrap();
        let mut other = if client_breaks {
            reset(client);
            served
        } else {
            reset(served);
            client
        };
        let heard = other.read(&mut [0]).unwrap_err();
        assert_eq!(heard.kind(), IoError::ConnectionReset);
        assert!(joined.join().unwrap().is_err());
    }
}

#[test]
fn where_nobody_listens_the_client_is_told_so_and_where() {
    let agent = Agent::start();
    let connection = agent.connect();
    let (listener, target) = server();
    connection.connect(&target).unwrap();
    drop(listener);
    let missing = agent.dir.path().join("none").display().to_string();
    for target in [target, Connect::Unix(missing.clone())] {
        let error = connection.connect(&target).unwrap_err();
        assert!(error.to_string().contains(&target.to_string()), "{error}");
        let kind = match &target {
            Connect::Tcp(_) => ErrorKind::Io,
            Connect::Unix(_) => ErrorKind::NotFound,
        };
        assert!(matches!(error, Error::Remote(error) if error.kind == kind));
    }
    let long = Connect::Unix(format!("/{missing}").repeat(100));
    assert!(connection.connect(&long).is_err());
    connection.ping().unwrap();
}

#[test]
fn a_unix_socket_is_reached_by_its_path() {
    let agent = Agent::start();
    let connection = agent.connect();
    let path = agent.dir.path().join("served");
    let listener = UnixListener::bind(&path).unwrap();
    let (client, joined) = carried(&connection, &Connect::Unix(path.display().to_string()));
    let (mut served, _) = listener.accept().unwrap();
    (&client).write_all(b"question").unwrap();
    served.read_exact(&mut [0; 8]).unwrap();
    served.write_all(b"answer").unwrap();
    // Its end is of both directions, although the client has not ended its own.
    drop(served);
    assert_eq!(rest(&client), b"answer");
    joined.join().unwrap().unwrap();
}

#[test]
fn three_hundred_connections_leave_nothing_in_the_agent() {
    let agent = Agent::start();
    let connection = agent.connect();
    let (listener, target) = server();
    let mut before = None;
    for number in 0..300_u32 {
        let socket = connection.connect(&target).unwrap();
        let (served, _) = listener.accept().unwrap();
        match number % 3 {
            // One that says nothing and goes, one that is cut off, one that ends in good order.
            0 => drop(socket),
            1 => {
                reset(served);
                drop(socket);
            }
            _ => {
                let (client, local) = pair();
                client.shutdown(Shutdown::Write).unwrap();
                drop(served);
                socket.join(local).unwrap();
            }
        }
        connection.ping().unwrap();
        // The first three stand for what stays anyway.
        if number == 2 {
            before = Some(agent.descriptors());
        }
    }
    assert_eq!(before, Some(agent.descriptors()));
}

#[test]
fn a_client_that_vanishes_takes_its_connections_along() {
    let agent = Agent::start();
    let (listener, target) = server();
    let connection = agent.connect();
    let socket = connection.connect(&target).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    // Nothing is said about the connection any more: the session just ends.
    drop(connection);
    drop(socket);
    assert_eq!(
        served.read(&mut [0]).unwrap_err().kind(),
        IoError::ConnectionReset
    );
}

#[test]
fn addresses_of_both_families_are_words_of_the_protocol() {
    let address: SocketAddr = "[::1]:22".parse().unwrap();
    let text = serde_json::to_string(&Connect::Tcp(address)).unwrap();
    assert_eq!(text, r#"{"tcp":"[::1]:22"}"#);
    assert_eq!(
        serde_json::from_str::<Connect>(&text).unwrap(),
        Connect::Tcp(address)
    );
}
