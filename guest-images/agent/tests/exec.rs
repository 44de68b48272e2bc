//! Commands, run by a real agent with real programs.

mod common;

use std::io::{BufRead, BufReader, Read, Write};

use common::{Agent, output, shell};
use fief_agent_proto::{Error, ErrorKind, ExecRequest, ExitStatus, WindowSize};

#[test]
fn output_and_exit_code_come_back_apart() {
    let agent = Agent::start();
    let connection = agent.connect();
    let (status, out, err) = connection
        .exec(&shell("echo out; echo err >&2; exit 7"))
        .unwrap()
        .output()
        .unwrap();
    assert_eq!(
        (status, out.as_slice(), err.as_slice()),
        (ExitStatus::Code(7), &b"out\n"[..], &b"err\n"[..])
    );
}

#[test]
fn a_signal_that_ended_it_is_reported_as_one() {
    let agent = Agent::start();
    let (status, ..) = agent
        .connect()
        .exec(&shell("kill -TERM $$"))
        .unwrap()
        .output()
        .unwrap();
    assert_eq!((status, status.shell_code()), (ExitStatus::Signal(15), 143));
}

#[test]
fn what_cannot_be_started_is_told_as_docker_does() {
    let agent = Agent::start();
    let connection = agent.connect();
    let code = |request: &ExecRequest| connection.exec(request).unwrap_err().shell_code();
    assert_eq!(code(&ExecRequest::new(["no-such-program"])), 127);
    assert_eq!(code(&ExecRequest::new(["/no/such/program"])), 127);
    assert_eq!(code(&ExecRequest::new(["/etc/passwd"])), 126);
    assert_eq!(code(&ExecRequest::new(["/etc"])), 126);
    assert_eq!(code(&ExecRequest::new([""])), 125);
    let nowhere = ExecRequest {
        cwd: Some("/no/such/directory".into()),
        ..shell("true")
    };
    assert_eq!(code(&nowhere), 125);
    let nobody = ExecRequest {
        user: Some("no-such-user".into()),
        ..shell("true")
    };
    let Err(Error::Remote(error)) = connection.exec(&nobody) else {
        panic!("started")
    };
    assert_eq!(error.kind, ErrorKind::NoSuchUser);
    let long = ExecRequest::new(["echo".to_owned(), "x".repeat(40_000)]);
    assert!(matches!(connection.exec(&long), Err(Error::TooLong { .. })));
    assert_eq!(agent.children(), Vec::<String>::new());
}

#[test]
fn environment_directory_and_user_are_those_asked_for() {
    let agent = Agent::start();
    let connection = agent.connect();
    let request = ExecRequest {
        env: vec![
            ("GREETING".into(), "hello  world".into()),
            ("PATH".into(), "/bin:/usr/bin".into()),
        ],
        cwd: Some("/tmp".into()),
        ..shell("printf '%s|' \"$GREETING\" \"$PATH\" \"$PWD\" \"$TERM\"")
    };
    let (_, out, _) = connection.exec(&request).unwrap().output().unwrap();
    assert_eq!(out, b"hello  world|/bin:/usr/bin|/tmp||");
    if nix::unistd::Uid::effective().is_root() {
        let request = ExecRequest {
            user: Some("65534:12".into()),
            ..shell("id -u; id -g; id -G; cd; pwd")
        };
        let (_, out, _) = connection.exec(&request).unwrap().output().unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.starts_with("65534\n12\n12\n"), "{out}");
    }
}

#[test]
fn stdin_is_passed_on_and_its_end_too() {
    let agent = Agent::start();
    let connection = agent.connect();
    let request = ExecRequest {
        stdin: true,
        ..shell("cat; echo done")
    };
    let mut process = connection.exec(&request).unwrap();
    let mut stdin = process.take_stdin().unwrap();
    stdin.write_all(b"some text ").unwrap();
    drop(stdin);
    let (status, out, _) = process.output().unwrap();
    assert_eq!(
        (status, out.as_slice()),
        (ExitStatus::Code(0), &b"some text done\n"[..])
    );
    // Without stdin it is at its end from the beginning.
    assert_eq!(output(&connection, "cat; echo none"), "none\n");
}

