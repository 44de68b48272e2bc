use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::muxer::MAX_HANDSHAKES;
use super::super::packet::{op, shutdown};
use super::super::table::MAX_CONNECTIONS;
use super::guest::*;

#[test]
fn a_host_program_connects_and_both_talk() {
    for event_idx in [true, false] {
        let mut guest = Guest::with(Setup {
            event_idx,
            ..Setup::default()
        });
        guest.assert_serves();
        assert_eq!(guest.device.metrics().connections, 1);
    }
}

#[test]
fn ok_comes_when_the_guest_has_accepted_and_not_before() {
    let mut guest = Guest::new();
    let mut stream = guest.dial(b"CONNECT 1024\n");
    let key = guest.expect_request(1024);
    // Another packet through the whole device: had it said OK too early, the line would be there now.
    guest.say(op::CREDIT_UPDATE, key);
    stream.set_nonblocking(true).unwrap();
    let early = stream.read(&mut [0; 16]);
    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    guest.say(op::RESPONSE, key);
    assert_eq!(read_line(&mut stream), format!("OK {}\n", key.0));
}

#[test]
fn bytes_behind_the_line_are_not_lost() {
    let mut guest = Guest::new();
    let mut stream = guest.dial(b"CONNECT 9\nhello\nCONNECT 10\n");
    let key = guest.expect_request(9);
    guest.say(op::RESPONSE, key);
    assert_eq!(guest.expect_data(key, 17), b"hello\nCONNECT 10\n");
    assert_eq!(read_line(&mut stream), format!("OK {}\n", key.0));
}

#[test]
fn a_line_may_come_byte_by_byte_and_written_otherwise() {
    let mut guest = Guest::new();
    let mut stream = patient(UnixStream::connect(guest.path()).unwrap());
    for byte in b"connect \t 4294967295 \n" {
        stream.write_all(&[*byte]).unwrap();
    }
    guest.expect_request(u32::MAX);
}

#[test]
fn malformed_lines_are_refused() {
    let mut guest = Guest::new();
    let lines: [&[u8]; 14] = [
        b"\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 0x10\n",
        b"CONNECT 1 2\n",
        b"CONNECT1\n",
        b"DISCONNECT 1\n",
        b"GET / HTTP/1.1\r\n",
        b"CONNECT \xFF\n",
        b"\0\0\0\0\n",
        // One byte too long, and without an end in sight.
        b"CONNECT                        1\n",
        &[b'C'; 5000],
    ];
    for line in lines {
        let mut stream = patient(UnixStream::connect(guest.path()).unwrap());
        // The device may have closed it before all is written.
        let _ = stream.write_all(line);
        assert_eof(&mut stream);
    }
    assert_eq!(guest.device.metrics().refused, lines.len() as u64);
    assert_eq!(guest.try_receive(), None);
    guest.assert_serves();
}

#[test]
fn a_line_that_never_ends_is_refused_when_its_sender_closes() {
    let mut guest = Guest::new();
    let mut stream = guest.dial(b"CONNECT 10");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eof(&mut stream);
    guest.assert_serves();
}

#[test]
fn a_silent_host_program_is_turned_away_in_time_and_hinders_nobody() {
    let mut setup = Setup::default();
    setup.timeouts.handshake = Duration::from_millis(1);
    let guest = Guest::with(setup);
    let mut silent: Vec<_> = (0..10).map(|_| guest.dial(b"CONN")).collect();
    for stream in &mut silent {
        assert_eof(stream);
    }
    assert_eq!(guest.device.metrics().refused, 10);

    let mut guest = Guest::new();
    let _silent: Vec<_> = (0..10).map(|_| guest.dial(b"CONN")).collect();
    guest.assert_serves();
}

#[test]
fn pending_handshakes_are_bounded_and_the_others_wait() {
    let mut guest = Guest::new();
    let mut silent: Vec<_> = (0..MAX_HANDSHAKES).map(|_| guest.dial(b"")).collect();
    // Nobody sees this one yet.
    let mut late = guest.dial(b"CONNECT 5\n");
    // The first of the silent ones speaks and makes room.
    silent[0].write_all(b"CONNECT 4\n").unwrap();
    assert_eq!(guest.expect_request(4).1, 4);
    let key = guest.expect_request(5);
    guest.say(op::RESPONSE, key);
    assert_eq!(read_line(&mut late), format!("OK {}\n", key.0));
}

