//! Volume, concurrency and files, with a real agent.

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use common::{Agent, output, shell};
use fief_agent_proto::{
    Error, ErrorKind, ExecRequest, ExitStatus, ReadFile, Shutdown, ShutdownAction, Terminals,
    WriteFile, pump,
};
use sha2::{Digest, Sha256};

/// Bytes that repeat nowhere near.
fn pattern(chunk: u64) -> Vec<u8> {
    let mut state = chunk.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..8192).flat_map(|_| next().to_le_bytes()).collect()
}

#[test]
fn a_quarter_gigabyte_through_cat_comes_back_unchanged() {
    let agent = Agent::start();
    let connection = agent.connect();
    let mut process = connection
        .exec(&ExecRequest {
            stdin: true,
            ..ExecRequest::new(["cat"])
        })
        .unwrap();
    let (mut stdin, mut stdout) = (
        process.take_stdin().unwrap(),
        process.take_stdout().unwrap(),
    );
    let writer = std::thread::spawn(move || {
        let mut hash = Sha256::new();
        for chunk in 0..4096 {
            let bytes = pattern(chunk);
            hash.update(&bytes);
            stdin.write_all(&bytes).unwrap();
        }
        hash.finalize()
    });
    let (mut hash, mut bytes, mut total) = (Sha256::new(), vec![0; 65536], 0);
    loop {
        let count = stdout.read(&mut bytes).unwrap();
        if count == 0 {
            break;
        }
        hash.update(&bytes[..count]);
        total += count;
    }
    assert_eq!(total, 256 << 20);
    assert_eq!(hash.finalize(), writer.join().unwrap());
    assert_eq!(process.wait().unwrap(), ExitStatus::Code(0));
    // Windows bound what the agent held meanwhile.
    assert!(
        agent.resident_kib() < 8 * 1024,
        "{} KiB",
        agent.resident_kib()
    );
}

