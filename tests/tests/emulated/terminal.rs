//! Terminals and signals, as docker has them.

use std::io::{BufRead, BufReader};
use std::process::Child;

use fief_tests::terminal::Terminal;
use fief_tests::{fief, run, spawn, waiting};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::backend::Backend;
use super::traces::traces;

/// Starts `line` with `script` as its last argument in a terminal of 33 rows and 101 columns.
fn in_terminal(line: &str, script: &str) -> Terminal {
    fief_tests::host();
    let script = Some(script).filter(|script| !script.is_empty());
    Terminal::start(fief(line.split_whitespace().chain(script)), 33, 101)
}

both!(a_command_has_a_terminal_of_this_ones_size_its_keys_and_its_resizes);
fn a_command_has_a_terminal_of_this_ones_size_its_keys_and_its_resizes(backend: Backend) {
    let tenant = backend.start("tty", "--kernel micro --image busybox");
    assert_eq!(tenant.sh("tty").code, Some(1), "no terminal without -t");
    let script = "trap 'echo caught; exit 9' INT; trap 'echo now $(stty size)' WINCH
                  tty; stty size; read line; echo got $line; while :; do sleep 0.2; done";
    let mut terminal = in_terminal("exec -it tty -- sh -c", script);
    terminal.shows("/dev/pts/");
    terminal.shows("33 101");
    terminal.types("some keys\n");
    // Once as they are typed, by the terminal; once as the command got them.
    terminal.shows("some keys");
    terminal.shows("got some keys");
    terminal.resize(44, 90);
    terminal.shows("now 44 90");
    terminal.types("\x03");
    terminal.shows("caught");
    let (status, _) = terminal.end();
    assert_eq!(status.code(), Some(9));
}

both!(a_shell_is_a_login_shell_in_a_terminal);
fn a_shell_is_a_login_shell_in_a_terminal(backend: Backend) {
    let _tenant = backend.start("shell", "--kernel micro --image busybox");
    let mut terminal = in_terminal("shell shell", "");
    terminal.types("echo size:$(stty size) login:$0 home:$PWD\n");
    terminal.shows("size:33 101 login:");
    terminal.shows("home:/root");
    terminal.types("exit 3\n");
    assert_eq!(terminal.end().0.code(), Some(3));
    // Fed by a pipe, it reads its commands from there.
    let output = fief_tests::feed(spawn("shell shell"), b"tty; echo piped\nexit 4\n".to_vec());
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("not a tty") && said.contains("piped"),
        "{said}"
    );
}

/// A one-shot tenant that runs `script` in the foreground, once it has said "up".
struct Foreground {
    name: &'static str,
    child: Child,
    said: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Foreground {
    fn start(backend: Backend, name: &'static str, script: &str) -> Self {
        run(&format!("rm -f {name}"));
        let line =
            format!("run --rm {backend} --name {name} --kernel micro --image busybox -- sh -c");
        let mut child = fief(line.split_whitespace().chain([script]))
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut started = Self { name, child, said };
        started.says("up");
        started
    }

    #[track_caller]
    fn says(&mut self, what: &str) {
        match self.said.next() {
            Some(Ok(line)) => assert_eq!(line, what),
            other => panic!("{other:?}, not {what}"),
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// The exit code, once it has ended and there is no trace of the tenant.
    fn ends(self, before: &[String]) -> Option<i32> {
        let code = waiting::end_of(self.child, "a one-shot tenant")
            .status
            .code();
        let mut left = Vec::new();
        waiting::until("nothing is left of the tenant", || {
            left = traces(self.name);
            (left == before).then_some(())
        });
        code
    }
}

both!(a_run_that_is_asked_to_end_ends_its_command_and_its_tenant);
fn a_run_that_is_asked_to_end_ends_its_command_and_its_tenant(backend: Backend) {
    fief_tests::host();
    let before = traces("signalled");
    let running = Foreground::start(backend, "signalled", "echo up; exec sleep 1000");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.ends(&before), Some(128 + 15));

    // A command that does not mind is ended at the third request.
    let script = "trap 'echo no' INT; echo up; while :; do sleep 0.2; done";
    let mut stuck = Foreground::start(backend, "signalled", script);
    for _ in 0..2 {
        stuck.signal(Signal::SIGINT);
        stuck.says("no");
    }
    stuck.signal(Signal::SIGINT);
    assert_eq!(stuck.ends(&before), Some(128 + 9));

    // Nobody is asked when fief itself is killed.
    let killed = Foreground::start(backend, "signalled", "echo up; exec sleep 1000");
    killed.signal(Signal::SIGKILL);
    assert_eq!(killed.ends(&before), None);
}