#[test]
fn a_refused_connection_is_closed() {
    let mut guest = Guest::new();
    let mut stream = guest.dial(b"CONNECT 1024\n");
    let key = guest.expect_request(1024);
    guest.say(op::RST, key);
    assert_eof(&mut stream);
    guest.assert_serves();
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut setup = Setup::default();
    setup.timeouts.request = Duration::from_millis(1);
    let mut guest = Guest::with(setup);
    let mut stream = guest.dial(b"CONNECT 1024\n");
    let key = guest.expect_request(1024);
    guest.expect(op::RST, key);
    assert_eof(&mut stream);
    // Too late: the connection is unknown.
    guest.say(op::RESPONSE, key);
    guest.expect(op::RST, key);
}

#[test]
fn a_host_program_that_goes_before_the_guest_answers_is_reset() {
    let mut guest = Guest::new();
    let stream = guest.dial(b"CONNECT 1024\n");
    let key = guest.expect_request(1024);
    drop(stream);
    guest.expect(op::RST, key);
    guest.assert_serves();
}

#[test]
fn the_guest_reaches_who_listens_on_its_port_and_nobody_else() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut stream = guest.connect(&listener, (80, 5000));
    guest.data((80, 5000), b"request");
    let mut bytes = [0; 7];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"request");
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.expect_data((80, 5000), 6), b"answer");
    // Same guest port, other host port: another connection.
    guest.request((81, 5000));
    guest.expect(op::RST, (81, 5000));
    guest.data((80, 5000), b"more");
    stream.read_exact(&mut bytes[..4]).unwrap();
    assert_eq!(&bytes[..4], b"more");
}

#[test]
fn a_listener_with_a_full_backlog_is_a_refusal_and_no_wait() {
    let mut guest = Guest::new();
    let path = guest.dir.path().join("v_80");
    let _listener = backlog_of_none(&path);
    let mut refused = None;
    for port in 0..16 {
        guest.request((80, port));
        let (header, _) = guest.receive();
        if header.op == op::RST {
            refused = Some(port);
            break;
        }
    }
    assert!(refused.is_some(), "16 connections fitted a backlog of 0");
    guest.assert_serves();
}

/// A listener that holds as few connections as there can be.
fn backlog_of_none(path: &std::path::Path) -> std::os::unix::net::UnixListener {
    use std::os::fd::AsRawFd;
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    // SAFETY: no memory is involved; listening again changes the backlog.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    listener
}

#[test]
fn connections_are_bounded_and_ports_are_not_used_twice() {
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut streams = Vec::new();
    let mut ports = std::collections::HashSet::new();
    for i in 0..MAX_CONNECTIONS as u32 {
        if i % 2 == 0 {
            let (stream, key) = guest.accept(1024);
            assert!(key.0 >= 1 << 30);
            assert!(ports.insert(key.0), "port {} was given twice", key.0);
            streams.push(stream);
        } else {
            streams.push(guest.connect(&listener, (80, i)));
        }
    }
    let mut one_more = guest.dial(b"CONNECT 1024\n");
    assert_eof(&mut one_more);
    guest.request((80, 5000));
    guest.expect(op::RST, (80, 5000));
    assert_eq!(guest.device.metrics().refused, 2);
    // One goes, one comes.
    guest.say_with(op::SHUTDOWN, (80, 1), shutdown::BOTH);
    guest.expect(op::RST, (80, 1));
    guest.assert_serves();
    // All the others work.
    for stream in &mut streams {
        stream.set_nonblocking(true).unwrap();
    }
    for i in (3..MAX_CONNECTIONS as u32).step_by(2) {
        guest.data((80, i), &i.to_le_bytes());
        let mut bytes = [0; 4];
        streams[i as usize].read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), i);
    }
}
