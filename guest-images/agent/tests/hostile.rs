//! Clients that break the rules or vanish, directly and through a relay.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Agent, deadline, output, shell};
use fief_agent_proto::{
    Channel, ClientHello, Connection, Error, ErrorKind, ExecRequest, ExitStatus, Frame, HEADER_LEN,
    Kind, MAX_PAYLOAD, MAX_STREAMS, VERSION, connect_unix, handshake, preamble, relay,
};

/// A session without the library: whatever bytes the test likes.
fn raw(socket: &Path) -> UnixStream {
    let mut stream = connect_unix(socket, deadline()).unwrap();
    stream.write_all(&preamble(&[1; 16])).unwrap();
    send(
        &mut stream,
        &Frame::json(0, Kind::Hello, &ClientHello { version: VERSION }).unwrap(),
    );
    stream
}

fn send(stream: &mut UnixStream, frame: &Frame) {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    // The other side may have hung up on an earlier frame.
    let _ = stream.write_all(&bytes);
}

/// Reads until the other side hangs up.
fn hangs_up(mut stream: UnixStream) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return true,
            Ok(_) => {}
        }
    }
}

/// An agent with a relay before it.
struct Relayed {
    // Dropped first: it ends the relay.
    stop: Option<UnixStream>,
    thread: Option<std::thread::JoinHandle<fief_agent_proto::Result<()>>>,
    agent: Agent,
    socket: PathBuf,
}

