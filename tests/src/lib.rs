//! The end-to-end tests drive fief as a user does: the release binaries, a state directory, the command line.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

pub mod memory;
pub mod terminal;
pub mod waiting;

/// The root of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are one folder below the root")
}

/// A release binary of ours; `make test` builds them before it runs the tests.
///
/// # Panics
/// It is not there.
pub fn binary(name: &str) -> PathBuf {
    let path = checkout()
        .join("target/x86_64-unknown-linux-gnu/release")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing: run `make build` first",
        path.display()
    );
    path
}

/// Where the emulated rig keeps images, the emulated host and its disk; kept between runs, so that a second run does
/// not build Debian again.
pub fn state_directory() -> PathBuf {
    std::env::var_os("FIEF_TEST_STATE")
        .map_or_else(|| checkout().join("target/test-state"), PathBuf::from)
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// The standard output without the last line end, of a command that succeeded.
    ///
    /// # Panics
    /// It did not succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code,
            Some(0),
            "stdout: {}\nstderr: {}",
            self.out,
            self.err
        );
        self.out.trim_end().to_owned()
    }

    /// The error text of a command that failed with `code`.
    ///
    /// # Panics
    /// It ended otherwise.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(
            self.code,
            Some(code),
            "stdout: {}\nstderr: {}",
            self.out,
            self.err
        );
        self.err
    }
}

/// A `fief` command line on the emulated host of the test state directory.
pub fn fief<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(binary("fief"));
    command
        .args(arguments)
        .env("FIEF_STATE_DIR", state_directory())
        .env("FIEF_HOST", "emulated");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs `fief` with the words of `line` (split at white space; for arguments with spaces take [`fief`]).
///
/// # Panics
/// It cannot be started, or hangs.
pub fn run(line: &str) -> Said {
    host();
    waiting::output(fief(line.split_whitespace())).into()
}

/// Runs `fief` with the words of `line`, then `last` as one more argument: a shell script, say.
///
/// # Panics
/// It cannot be started, or hangs.
pub fn run_with(line: &str, last: &str) -> Said {
    host();
    waiting::output(fief(line.split_whitespace().chain([last]))).into()
}

/// Starts `fief` with the words of `line`, its stdin a pipe.
///
/// # Panics
/// It cannot be started.
pub fn spawn(line: &str) -> Child {
    host();
    fief(line.split_whitespace())
        .stdin(Stdio::piped())
        .spawn()
        .expect("fief starts")
}

/// Feeds `input` to a started command and waits for its end.
///
/// # Panics
/// The command cannot be waited for.
pub fn feed(mut child: Child, input: Vec<u8>) -> Output {
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let writer = std::thread::spawn(move || {
        // A command that ends early closes its end; its exit code tells the test.
        let _ = stdin.write_all(&input);
    });
    let output = waiting::end_of(child, "a command that is fed");
    writer.join().expect("the writer ends");
    output
}

/// Makes sure once that the emulated host runs and that the images are there.
///
/// # Panics
/// It does not start.
pub fn host() {
    static HOST: OnceLock<()> = OnceLock::new();
    HOST.get_or_init(|| {
        Said::from(waiting::output(fief(["host", "start"]))).ok();
    });
}

/// Runs a shell script as root in the emulated host itself.
pub fn in_host(script: &str) -> Said {
    run_with("host exec -- sh -c", script)
}
