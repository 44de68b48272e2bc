use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::*;
use crate::{
    AgentHello, Channel, ErrorKind, ExitStatus, InitMode, RemoteError, VERSION, WINDOW,
    preamble_reply,
};

/// An agent played by the test: does the handshake, then hands the socket over.
fn with_agent<T>(
    agent: impl FnOnce(UnixStream, Decoder) + Send,
    client: impl FnOnce(Result<Connection>) -> T,
) -> T {
    with_hello(
        AgentHello {
            version: VERSION,
            agent: "test".into(),
            init: InitMode::Program,
            problem: None,
        },
        agent,
        client,
    )
}

fn with_hello<T>(
    hello: AgentHello,
    agent: impl FnOnce(UnixStream, Decoder) + Send,
    client: impl FnOnce(Result<Connection>) -> T,
) -> T {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut decoder = Decoder::for_client_bytes();
            let mut theirs = theirs;
            let Inbound::Preamble(nonce) = next(&mut theirs, &mut decoder) else { panic!("no preamble") };
            // What a session before this one left in the pipe.
            theirs.write_all(b"rest of an old frame FIEF\0agent-ready").unwrap();
            theirs.write_all(&preamble_reply(&nonce)).unwrap();
            assert!(matches!(next(&mut theirs, &mut decoder), Inbound::Frame(frame) if frame.kind == Kind::Hello));
            say(&mut theirs, &Frame::json(0, Kind::Hello, &hello).unwrap());
            agent(theirs, decoder);
        });
        client(Connection::open(
            ours,
            Instant::now() + Duration::from_secs(60),
        ))
    })
}

fn next(stream: &mut UnixStream, decoder: &mut Decoder) -> Inbound {
    loop {
        if let Some(inbound) = decoder.event() {
            return inbound;
        }
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "the client has gone");
        decoder.push(&bytes[..count]);
    }
}

fn frame(stream: &mut UnixStream, decoder: &mut Decoder) -> Frame {
    match next(stream, decoder) {
        Inbound::Frame(frame) => frame,
        other => panic!("{other:?}"),
    }
}

fn say(stream: &mut UnixStream, frame: &Frame) {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).unwrap();
}

fn start(stream: &mut UnixStream, decoder: &mut Decoder) -> u32 {
    let id = frame(stream, decoder).stream;
    say(
        stream,
        &Frame::json(id, Kind::Started, &Started { pid: 1 }).unwrap(),
    );
    id
}

fn exec(connection: &Connection) -> Result<Process> {
    connection.exec(&ExecRequest {
        stdin: true,
        ..ExecRequest::new(["x"])
    })
}

#[test]
fn a_command_gives_output_and_status() {
    let agent = |mut stream: UnixStream, mut decoder: Decoder| {
        let id = start(&mut stream, &mut decoder);
        say(&mut stream, &Frame::data(id, Channel::Out, b"out".to_vec()));
        say(&mut stream, &Frame::data(id, Channel::Err, b"err".to_vec()));
        say(
            &mut stream,
            &Frame::json(id, Kind::Exited, &ExitStatus::Code(3)).unwrap(),
        );
        // An agent outlives its commands: it still takes what the client says of the channels it has read.
        let _ = stream.read_to_end(&mut Vec::new());
    };
    let (status, out, err) = with_agent(agent, |connection| {
        exec(&connection.unwrap()).unwrap().output().unwrap()
    });
    assert_eq!(
        (status, &out[..], &err[..]),
        (ExitStatus::Code(3), &b"out"[..], &b"err"[..])
    );
}

#[test]
fn a_boot_problem_and_another_version_are_errors_of_opening() {
    let hello = |version, problem| AgentHello {
        version,
        agent: "test".into(),
        init: InitMode::Agent,
        problem,
    };
    let broken = hello(VERSION, Some("no drive".into()));
    let error = with_hello(broken, |_, _| (), |connection| connection.unwrap_err());
    assert!(matches!(error, Error::Boot(problem) if problem == "no drive"));
    let error = with_hello(
        hello(VERSION + 1, None),
        |_, _| (),
        |connection| connection.unwrap_err(),
    );
    assert!(
        matches!(error, Error::Version { agent, client } if agent == VERSION + 1 && client == VERSION)
    );
}

#[test]
fn data_beyond_the_window_ends_the_session() {
    let agent = |mut stream: UnixStream, mut decoder: Decoder| {
        let id = start(&mut stream, &mut decoder);
        for _ in 0..=WINDOW as usize / MAX_PAYLOAD {
            say(
                &mut stream,
                &Frame::data(id, Channel::Out, vec![0; MAX_PAYLOAD]),
            );
        }
        // Until the client hangs up.
        while stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    };
    let error = with_agent(agent, |connection| {
        let connection = connection.unwrap();
        exec(&connection).unwrap().wait().unwrap_err()
    });
    assert!(matches!(error, Error::Protocol(_)), "{error}");
}