impl Relayed {
    fn start() -> Relayed {
        let agent = Agent::start();
        let session = handshake(
            connect_unix(&agent.socket(), deadline()).unwrap(),
            deadline(),
        )
        .unwrap();
        let socket = agent.dir.path().join("relay");
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || relay(session, listener, stopped));
        Relayed {
            stop: Some(stop),
            thread: Some(thread),
            agent,
            socket,
        }
    }

    fn connect(&self) -> Connection {
        Connection::open(connect_unix(&self.socket, deadline()).unwrap(), deadline()).unwrap()
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

/// Waits until the agent has no children left.
fn no_children(agent: &Agent) -> bool {
    let end = deadline();
    while std::time::Instant::now() < end {
        if agent.children().is_empty() {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

fn bad_sessions() -> Vec<Vec<u8>> {
    let encoded = |frames: &[Frame]| {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        bytes
    };
    let exec = Frame::json(
        1,
        Kind::Exec,
        &ExecRequest {
            stdin: true,
            ..shell("cat")
        },
    )
    .unwrap();
    let mut too_long = encoded(&[Frame::data(1, Channel::In, vec![1])]);
    too_long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    vec![
        vec![0xff; 64],
        vec![0; HEADER_LEN],
        too_long,
        encoded(&[Frame {
            stream: 1,
            kind: Kind::Exited,
            channel: Channel::In,
            payload: vec![],
        }]),
        encoded(&[Frame::json(0, Kind::Hello, &ClientHello { version: VERSION }).unwrap()]),
        encoded(&[exec.clone(), exec]),
        encoded(&[Frame {
            stream: 0,
            kind: Kind::Ping,
            channel: Channel::In,
            payload: vec![],
        }]),
        preamble(&[2; 16])
            .into_iter()
            .chain(encoded(&[Frame::empty(1, Kind::Ping)]))
            .collect(),
    ]
}

#[test]
fn a_malformed_frame_ends_its_session_and_nothing_else() {
    let agent = Agent::start();
    let bystander = agent.connect();
    for bytes in bad_sessions() {
        let mut stream = raw(&agent.socket());
        stream.write_all(&bytes).unwrap();
        assert!(hangs_up(stream));
        bystander.ping().unwrap();
    }
    assert!(no_children(&agent));
}

#[test]
fn a_relay_drops_a_malformed_client_and_nobody_else() {
    let relayed = Relayed::start();
    let bystander = relayed.connect();
    for bytes in bad_sessions() {
        let mut stream = raw(&relayed.socket);
        let _ = stream.write_all(&bytes);
        assert!(hangs_up(stream));
        bystander.ping().unwrap();
    }
    assert!(no_children(&relayed.agent));
}

#[test]
fn random_frames_never_harm_the_agent_or_the_relay() {
    let relayed = Relayed::start();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    };
    for round in 0..200 {
        let direct = round % 2 == 0;
        let mut stream = raw(&if direct {
            relayed.agent.socket()
        } else {
            relayed.socket.clone()
        });
        for _ in 0..random(30) {
            let mut bytes = vec![0; HEADER_LEN];
            bytes[0] = random(4) as u8;
            // Every kind a client has, except those that would end or change the test's machine.
            bytes[4] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 0][random(13) as usize];
            bytes[5] = random(4).saturating_sub(random(2)) as u8;
            let exec = serde_json::to_vec(&ExecRequest {
                stdin: true,
                ..shell("cat; cat /dev/zero")
            })
            .unwrap();
            let payload = match random(5) {
                0 => exec,
                1 => vec![],
                2 => random(u64::MAX).to_le_bytes()[..4].to_vec(),
                3 => random(u64::MAX).to_le_bytes().to_vec(),
                _ => vec![random(256) as u8; random(MAX_PAYLOAD as u64) as usize],
            };
            bytes[8..].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
            bytes.extend(payload);
            if stream.write_all(&bytes).is_err() {
                break;
            }
        }
    }
    // Both still serve, and what the vanished clients started has gone.
    assert_eq!(output(&relayed.connect(), "echo fine"), "fine\n");
    assert_eq!(output(&relayed.agent.connect(), "echo fine"), "fine\n");
    assert!(no_children(&relayed.agent));
    assert!(
        relayed.agent.resident_kib() < 32 * 1024,
        "{} KiB",
        relayed.agent.resident_kib()
    );
}

#[test]
fn windows_that_are_overrun_end_the_stream_with_an_error() {
    let agent = Agent::start();
    let overrun = |frames: &dyn Fn(&mut UnixStream)| {
        let mut stream = raw(&agent.socket());
        send(
            &mut stream,
            &Frame::json(
                1,
                Kind::Exec,
                &ExecRequest {
                    stdin: true,
                    ..shell("sleep 1000")
                },
            )
            .unwrap(),
        );
        frames(&mut stream);
        // After the error, the session still answers.
        send(&mut stream, &Frame::empty(2, Kind::Ping));
        let mut decoder = fief_agent_proto::Decoder::for_agent_bytes();
        let (mut bytes, mut skipped) = ([0; 4096], 0);
        let mut ends = Vec::new();
        while ends.len() < 2 {
            let count = stream.read(&mut bytes).unwrap();
            assert!(count > 0);
            // The answer to the preamble comes before the first frame.
            let skip = (32 - skipped).min(count);
            skipped += skip;
            decoder.push(&bytes[skip..count]);
            while let Some(fief_agent_proto::Inbound::Frame(frame)) = decoder.event() {
                if frame.kind.ends() {
                    ends.push((frame.stream, frame.kind));
                }
            }
        }
        assert_eq!(ends, [(1, Kind::Error), (2, Kind::Done)]);
    };
    overrun(&|stream| {
        for _ in 0..40 {
            send(stream, &Frame::data(1, Channel::In, vec![0; MAX_PAYLOAD]));
        }
    });
    overrun(&|stream| send(stream, &Frame::credit(1, Channel::Out, 1)));
    overrun(&|stream| send(stream, &Frame::credit(1, Channel::Err, u32::MAX)));
    overrun(&|stream| send(stream, &Frame::eof_counted(1, 5)));
    assert!(no_children(&agent));
}

#[test]
fn a_client_that_is_killed_mid_stream_leaves_nothing_behind() {
    for through_relay in [false, true] {
        let relayed = Relayed::start();
        let before = relayed.agent.descriptors();
        let socket = if through_relay {
            relayed.socket.clone()
        } else {
            relayed.agent.socket()
        };
        let mut stream = raw(&socket);
        let request = ExecRequest {
            stdin: true,
            ..shell("trap '' HUP; cat /dev/zero & sleep 1000")
        };
        send(&mut stream, &Frame::json(1, Kind::Exec, &request).unwrap());
        // Once output flows both processes run.
        let mut bytes = vec![0; 100_000];
        stream.read_exact(&mut bytes).unwrap();
        let mut half = Vec::new();
        Frame::data(1, Channel::In, vec![0; MAX_PAYLOAD]).encode(&mut half);
        stream.write_all(&half[..100]).unwrap();
        drop(stream);
        assert!(no_children(&relayed.agent));
        let connection = relayed.connect();
        assert_eq!(output(&connection, "echo fine"), "fine\n");
        assert_eq!(relayed.agent.descriptors(), before);
    }
}

#[test]
fn many_clients_share_a_relay_without_mixing() {
    let relayed = Relayed::start();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let relayed = &relayed;
            scope.spawn(move || {
                for round in 0..10 {
                    let connection = relayed.connect();
                    let request = ExecRequest {
                        stdin: true,
                        ..shell("cat; exit 5")
                    };
                    let mut process = connection.exec(&request).unwrap();
                    let mut stdin = process.take_stdin().unwrap();
                    let text = vec![b'a' + number; 400_000 + round];
                    let expected = text.clone();
                    let writer = scope.spawn(move || stdin.write_all(&text).unwrap());
                    let (status, out, _) = process.output().unwrap();
                    writer.join().unwrap();
                    assert_eq!(status, ExitStatus::Code(5));
                    assert!(out == expected);
                }
            });
        }
    });
}