#[test]
fn eight_commands_at_once_go_on_while_one_is_blocked() {
    let agent = Agent::start();
    let connection = agent.connect();
    // Nobody reads this one's output, and it does not read its input: both windows fill.
    let request = ExecRequest {
        stdin: true,
        ..shell("cat /dev/zero")
    };
    let mut blocked = connection.exec(&request).unwrap();
    let mut never_read = blocked.take_stdin().unwrap();
    std::thread::scope(|scope| {
        let filler = scope.spawn(move || while never_read.write_all(&[0; 4096]).is_ok() {});
        let workers: Vec<_> = (0..7)
            .map(|number| {
                let connection = &connection;
                scope.spawn(move || {
                    for _ in 0..20 {
                        let out = output(
                            connection,
                            &format!("head -c 300000 /dev/zero | tr '\\0' {number}"),
                        );
                        assert!(
                            out.len() == 300_000 && out.bytes().all(|byte| byte == b'0' + number)
                        );
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
        assert!(!blocked.remote().is_ended());
        blocked.remote().signal(libc::SIGKILL).unwrap();
        drop(blocked.take_stdout());
        assert_eq!(blocked.wait().unwrap(), ExitStatus::Signal(9));
        filler.join().unwrap();
    });
}

#[test]
fn the_pump_connects_a_command_to_descriptors() {
    let agent = Agent::start();
    let connection = agent.connect();
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..40).flat_map(pattern).collect();
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("in"), &content).unwrap();
    let (stdin, stdout, stderr) = (
        std::fs::File::open(file("in")).unwrap(),
        std::fs::File::create(file("out")).unwrap(),
        std::fs::File::create(file("err")).unwrap(),
    );
    use std::os::fd::AsFd;
    let terminals = Terminals {
        stdin: Some(stdin.as_fd()),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
    };
    let request = ExecRequest {
        stdin: true,
        ..shell("tee /dev/stderr; exit 4")
    };
    let status = pump(connection.exec(&request).unwrap(), terminals).unwrap();
    assert_eq!(status, ExitStatus::Code(4));
    assert_eq!(std::fs::read(file("out")).unwrap(), content);
    assert_eq!(std::fs::read(file("err")).unwrap(), content);
}

#[test]
fn the_pump_ends_although_nobody_closes_its_stdin_and_stdout_is_broken() {
    let agent = Agent::start();
    let connection = agent.connect();
    use std::os::fd::AsFd;
    let (never_written, keep) = nix::unistd::pipe().unwrap();
    let (gone, broken) = nix::unistd::pipe().unwrap();
    drop(gone);
    let terminals = Terminals {
        stdin: Some(never_written.as_fd()),
        stdout: broken.as_fd(),
        stderr: broken.as_fd(),
    };
    let request = ExecRequest {
        stdin: true,
        ..ExecRequest::new(["cat", "/dev/zero"])
    };
    let status = pump(connection.exec(&request).unwrap(), terminals).unwrap();
    assert_eq!(status, ExitStatus::Signal(libc::SIGPIPE));
    drop(keep);
}

#[test]
fn a_file_goes_in_and_out_with_mode_and_content() {
    let agent = Agent::start();
    let connection = agent.connect();
    let content: Vec<u8> = (0..50).flat_map(pattern).collect();
    let path = agent.dir.path().join("a/b/file");
    let path = path.to_str().unwrap().to_owned();
    let request = WriteFile {
        path: path.clone(),
        mode: 0o751,
        owner: None,
        parents: true,
    };
    assert_eq!(
        connection.write_file(&request, &content[..]).unwrap(),
        content.len() as u64
    );
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o751
    );
    let mut back = Vec::new();
    let info = connection
        .read_file(&ReadFile { path: path.clone() }, &mut back)
        .unwrap();
    assert_eq!((info.size_bytes, info.mode), (content.len() as u64, 0o751));
    assert!(back == content);
    // An empty one over it.
    connection.write_file(&request, &b""[..]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"");
    assert_eq!(
        output(
            &connection,
            &format!("ls -A {}", agent.dir.path().join("a/b").display())
        ),
        "file\n"
    );
}

#[test]
fn files_that_cannot_be_are_refused_with_a_reason() {
    let agent = Agent::start();
    let connection = agent.connect();
    let write = |path: &str| {
        let request = WriteFile {
            path: path.into(),
            mode: 0o644,
            owner: None,
            parents: false,
        };
        match connection.write_file(&request, &[7; 1_000_000][..]) {
            Err(Error::Remote(error)) => error.kind,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(write("relative"), ErrorKind::BadRequest);
    assert_eq!(write("/dev/null"), ErrorKind::BadRequest);
    assert_eq!(write("/no/such/directory/file"), ErrorKind::NotFound);
    assert_eq!(write("/proc/file"), ErrorKind::NotFound);
    let read = |path: &str| match connection
        .read_file(&ReadFile { path: path.into() }, &mut std::io::sink())
    {
        Err(Error::Remote(error)) => error.kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(read("/no/such/file"), ErrorKind::NotFound);
    assert_eq!(read("/dev/zero"), ErrorKind::BadRequest);
    assert_eq!(read("/etc"), ErrorKind::BadRequest);
    connection.ping().unwrap();
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    struct Failing(u32);
    impl Read for Failing {
        fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            if self.0 > 5 {
                Err(std::io::Error::other("no more"))
            } else {
                Ok(bytes.len())
            }
        }
    }
    let agent = Agent::start();
    let connection = agent.connect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file").to_str().unwrap().to_owned();
    let request = WriteFile {
        path,
        mode: 0o644,
        owner: None,
        parents: false,
    };
    assert!(matches!(
        connection.write_file(&request, Failing(0)),
        Err(Error::Io { .. })
    ));
    connection.ping().unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn stats_and_shutdown_answer() {
    let mut agent = Agent::start();
    let connection = agent.connect();
    let stats = connection.stats().unwrap();
    assert!(stats.uptime_seconds > 0.0 && stats.cpus > 0 && stats.processes > 0);
    assert!(stats.memory_total_bytes > stats.memory_available_bytes && stats.disk.total_bytes > 0);
    let mut process = connection
        .exec(&shell("trap '' HUP TERM; while :; do read line || :; done"))
        .unwrap();
    connection
        .shutdown(Shutdown {
            action: ShutdownAction::Poweroff,
            force: false,
        })
        .unwrap();
    assert!(matches!(process.wait(), Err(Error::Lost(_))));
    drop(process.take_stdout());
    assert!(agent.wait().success());
    assert!(!agent.socket().exists());
}
