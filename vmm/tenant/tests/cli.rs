//! The real binary, where no virtual machine is needed: bad input, listings, several commands at once, killed commands.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// A state directory with an image `tiny` in it.
    fn with_image() -> Self {
        let rig = Self::new();
        let root = rig.path("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "content").unwrap();
        rig.succeeds(&format!("images import tiny {}", root.display()));
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn fief<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fief"));
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
            .env("FIEF_STATE_DIR", self.path("state"))
            .env("FIEF_HOST", "native");
        command.env_remove("FIEF_VMM").env_remove("FIEF_AGENT");
        command
    }

    fn run(&self, line: &str) -> Output {
        self.fief(line.split_whitespace()).output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Fails as fief does: its own code, one line that holds `words`, nothing on standard output.
    #[track_caller]
    fn refuses(&self, line: &str, words: &[&str]) {
        let output = self.run(line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{line}: {said}");
        assert!(output.stdout.is_empty(), "{line}");
        assert!(
            said.starts_with("fief: ") && said.lines().count() == 1,
            "{line}: {said}"
        );
        for word in words {
            assert!(said.contains(word), "{line}: no '{word}' in: {said}");
        }
    }

    fn tenants(&self) -> Vec<String> {
        let Ok(read) = fs::read_dir(self.path("state/tenants")) else {
            return Vec::new();
        };
        let mut names: Vec<_> = read
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn help_is_there_without_arguments_and_with_help() {
    let rig = Rig::new();
    for line in ["", "--help"] {
        let help = rig.succeeds(line);
        for word in ["run", "exec", "doctor", "demo", "Examples:"] {
            assert!(help.contains(word), "{line}: {help}");
        }
        assert!(!help.contains("shim") && !help.contains("keep"), "{help}");
    }
    assert!(rig.succeeds("run --help").contains("--memory"));
    assert_eq!(
        rig.succeeds("version").trim(),
        format!("fief {}", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn bad_names_sizes_and_numbers_are_refused_and_nothing_is_made() {
    let rig = Rig::with_image();
    for name in ["../bad", "a/b", "..", ".a", "A", "a..b"] {
        rig.refuses(
            &format!("run --name {name} --image tiny --net none -- true"),
            &[name, "a-z"],
        );
        rig.refuses(
            &format!("create {name} --image tiny --net none"),
            &[name, "a-z"],
        );
    }
    rig.refuses(
        "run --cpus 0 --image tiny --net none -- true",
        &["--cpus 0", "1 to 32"],
    );
    rig.refuses(
        "run --cpus 33 --image tiny --net none -- true",
        &["--cpus 33", "1 to 32"],
    );
    rig.refuses(
        "run --cpus 256 --image tiny --net none -- true",
        &["--cpus 256"],
    );
    rig.refuses("run --cpus -1 --image tiny --net none -- true", &["-1"]);
    rig.refuses(
        "run --memory 0 --image tiny --net none -- true",
        &["--memory", "at least"],
    );
    rig.refuses(
        "run --memory 900T --image tiny --net none -- true",
        &["--memory", "this machine has"],
    );
    rig.refuses(
        "run --memory many --image tiny --net none -- true",
        &["many", "512M"],
    );
    rig.refuses(
        "create a --disk 1 --image tiny --net none",
        &["disk", "16 MiB"],
    );
    rig.refuses(
        "create a --disk 100T --image tiny --net none",
        &["disk", "16 TiB"],
    );
    rig.refuses(
        "create a --hostname a.b --image tiny --net none",
        &["host name", "a.b"],
    );
    rig.refuses(
        "create a --image tiny --net none --init image",
        &["tiny", "init"],
    );
    assert!(rig.tenants().is_empty(), "{:?}", rig.tenants());
}

#[test]
fn the_emulated_host_counts_instructions_on_one_processor_only() {
    Rig::new().refuses("host start --icount --cpus 4", &["--icount", "--cpus"]);
}

#[test]
fn unknown_words_get_a_hint() {
    let rig = Rig::new();
    rig.refuses("run --memry 1G -- true", &["--memory"]);
    rig.refuses("run debian uname", &["debian", "--image debian --"]);
    rig.refuses("frobnicate", &["frobnicate", "--help"]);
    rig.refuses("exec a", &["COMMAND"]);
    rig.refuses("--host kvm ps", &["kvm", "native"]);
    rig.refuses("run -e =x -- true", &["=x", "NAME=VALUE"]);
}

#[test]
fn what_is_not_there_is_named() {
    let rig = Rig::with_image();
    for line in [
        "exec x -- true",
        "start x",
        "stop x",
        "kill x",
        "wait x",
        "rm x",
        "rm -f x",
        "logs x",
        "inspect x",
        "shell x",
    ] {
        rig.refuses(line, &["'x'", "fief ps -a"]);
    }
    rig.refuses("run --image nowhere -- true", &["nowhere", "tiny"]);
    rig.refuses("run --image ./nowhere -- true", &["./nowhere"]);
    rig.refuses("images rm nowhere", &["nowhere"]);
    rig.refuses(
        "run --image tiny --net none --kernel /no/kernel -- true",
        &["/no/kernel"],
    );
    rig.refuses("setup --image tiny", &["tiny", "fief images import"]);
    rig.refuses(
        "setup --kernel tiny",
        &["tiny", "debian, debian-full, tuned, micro"],
    );
    rig.refuses("host exec -- true", &["fief host start"]);
    assert!(rig.tenants().is_empty());
}

#[test]
fn a_terminal_is_asked_for_in_dockers_words() {
    Rig::new().refuses("run -it -- sh", &["the input device is not a TTY"]);
    Rig::new().refuses("exec -t x -- sh", &["the input device is not a TTY"]);
}

#[test]
fn a_truncated_image_is_noticed_before_a_tenant_is_made() {
    let rig = Rig::with_image();
    let listed: Value = serde_json::from_str(&rig.succeeds("images --json")).unwrap();
    let artifact = listed[0]["artifact"].as_str().unwrap();
    let image = rig
        .path("state/images/artifacts")
        .join(artifact)
        .join("root.img");
    fs::set_permissions(&image, fs::Permissions::from_mode(0o600)).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(100)
        .unwrap();
    rig.refuses(
        "create a --image tiny --net none",
        &["100 bytes", "damaged"],
    );
    assert!(rig.tenants().is_empty());
    assert!(rig.succeeds("images").contains("damaged"));
}

#[test]
fn listings_are_tables_and_json() {
    let rig = Rig::with_image();
    assert_eq!(
        serde_json::from_str::<Value>(&rig.succeeds("ps -a --json")).unwrap(),
        serde_json::json!([])
    );
    rig.succeeds(
        "create alice --image tiny --net none --cpus 2 --memory 64M --disk 16M --user user",
    );
    rig.succeeds("create bob --image tiny --net none --disk 16M");
    assert_eq!(
        rig.succeeds("ps").lines().count(),
        1,
        "created tenants do not run"
    );
    let table = rig.succeeds("ps -a");
    let lines: Vec<_> = table.lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[0].contains("STATUS"),
        "{table}"
    );
    assert!(
        lines[1].starts_with("alice") && lines[1].contains("created"),
        "{table}"
    );
    assert!(lines[2].starts_with("bob"), "{table}");
    let json: Value = serde_json::from_str(&rig.succeeds("ps -a --json")).unwrap();
    assert_eq!(json[0]["name"], "alice");
    assert_eq!(json[0]["status"], "created");
    assert_eq!(json[0]["cpus"], 2);
    assert_eq!(json[0]["memory_bytes"], 64 << 20);
    let all: Value = serde_json::from_str(&rig.succeeds("inspect alice")).unwrap();
    assert_eq!(all["spec"]["user"], "user");
    assert_eq!(all["name"], "alice");
    let images: Value = serde_json::from_str(&rig.succeeds("images list --json")).unwrap();
    assert_eq!(images[0]["name"], "tiny");
    assert_eq!(images[0]["kind"], "image");
    let doctor: Value = serde_json::from_slice(&rig.run("doctor --json").stdout).unwrap();
    assert_eq!(doctor["host"]["kind"], "native");
    let host: Value = serde_json::from_str(&rig.succeeds("host status --json")).unwrap();
    assert_eq!(host["running"], false);
}

#[test]
fn a_tenant_that_does_not_run_says_so_and_can_be_removed() {
    let rig = Rig::with_image();
    rig.succeeds("create a --image tiny --net none --disk 16M");
    for line in ["exec a -- true", "stop a", "kill a", "wait a", "shell a"] {
        rig.refuses(line, &["not running", "fief start a"]);
    }
    rig.refuses(
        "create a --image tiny --net none --disk 16M",
        &["'a' is taken", "--name"],
    );
    rig.refuses("images rm tiny", &["'a'", "fief rm a"]);
    assert_eq!(rig.succeeds("logs a"), "");
    assert_eq!(rig.succeeds("rm a").trim(), "a");
    assert!(rig.tenants().is_empty());
    rig.succeeds("images rm tiny");
}

#[test]
fn an_image_that_was_made_anew_or_removed_stays_with_the_tenants_that_were_made_from_it() {
    let rig = Rig::with_image();
    let artifact_of = |tenant: &str| {
        let all: Value = serde_json::from_str(&rig.succeeds(&format!("inspect {tenant}"))).unwrap();
        let id = all["spec"]["artifact"].as_str().unwrap().to_owned();
        rig.path("state/images/artifacts").join(id)
    };
    let root = rig.path("root");
    rig.succeeds("create old --image tiny --net none --disk 16M");
    fs::write(root.join("file"), "other content").unwrap();
    rig.succeeds(&format!("images import tiny {}", root.display()));
    rig.succeeds("create new --image tiny --net none --disk 16M");
    let (old, new) = (artifact_of("old"), artifact_of("new"));
    assert_ne!(old, new);
    rig.succeeds("images rm -f tiny");
    assert!(old.exists() && new.exists());
    // Removing any image removes what nobody has.
    rig.succeeds("rm new");
    rig.succeeds(&format!("images import another {}", root.display()));
    fs::write(root.join("file"), "still other content").unwrap();
    rig.succeeds(&format!("images import another {}", root.display()));
    rig.succeeds("images rm another");
    assert!(old.exists() && !new.exists());
    fs::remove_dir_all(&old).unwrap();
    rig.refuses("start old", &["'old'", "tiny", "gone", "fief rm old"]);
    // What a tenant needs must be known before anything is removed.
    rig.succeeds(&format!("images import another {}", root.display()));
    fs::write(rig.path("state/tenants/old/spec.json"), "{").unwrap();
    rig.refuses("images rm another", &["spec.json", "fief rm -f"]);
}

#[test]
fn a_monitor_that_is_missing_leaves_no_tenant() {
    let rig = Rig::with_image();
    // A kernel of its own and no agent: the run ends before there is a tenant, and says at what.
    let kernel = rig.path("kernel");
    fs::write(&kernel, b"\x7fELF").unwrap();
    let mut run = rig.fief([
        "run",
        "--rm",
        "--net",
        "none",
        "--image",
        "tiny",
        "--kernel",
        kernel.to_str().unwrap(),
        "--",
        "true",
    ]);
    let output = run
        .env("FIEF_AGENT", "/no/such/agent")
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(rig.tenants().is_empty(), "{:?}", rig.tenants());
}

#[test]
fn of_many_that_want_one_name_one_gets_it_and_no_trace_of_the_others_is_left() {
    let rig = Rig::with_image();
    let line = [
        "create", "same", "--image", "tiny", "--disk", "16M", "--net", "none",
    ];
    let children: Vec<Child> = (0..8).map(|_| rig.fief(line).spawn().unwrap()).collect();
    let outputs: Vec<Output> = children
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    let won = outputs
        .iter()
        .filter(|output| output.status.success())
        .count();
    assert_eq!(won, 1);
    for output in outputs.iter().filter(|output| !output.status.success()) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("taken"), "{said}");
    }
    assert_eq!(rig.tenants(), ["same"]);
}

#[test]
fn commands_at_once_never_see_a_half_made_or_half_removed_tenant() {
    let rig = Rig::with_image();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let rig = &rig;
            scope.spawn(move || {
                for _ in 0..4 {
                    rig.succeeds(&format!(
                        "create t{number} --image tiny --net none --disk 16M"
                    ));
                    rig.succeeds(&format!("rm t{number}"));
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..12 {
                    let listed: Value =
                        serde_json::from_str(&rig.succeeds("ps -a --json")).unwrap();
                    for tenant in listed.as_array().unwrap() {
                        let name = tenant["name"].as_str().unwrap();
                        // Between the listing of a name and the look at it, the tenant may have been removed.
                        let there = rig
                            .path("state/tenants")
                            .join(name)
                            .join("spec.json")
                            .exists();
                        assert!(
                            tenant["status"] == "created"
                                || !there
                                || tenant["status"] == "damaged",
                            "{tenant}"
                        );
                    }
                }
            });
        }
    });
    assert!(rig.tenants().is_empty(), "{:?}", rig.tenants());
}

/// A `mke2fs` that tells that it was called, and then waits until it is let go.
struct Blocked {
    fief: Child,
    release: PathBuf,
}

impl Blocked {
    fn start(rig: &Rig, words: &[&str]) -> Self {
        let (called, release) = (rig.path("called"), rig.path("release"));
        for pipe in [&called, &release] {
            let _ = fs::remove_file(pipe);
            nix::unistd::mkfifo(pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let tools = rig.path("tools");
        fs::create_dir_all(&tools).unwrap();
        let script = format!(
            "#!/bin/sh\necho > {}\ncat < {} > /dev/null\n",
            called.display(),
            release.display()
        );
        fs::write(tools.join("mke2fs"), script).unwrap();
        fs::set_permissions(tools.join("mke2fs"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
        let fief = rig
            .fief(words.iter().copied())
            .env("PATH", path)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Blocks until the script writes.
        fs::File::open(&called)
            .unwrap()
            .read_to_end(&mut Vec::new())
            .unwrap();
        Self { fief, release }
    }

    /// The script ends when what this returns is dropped.
    #[must_use]
    fn kill(mut self) -> fs::File {
        self.fief.kill().unwrap();
        self.fief.wait().unwrap();
        // Opened for both directions, as the script may be gone with its parent: nobody waits for anybody.
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.release)
            .unwrap()
    }
}

#[test]
fn a_fief_that_is_killed_while_it_makes_a_tenant_leaves_nothing_after_the_next_command() {
    let rig = Rig::with_image();
    let blocked = Blocked::start(
        &rig,
        &[
            "create", "a", "--image", "tiny", "--disk", "16M", "--net", "none",
        ],
    );
    assert_eq!(rig.tenants().len(), 1, "it is in the midst of it");
    rig.succeeds("ps -a");
    assert_eq!(
        rig.tenants().len(),
        1,
        "another command leaves it alone while it lives"
    );
    let _script = blocked.kill();
    assert_eq!(rig.succeeds("ps -a").lines().count(), 1);
    assert!(rig.tenants().is_empty(), "{:?}", rig.tenants());
    rig.succeeds("create a --image tiny --net none --disk 16M");
}

#[test]
fn a_reader_that_goes_away_ends_a_listing_quietly() {
    let rig = Rig::with_image();
    let mut child = rig.fief(["images"]).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_shim_started_by_hand_says_who_starts_it() {
    let output = Rig::new().run("shim x");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by fief itself"));
}

#[test]
fn the_state_directory_may_be_relative_and_must_be_usable() {
    let rig = Rig::new();
    let mut command = rig.fief(["--state-dir", "here", "ps"]);
    assert!(
        command
            .current_dir(rig.directory.path())
            .output()
            .unwrap()
            .status
            .success()
    );
    assert!(rig.path("here/tenants").is_dir());
    let file = rig.path("file");
    fs::write(&file, "").unwrap();
    let output = rig
        .fief(["--state-dir", file.to_str().unwrap(), "ps"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("--state-dir") && said.contains(Path::new(&file).to_str().unwrap()),
        "{said}"
    );
}

#[test]
fn an_emulated_host_that_never_was_is_not_made_to_say_that_there_are_no_tenants() {
    let rig = Rig::new();
    let listed = rig.succeeds("--host emulated ps -a --json");
    assert_eq!(
        serde_json::from_str::<Value>(&listed).unwrap(),
        Value::Array(Vec::new())
    );
    let output = rig.run("--host emulated exec nobody -- true");
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("nobody"), "{text}");
    assert!(!rig.path("state/host/disk.ext4").exists());
}

#[test]
fn the_api_is_that_of_a_tenant_that_runs_and_a_request_is_whole() {
    let rig = Rig::with_image();
    rig.refuses("api nobody", &["nobody"]);
    rig.refuses("api nobody GET /", &["nobody"]);
    rig.succeeds("create idle --image tiny --net none");
    for line in ["api idle", "api idle GET /vm/config"] {
        rig.refuses(line, &["not running", "fief start idle"]);
    }
    assert!(!Path::new("idle.sock").exists());
    rig.refuses("api idle GET", &["PATH"]);
    rig.refuses("api idle --socket x GET /", &["--socket"]);
    assert_eq!(rig.succeeds("ports --json"), "[]\n");
}