#[test]
fn a_client_that_does_not_read_does_not_hold_up_others_on_the_relay() {
    let relayed = Relayed::start();
    let mut lazy = raw(&relayed.socket);
    for id in 1..=20 {
        send(
            &mut lazy,
            &Frame::json(id, Kind::Exec, &ExecRequest::new(["cat", "/dev/zero"])).unwrap(),
        );
    }
    let connection = relayed.connect();
    for _ in 0..20 {
        assert_eq!(
            output(&connection, "head -c 500000 /dev/zero | wc -c").trim(),
            "500000"
        );
    }
    drop(lazy);
    assert!(no_children(&relayed.agent));
}

#[test]
fn a_client_that_grants_credit_without_reading_harms_nobody() {
    let relayed = Relayed::start();
    let mut greedy = raw(&relayed.socket);
    send(
        &mut greedy,
        &Frame::json(1, Kind::Exec, &ExecRequest::new(["cat", "/dev/zero"])).unwrap(),
    );
    // The relay drops it, or the agent ends its stream when the credit comes before the data: either way it ends.
    for _ in 0..20_000 {
        send(&mut greedy, &Frame::credit(1, Channel::Out, 32 * 1024));
    }
    assert!(no_children(&relayed.agent));
    assert_eq!(output(&relayed.connect(), "echo fine"), "fine\n");
}

#[test]
fn more_streams_than_the_limit_are_refused_and_the_others_go_on() {
    let agent = Agent::start();
    let connection = agent.connect();
    let request = ExecRequest {
        stdin: true,
        ..ExecRequest::new(["cat"])
    };
    let running: Vec<_> = (0..MAX_STREAMS)
        .map(|_| connection.exec(&request).unwrap())
        .collect();
    let Err(Error::Remote(error)) = connection.exec(&request) else {
        panic!("started")
    };
    assert_eq!(error.kind, ErrorKind::Limit);
    for mut process in running {
        drop(process.take_stdin());
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(output(&connection, "echo again"), "again\n");
}

#[test]
fn an_agent_without_descriptors_left_waits_idly_and_then_serves() {
    let agent = Agent::start();
    drop(agent.connect());
    let limit = |soft: usize| {
        let pid = agent.pid().to_string();
        let limit = format!("--nofile={soft}:1024");
        let done = Command::new("prlimit")
            .args(["--pid", &pid, &limit])
            .status();
        assert!(done.unwrap().success());
    };
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        // utime and stime (proc_pid_stat(5)), 100 in a second.
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // It has more open already.
    limit(3);
    let before = ticks();
    let waiting = connect_unix(&agent.socket(), deadline()).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks() - before;
    assert!(
        spent < 20,
        "{spent} ticks of 100 in which nothing was to be done"
    );
    limit(1024);
    let connection = Connection::open(waiting, deadline()).unwrap();
    assert_eq!(output(&connection, "echo served"), "served\n");
}