#[test]
fn a_writer_notices_that_the_command_does_not_read_any_more() {
    let agent = Agent::start();
    let connection = agent.connect();
    let request = ExecRequest {
        stdin: true,
        ..shell("exec <&-; echo closed; exec cat /dev/zero")
    };
    let mut process = connection.exec(&request).unwrap();
    let mut stdin = process.take_stdin().unwrap();
    let error = loop {
        if let Err(error) = stdin.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[test]
fn a_reader_that_goes_away_ends_the_writer_by_sigpipe() {
    let agent = Agent::start();
    let connection = agent.connect();
    let mut process = connection
        .exec(&ExecRequest::new(["cat", "/dev/zero"]))
        .unwrap();
    let mut first = [1; 16];
    process
        .take_stdout()
        .unwrap()
        .read_exact(&mut first)
        .unwrap();
    assert_eq!(first, [0; 16]);
    assert_eq!(process.wait().unwrap(), ExitStatus::Signal(libc::SIGPIPE));
}

#[test]
fn a_terminal_has_its_size_echo_and_signals() {
    let agent = Agent::start();
    let connection = agent.connect();
    let script = "stty size; echo $TERM; trap 'stty size; exit 5' WINCH; echo ready; while :; do read line; done";
    let size = |rows, columns| WindowSize { rows, columns };
    let request = ExecRequest {
        tty: Some(size(30, 100)),
        stdin: true,
        ..shell(script)
    };
    let mut process = connection.exec(&request).unwrap();
    assert!(process.take_stderr().is_none());
    let mut lines = BufReader::new(process.take_stdout().unwrap())
        .lines()
        .map(|line| line.unwrap());
    let mut next = || lines.next().unwrap();
    assert_eq!(
        (next().as_str(), next().as_str(), next().as_str()),
        ("30 100", "xterm", "ready")
    );
    let mut stdin = process.take_stdin().unwrap();
    stdin.write_all(b"typed\n").unwrap();
    assert_eq!(next(), "typed");
    process.remote().resize(size(40, 90)).unwrap();
    // The shell runs its trap between two lines.
    stdin.write_all(b"\n").unwrap();
    let rest: Vec<String> = std::iter::from_fn(|| lines.next()).collect();
    assert!(rest.contains(&"40 90".to_owned()), "{rest:?}");
    assert_eq!(process.wait().unwrap(), ExitStatus::Code(5));
}

#[test]
fn ctrl_c_on_a_terminal_interrupts_the_foreground_program() {
    let agent = Agent::start();
    let connection = agent.connect();
    let request = ExecRequest {
        tty: Some(WindowSize {
            rows: 24,
            columns: 80,
        }),
        stdin: true,
        ..shell("echo up; exec cat")
    };
    let mut process = connection.exec(&request).unwrap();
    let mut lines = BufReader::new(process.take_stdout().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    process.take_stdin().unwrap().write_all(b"\x03").unwrap();
    assert_eq!(process.wait().unwrap(), ExitStatus::Signal(libc::SIGINT));
}

#[test]
fn the_end_of_stdin_ends_what_reads_a_terminal() {
    let agent = Agent::start();
    let connection = agent.connect();
    let request = ExecRequest {
        tty: Some(WindowSize {
            rows: 24,
            columns: 80,
        }),
        stdin: true,
        ..shell("stty -echo; cat; echo end")
    };
    let mut process = connection.exec(&request).unwrap();
    process.take_stdin().unwrap().write_all(b"line\n").unwrap();
    let (status, out, _) = process.output().unwrap();
    assert_eq!(status, ExitStatus::Code(0));
    assert!(String::from_utf8_lossy(&out).ends_with("end\r\n"));
}

#[test]
fn a_signal_reaches_the_whole_process_group() {
    let agent = Agent::start();
    let connection = agent.connect();
    let mut process = connection
        .exec(&shell("sleep 1000 & echo $!; wait"))
        .unwrap();
    let mut lines = BufReader::new(process.take_stdout().unwrap()).lines();
    let sleeper = lines.next().unwrap().unwrap();
    process.remote().signal(libc::SIGTERM).unwrap();
    assert_eq!(process.wait().unwrap(), ExitStatus::Signal(libc::SIGTERM));
    // The channel ends only when the sleeper has gone too, or after the silence; then look.
    assert!(lines.next().is_none());
    assert!(is_gone(&sleeper));
}

/// Waits until a process has ended (or is a zombie of somebody else).
fn is_gone(pid: &str) -> bool {
    let deadline = common::deadline();
    while std::time::Instant::now() < deadline {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.is_empty() || stat.contains(") Z ") {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn a_descendant_that_keeps_stdout_does_not_hold_up_the_exit() {
    let agent = Agent::start();
    let connection = agent.connect();
    let (status, out, _) = connection
        .exec(&shell("sleep 1000 & echo $!; echo out; exit 3"))
        .unwrap()
        .output()
        .unwrap();
    let out = String::from_utf8(out).unwrap();
    let (sleeper, rest) = out.split_once('\n').unwrap();
    assert_eq!((status, rest), (ExitStatus::Code(3), "out\n"));
    output(&connection, &format!("kill {sleeper}"));
}

#[test]
fn all_output_written_before_the_exit_arrives_even_if_a_descendant_stays() {
    let agent = Agent::start();
    let connection = agent.connect();
    let script = "sleep 1000 & echo $! >&2; head -c 3000000 /dev/zero";
    let (status, out, err) = connection.exec(&shell(script)).unwrap().output().unwrap();
    assert_eq!((status, out.len()), (ExitStatus::Code(0), 3_000_000));
    output(
        &connection,
        &format!("kill {}", String::from_utf8(err).unwrap().trim()),
    );
}

#[test]
fn dropping_a_process_ends_it_and_its_group() {
    let agent = Agent::start();
    let connection = agent.connect();
    let mut process = connection
        .exec(&shell("trap '' HUP; sleep 1000 & echo $!; wait"))
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.take_stdout().unwrap())
        .read_line(&mut line)
        .unwrap();
    drop(process);
    assert!(is_gone(line.trim()));
    connection.ping().unwrap();
}

#[test]
fn a_thousand_short_commands_leave_nothing_behind() {
    let agent = Agent::start();
    let connection = agent.connect();
    assert_eq!(output(&connection, "echo warm"), "warm\n");
    let before = (agent.descriptors(), agent.resident_kib());
    for number in 0..1000 {
        let (status, out, _) = connection
            .exec(&ExecRequest::new(["echo", &number.to_string()]))
            .unwrap()
            .output()
            .unwrap();
        assert_eq!(
            (status, out),
            (ExitStatus::Code(0), format!("{number}\n").into_bytes())
        );
    }
    assert_eq!(agent.descriptors(), before.0);
    assert_eq!(agent.children(), Vec::<String>::new());
    assert!(
        agent.resident_kib() < before.1 + 1024,
        "{} KiB, then {}",
        before.1,
        agent.resident_kib()
    );
}