#[test]
fn a_frame_of_the_wrong_side_ends_the_session() {
    let agent = |mut stream: UnixStream, mut decoder: Decoder| {
        start(&mut stream, &mut decoder);
        say(&mut stream, &Frame::empty(1, Kind::Ping));
        while stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
    };
    let error = with_agent(agent, |connection| {
        let connection = connection.unwrap();
        let error = exec(&connection).unwrap().wait().unwrap_err();
        // Later requests fail alike instead of waiting.
        assert!(connection.ping().is_err());
        error
    });
    assert!(
        matches!(error, Error::Frame(FrameError::Direction(Kind::Ping))),
        "{error}"
    );
}

#[test]
fn a_lost_connection_ends_every_wait() {
    let agent = |mut stream: UnixStream, mut decoder: Decoder| {
        start(&mut stream, &mut decoder);
        start(&mut stream, &mut decoder);
    };
    with_agent(agent, |connection| {
        let connection = connection.unwrap();
        let (first, mut second) = (exec(&connection).unwrap(), exec(&connection).unwrap());
        assert!(second.take_stdout().unwrap().read(&mut [0; 8]).is_err());
        assert!(matches!(first.wait(), Err(Error::Lost(_))));
        assert!(matches!(second.wait(), Err(Error::Lost(_))));
    });
}

#[test]
fn stdin_waits_for_credit_and_its_end_is_counted() {
    let agent = |mut stream: UnixStream, mut decoder: Decoder| {
        let id = start(&mut stream, &mut decoder);
        let mut received = 0u64;
        while received < u64::from(WINDOW) {
            received += frame(&mut stream, &mut decoder).payload.len() as u64;
        }
        assert_eq!(received, u64::from(WINDOW));
        say(&mut stream, &Frame::credit(id, Channel::In, 10));
        assert_eq!(frame(&mut stream, &mut decoder).payload.len(), 10);
        let end = frame(&mut stream, &mut decoder);
        assert_eq!(
            (end.kind, end.eof_count()),
            (Kind::Eof, Some(u64::from(WINDOW) + 10))
        );
        say(
            &mut stream,
            &Frame::json(id, Kind::Exited, &ExitStatus::Code(0)).unwrap(),
        );
    };
    with_agent(agent, |connection| {
        let connection = connection.unwrap();
        let mut process = exec(&connection).unwrap();
        let mut stdin = process.take_stdin().unwrap();
        stdin.write_all(&vec![1; WINDOW as usize + 10]).unwrap();
        drop(stdin);
        assert!(process.wait().unwrap().success());
    });
}

#[test]
fn a_refused_command_tells_why() {
    let agent = |mut stream: UnixStream, mut decoder: Decoder| {
        let id = frame(&mut stream, &mut decoder).stream;
        let error = RemoteError {
            kind: ErrorKind::CommandNotFound,
            message: "no x".into(),
        };
        say(&mut stream, &Frame::json(id, Kind::Error, &error).unwrap());
    };
    let error = with_agent(agent, |connection| exec(&connection.unwrap()).unwrap_err());
    assert_eq!(
        (error.shell_code(), error.to_string().as_str()),
        (127, "no x")
    );
}

#[test]
fn an_agent_that_does_not_know_a_request_is_an_error_and_no_wait() {
    // What an agent says of a kind of frame that it has never heard of.
    let agent = |mut stream: UnixStream, mut decoder: Decoder| {
        assert_eq!(frame(&mut stream, &mut decoder).kind, Kind::Provide);
        let error = RemoteError {
            kind: ErrorKind::Protocol,
            message: FrameError::Kind(15).to_string(),
        };
        say(&mut stream, &Frame::json(0, Kind::Error, &error).unwrap());
    };
    let error = with_agent(agent, |connection| {
        connection
            .unwrap()
            .provide(&crate::Provide::default())
            .unwrap_err()
    });
    assert!(
        error.to_string().contains("unknown frame kind 15"),
        "{error}"
    );
}

#[test]
fn an_agent_that_never_answers_is_given_up_at_the_deadline() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert!(matches!(
        Connection::open(ours, Instant::now()),
        Err(Error::Deadline(_))
    ));
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert!(matches!(
        Connection::open_serial(ours, Instant::now()),
        Err(Error::Deadline(_))
    ));
}
