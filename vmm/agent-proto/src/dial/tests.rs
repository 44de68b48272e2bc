use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;

use super::*;

/// A monitor's socket that gives these answers to one connection each, then returns what it was asked.
fn monitor(
    answers: &'static [&'static str],
) -> (tempfile::TempDir, std::thread::JoinHandle<Vec<String>>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("vsock")).unwrap();
    let thread = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for answer in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            asked.push(line);
            // The client may hang up at the first wrong byte.
            let _ = (&stream).write_all(answer.as_bytes());
        }
        asked
    });
    (dir, thread)
}

#[test]
fn the_handshake_takes_its_line_and_not_a_byte_more() {
    let (dir, thread) = monitor(&["OK 1073741824\nfirst bytes"]);
    let stream = connect_vsock_unix(
        &dir.path().join("vsock"),
        1024,
        Instant::now() + Duration::from_secs(60),
    )
    .unwrap();
    let mut rest = String::new();
    (&stream).read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "first bytes");
    assert_eq!(thread.join().unwrap(), ["CONNECT 1024\n"]);
}

#[test]
fn a_guest_that_does_not_listen_yet_is_asked_again() {
    let long = "OK 111111111111111111111111111111111111111111111111111";
    let (dir, thread) = monitor(Box::leak(Box::new(["", "NO\n", long, "OK 5\n"])));
    connect_vsock_unix(
        &dir.path().join("vsock"),
        7,
        Instant::now() + Duration::from_secs(60),
    )
    .unwrap();
    assert_eq!(thread.join().unwrap().len(), 4);
}

#[test]
fn a_socket_that_never_appears_is_given_up_at_the_deadline() {
    let error = connect_unix(Path::new("/nonexistent/socket"), Instant::now()).unwrap_err();
    assert!(matches!(error, Error::Deadline(_)));
    let long = "x".repeat(200);
    let error =
        connect_unix(Path::new(&long), Instant::now() + Duration::from_secs(3600)).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
}
