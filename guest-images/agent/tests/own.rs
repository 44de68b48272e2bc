//! The agent's own program, run by a real agent: the inner half of `fief cp`.

mod common;

use std::fs;
use std::io::{Read, Write};

use common::Agent;
use fief_agent_proto::{ExecRequest, ExitStatus};

fn own(words: &[&str]) -> ExecRequest {
    ExecRequest {
        own: true,
        ..ExecRequest::new(words.iter().copied())
    }
}

#[test]
fn a_tree_is_packed_and_unpacked_by_the_agent_itself() {
    let agent = Agent::start();
    let connection = agent.connect();
    let tree = agent.dir.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    let content: Vec<u8> = (0..=255).cycle().take(2_000_000).collect();
    fs::write(tree.join("sub/file"), &content).unwrap();
    let path = tree.to_str().unwrap();
    let packing = connection.exec(&own(&["--pack", path])).unwrap();
    let (status, stream, remarks) = packing.output().unwrap();
    assert_eq!((status, &remarks[..]), (ExitStatus::Code(0), &b""[..]));
    let copy = agent.dir.path().join("copy");
    let words = ["--unpack", "itself", "root", copy.to_str().unwrap(), "tree"];
    let mut request = own(&words);
    request.stdin = true;
    let mut unpacking = connection.exec(&request).unwrap();
    let mut stdin = unpacking.take_stdin().unwrap();
    stdin.write_all(&stream).unwrap();
    drop(stdin);
    assert_eq!(unpacking.wait().unwrap(), ExitStatus::Code(0));
    assert_eq!(fs::read(copy.join("sub/file")).unwrap(), content);
}

#[test]
fn what_fails_is_the_last_line_of_stderr() {
    let agent = Agent::start();
    let connection = agent.connect();
    let (status, out, err) = connection
        .exec(&own(&["--pack", "/no/such/file"]))
        .unwrap()
        .output()
        .unwrap();
    assert_eq!((status, &out[..]), (ExitStatus::Code(1), &b""[..]));
    let err = String::from_utf8(err).unwrap();
    assert!(
        err.trim_end()
            .ends_with("No such file or directory (os error 2)"),
        "{err}"
    );
    let mut request = own(&["--unpack", "stream", "root", "/no/such/directory", ""]);
    request.stdin = true;
    let mut unpacking = connection.exec(&request).unwrap();
    drop(unpacking.take_stdin());
    let mut said = String::new();
    let mut stderr = unpacking.take_stderr().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    assert_eq!(unpacking.wait().unwrap(), ExitStatus::Code(1));
    assert!(said.contains("make it first"), "{said}");
    // The control: an ordinary program of that name is none of the agent's.
    assert!(connection.exec(&ExecRequest::new(["--pack", "/"])).is_err());
}
