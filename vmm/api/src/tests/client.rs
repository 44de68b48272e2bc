use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use crate::*;

/// Answers one connection with `answer` once the request's body has come, and gives back the request.
fn once(answer: &'static [u8]) -> (tempfile::TempDir, Client, thread::JoinHandle<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 1024];
        loop {
            let got = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..got]);
            let text = String::from_utf8_lossy(&request).into_owned();
            if got == 0
                || text.ends_with("}")
                || text.starts_with("GET") && text.ends_with("\r\n\r\n")
            {
                // The client may have given up already.
                let _ = stream.write_all(answer);
                return text;
            }
        }
    });
    (dir, Client::new(path), server)
}

#[test]
fn a_request_carries_method_path_length_and_body() {
    let (_dir, client, server) = once(b"HTTP/1.1 204 No Content\r\n\r\n");
    client.put_drive(&Drive::new("root", "disk")).unwrap();
    let request = server.join().unwrap();
    assert!(
        request.starts_with("PUT /drives/root HTTP/1.1\r\n"),
        "{request}"
    );
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
    assert_eq!(
        serde_json::from_str::<Drive>(body).unwrap(),
        Drive::new("root", "disk")
    );
}

#[test]
fn an_answer_becomes_its_type() {
    let (_dir, client, server) =
        once(b"HTTP/1.1 200 OK\r\ncontent-length: 53\r\n\r\n{\"firecracker_version\":\"1.17.0\",\"fief_version\":\"0.1\"}");
    assert_eq!(client.version().unwrap().fief_version, "0.1");
    server.join().unwrap();
}

#[test]
fn a_refusal_carries_the_servers_words() {
    let (_dir, client, server) = once(
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 26\r\n\r\n{\"fault_message\":\"no, no\"}",
    );
    let error = client.start().unwrap_err();
    assert_eq!(error.to_string(), "no, no");
    assert!(matches!(error, ClientError::Refused { status: 400, .. }));
    server.join().unwrap();
}

#[test]
fn an_answer_that_makes_no_sense_is_an_error() {
    for answer in [
        b"" as &[u8],
        b"HTTP/1.1 200",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    ] {
        let (_dir, client, server) = once(answer);
        let error = client.version().unwrap_err();
        assert!(matches!(error, ClientError::Answer { .. }), "{error}");
        assert!(error.to_string().contains("GET /version"), "{error}");
        server.join().unwrap();
    }
}

#[test]
fn a_status_without_a_fault_message_is_still_told() {
    let (_dir, client, server) = once(b"HTTP/1.1 503 Busy\r\n\r\n");
    let error = client.version().unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    server.join().unwrap();
}

#[test]
fn nobody_listening_names_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path().join("nobody"));
    let error = client.wait_until_ready(Duration::ZERO).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }));
    assert!(error.to_string().contains("nobody"), "{error}");
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api");
    // Connections wait in the backlog: nobody accepts.
    let _listener = UnixListener::bind(&path).unwrap();
    let client = Client::new(path).with_timeout(Duration::from_millis(20));
    assert!(matches!(
        client.version().unwrap_err(),
        ClientError::Timeout { .. }
    ));
}

#[test]
fn a_drive_id_cannot_break_out_of_the_request_line() {
    let (_dir, client, server) = once(b"HTTP/1.1 204 No Content\r\n\r\n");
    client
        .put_drive(&Drive::new("a HTTP/1.1\r\nX: y", "disk"))
        .unwrap();
    let request = server.join().unwrap();
    assert!(
        request.starts_with("PUT /drives/a?HTTP/1.1??X:?y HTTP/1.1\r\n"),
        "{request}"
    );
}
