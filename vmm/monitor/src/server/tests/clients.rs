//! Hostile, slow and broken clients.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::rig::{Rig, limits, read_to_end};
use crate::server::{ApiSocket, Limits, SocketError};

/// A server that soon loses its patience.
fn impatient() -> Limits {
    Limits {
        patience: Duration::from_millis(30),
        ..limits()
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

fn read_some(stream: &mut UnixStream) -> String {
    let mut buffer = [0; 4096];
    let got = stream.read(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..got]).into_owned()
}

#[test]
fn a_body_that_announces_too_much_is_refused_before_it_is_sent() {
    let rig = Rig::new();
    let answer = rig.raw(b"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("1000 bytes"), "{answer}");
    let whole = [
        b"PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" as &[u8],
        &[b'x'; 100_000],
    ];
    assert!(rig.raw(&whole.concat()).starts_with("HTTP/1.1 413"));
    rig.client().describe_instance().unwrap();
}

#[test]
fn a_body_of_unknown_length_is_cut_off_at_the_limit() {
    let rig = Rig::new();
    let mut request =
        b"PUT /actions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        request.extend_from_slice(b"64\r\n");
        request.extend_from_slice(&[b' '; 0x64]);
        request.extend_from_slice(b"\r\n");
    }
    let answer = rig.raw(&request);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[test]
fn garbage_is_answered_with_400_and_a_closed_connection() {
    let rig = Rig::new();
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" as &[u8],
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n",
    ] {
        let answer = rig.raw(garbage);
        let text = String::from_utf8_lossy(garbage);
        assert!(answer.starts_with("HTTP/1.1 4"), "{text:?}: {answer}");
    }
    let endless = [b"GET / HTTP/1.1\r\nX: " as &[u8], &[b'a'; 100_000]].concat();
    assert!(rig.raw(&endless).starts_with("HTTP/1.1 431"));
    rig.client().describe_instance().unwrap();
}

#[test]
fn a_head_that_does_not_end_is_given_up() {
    let rig = Rig::with(impatient());
    let mut silent = rig.connect();
    let mut half = rig.connect();
    half.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
    assert!(!read_to_end(&mut silent).contains("200"));
    assert!(!read_to_end(&mut half).contains("200"));
}

#[test]
fn a_body_that_does_not_come_is_given_up() {
    let rig = Rig::with(impatient());
    let answer = rig.raw(b"PUT /vsock HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{\"");
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    rig.client().describe_instance().unwrap();
}

#[test]
fn any_number_of_half_open_connections_keeps_nobody_out() {
    let rig = Rig::new();
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = rig.connect();
        stream.write_all(b"PUT /actions HTTP/1.1\r\nHos").unwrap();
        held.push(stream);
    }
    rig.client().describe_instance().unwrap();
    // The oldest had to go; the newest may go on.
    assert!(!read_to_end(&mut held[0]).contains("200"));
    let newest = held.last_mut().unwrap();
    newest
        .write_all(b"t: x\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    assert!(read_some(newest).starts_with("HTTP/1.1 400"));
}

#[test]
fn requests_one_after_another_on_a_connection_are_answered_in_order() {
    let rig = Rig::new();
    let mut stream = rig.connect();
    let put = b"PUT /lifecycle HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" as &[u8];
    let last = b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" as &[u8];
    stream.write_all(&[GET, put, GET, last].concat()).unwrap();
    let answers = read_to_end(&mut stream);
    let statuses: Vec<&str> = answers
        .match_indices("HTTP/1.1 ")
        .map(|(at, start)| &answers[at + start.len()..][..3])
        .collect();
    assert_eq!(statuses, ["200", "204", "200", "200"], "{answers}");
    assert!(answers.ends_with("}"), "{answers}");
}

#[test]
fn an_idle_connection_may_be_used_again() {
    let rig = Rig::new();
    let mut stream = rig.connect();
    for _ in 0..3 {
        stream.write_all(GET).unwrap();
        assert!(read_some(&mut stream).starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn only_the_owner_may_connect_and_the_path_is_removed_in_the_end() {
    let mut rig = Rig::new();
    let mode = std::fs::metadata(&rig.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    rig.shut_down();
    assert!(!rig.socket.exists());
}

#[test]
fn a_path_that_exists_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let other = UnixListener::bind(&path).unwrap();
    let error = ApiSocket::bind(&path).unwrap_err();
    assert!(matches!(error, SocketError::Exists(_)));
    assert!(error.to_string().contains("--api-sock"), "{error}");
    drop(other);
    // Still there: a socket nobody listens on may be another monitor's that just died.
    assert!(ApiSocket::bind(&path).is_err());
    assert!(path.exists());
    let nowhere = ApiSocket::bind(&dir.path().join("no/api")).unwrap_err();
    assert!(matches!(nowhere, SocketError::Bind { .. }));
}

#[test]
fn a_socket_of_another_that_took_the_path_is_not_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let ours = ApiSocket::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _theirs = UnixListener::bind(&path).unwrap();
    drop(ours);
    assert!(path.exists());
}
