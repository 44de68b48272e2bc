//! Standard input and output through `fief exec`.

use std::process::Child;

use fief_tests::waiting::until;
use fief_tests::{feed, run, spawn};

use super::backend::Backend;

/// Bytes that do not repeat in any period of a buffer (a 64-bit linear congruential generator, Knuth's constants).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
    }
    bytes.truncate(length);
    bytes
}

both!(a_stream_of_256_mib_comes_back_as_it_went);
fn a_stream_of_256_mib_comes_back_as_it_went(backend: Backend) {
    let _tenant = backend.start("stream", "--image busybox --memory 512M");
    let sent = noise(256 << 20);
    let output = feed(spawn("exec -i stream -- cat"), sent.clone());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.stdout == sent,
        "{} of {} bytes came back, or other ones",
        output.stdout.len(),
        sent.len()
    );
}

both!(eight_commands_at_once_do_not_wait_for_one_that_is_blocked);
fn eight_commands_at_once_do_not_wait_for_one_that_is_blocked(backend: Backend) {
    let tenant = backend.start("eight", "--image busybox");
    // Its output fills its window and nobody reads it; its input never comes.
    let mut blocked = spawn("exec -i eight -- sh -c yes");
    let others: Vec<Child> = (0..7)
        .map(|number| spawn(&format!("exec -i eight -- echo {number}")))
        .collect();
    for (number, other) in others.into_iter().enumerate() {
        let output = feed(other, Vec::new());
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{number}\n")
        );
    }
    assert!(
        blocked.try_wait().unwrap().is_none(),
        "the blocked command ended by itself"
    );
    blocked.kill().unwrap();
    blocked.wait().unwrap();
    // Its client is gone: the agent ends the command.
    until("the command ends", || {
        (tenant.sh("pidof yes").code == Some(1)).then_some(())
    });
}

both!(the_end_of_stdin_reaches_the_command_while_its_output_goes_on);
fn the_end_of_stdin_reaches_the_command_while_its_output_goes_on(backend: Backend) {
    let _tenant = backend.start("half", "--image busybox");
    let output = feed(spawn("exec -i half -- wc -c"), noise(100_000));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "100000");
    assert_eq!(
        run("exec half -- cat").ok(),
        "",
        "without -i there is no stdin"
    );
}
