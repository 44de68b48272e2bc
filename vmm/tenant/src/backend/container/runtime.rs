//! The OCI runtime: the program that makes a container of a bundle. Whichever is installed; runc and crun are known.
//!
//! Their command line is the same (runc(8), crun(1)); [`Runtime::command`] adds what differs.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use fief_host::doctor::find_program;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Whence, geteuid, getpid, getppid, gettid, lseek};
use oci_spec::OciSpecError;

use super::bundle::{self, AGENT, Description, Group};
use super::cdi::Devices;
use super::ids::NOBODYS;
use super::namespaces::Namespaces;
use super::root::{self, RootError};
use crate::cgroup::{Version, hierarchies, mounts};
use crate::process::{self, Finished, elsewhere};
use crate::spec::Bytes;

/// The runtimes that are looked for, the one that starts a container sooner first (crun takes half of runc's time).
pub const KNOWN: [&str; 2] = ["crun", "runc"];

/// What a runtime's own words are cut to, in characters.
const WORDS_MAX: usize = 300;
/// What is read of a runtime's log or output, in bytes.
const OUTPUT_MAX: u64 = 64 << 10;
/// How long a trial, or the question for the version, may take; they take a fraction of a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose command line a runtime has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// runc's, which others follow.
    Runc,
    Crun,
}

/// An OCI runtime on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// As people call it: `crun`, or the path that was given.
    pub name: String,
    pub path: PathBuf,
    pub kind: Kind,
}

/// Why there is no runtime to use.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error(
        "no OCI runtime is installed: install one with `apt-get install crun` (or runc), or name one with --runtime PATH"
    )]
    NoneInstalled,
    #[error(
        "the OCI runtime `{0}` is not installed: install it with `apt-get install {0}`, or give its path with --runtime"
    )]
    NotInstalled(String),
    #[error("the OCI runtime {} is no executable file: give --runtime runc, crun or the path of one", .0.display())]
    NotExecutable(PathBuf),
}

/// Why a runtime could not make a container.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error("only root can try it: run fief as root")]
    NotRoot,
    #[error("the agent {}, which would run in it, is no executable file", .0.display())]
    NoAgent(PathBuf),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error("the bundle cannot be described: {0}")]
    Bundle(#[from] OciSpecError),
    /// Its own words.
    #[error("{0}")]
    Failed(String),
    #[error("its container printed {0:?} instead of the agent's version")]
    WrongOutput(String),
    #[error("it did not end within {} seconds", PATIENCE.as_secs())]
    TimedOut,
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> TrialError {
    move |source| TrialError::Io { what, source }
}

impl Runtime {
    /// The runtime with this name, or at this path if there is a slash in it.
    ///
    /// # Errors
    /// It is not there.
    pub fn named(name: &str) -> Result<Self, RuntimeError> {
        let path = if name.contains('/') {
            let path = PathBuf::from(name);
            if !is_executable(&path) {
                return Err(RuntimeError::NotExecutable(path));
            }
            std::path::absolute(&path).unwrap_or(path)
        } else {
            find_program(name).ok_or_else(|| RuntimeError::NotInstalled(name.to_owned()))?
        };
        Ok(Self {
            name: name.to_owned(),
            kind: Kind::of(&path),
            path,
        })
    }

    /// The known ones that are installed, the preferred first.
    pub fn installed() -> Vec<Self> {
        let known = KNOWN.into_iter();
        known.filter_map(|name| Self::named(name).ok()).collect()
    }

    /// The runtime that was asked for, or the first one installed. Neither is tried, which would take as long as the start
    /// that it is for.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn choose(asked: Option<&str>) -> Result<Self, RuntimeError> {
        match asked {
            Some(name) => Self::named(name),
            None => (Self::installed().into_iter().next()).ok_or(RuntimeError::NoneInstalled),
        }
    }

    /// What it says it is: `runc 1.1.5+ds1`.
    ///
    /// # Errors
    /// It cannot be started, fails, or does not end.
    pub fn version(&self) -> Result<String, TrialError> {
        let mut command = Command::new(&self.path);
        let (status, output, words) = finish(command.arg("--version"))?;
        if !status.success() {
            return Err(TrialError::Failed(ending(status, None, &words)));
        }
        let line = output.lines().next().unwrap_or_default();
        Ok(one_line(&line.replacen(" version ", " ", 1)))
    }

    /// A command of it, to be completed with `run`, `kill`, `delete` …. `state` is the directory where it remembers its
    /// containers; to `log` it adds what goes wrong, for [`reason`].
    pub fn command(&self, state: &Path, log: &Path) -> Command {
        let mut command = Command::new(&self.path);
        // Those are for whoever started fief (sd_notify(3), sd_listen_fds(3)). A runtime would take them for its container's:
        // wait for a message of readiness, or pass descriptors on.
        for name in [
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
        ] {
            command.env_remove(name);
        }
        command.arg("--root").arg(state);
        command.arg("--log").arg(log);
        command.args(["--log-format", "json"]);
        if self.kind == Kind::Crun {
            // runc uses systemd for cgroups only if it is told to, crun may be built to do so.
            command.args(["--cgroup-manager", "cgroupfs"]);
        }
        command
    }

    /// On a machine that has its cgroup controllers in version 1 and hierarchies of both, crun refuses to run as soon as
    /// version 2 has a controller. This takes version 2 away from the calling thread, which has mounts of its own.
    ///
    /// # Errors
    /// The thread shares its mounts with others; they are not its to change.
    pub fn settle_mounts(&self) -> io::Result<()> {
        if !self.needs_settling()? {
            return Ok(());
        }
        let all = mounts()?;
        if shares_mounts()? {
            return Err(io::Error::other(
                "this thread has no mounts of its own to settle for crun",
            ));
        }
        all.iter()
            .filter(|(version, _)| *version == Version::V2)
            .try_for_each(|(_, mount)| Ok(umount2(mount, MntFlags::MNT_DETACH)?))
    }

    /// Makes the runtime's file read-only in the calling thread's mounts, which it shares with nobody. A runtime sees to it that
    /// what runs in its containers cannot write to its own file (CVE-2019-5736): crun by a mount like this one, with which it
    /// starts itself a second time, and that is a fifth of its work. It finds it done. Where it cannot be done, the runtime does.
    pub fn protect(&self) {
        let none = None::<&str>;
        let on = |from, flags| mount(from, &self.path, none, flags, none);
        if on(Some(&self.path), MsFlags::MS_BIND).is_ok() {
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            let _ = on(None, read_only);
        }
    }

    fn needs_settling(&self) -> io::Result<bool> {
        Ok(self.kind == Kind::Crun && mounts()?.iter().any(|(version, _)| *version == Version::V1))
    }

    /// The same for a thread that shares its mounts: it gets some of its own first, if that is needed.
    ///
    /// # Errors
    /// No permission.
    pub fn settle_thread(&self) -> io::Result<()> {
        if self.needs_settling()? {
            private_mounts(self)
        } else {
            Ok(())
        }
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// A name that [`Runtime::named`] takes, for a process with another working directory: paths are made absolute.
///
/// # Errors
/// The working directory is gone, or its path is not UTF-8.
pub fn portable(name: &str) -> io::Result<String> {
    if !name.contains('/') {
        return Ok(name.to_owned());
    }
    let path = std::path::absolute(name)?.into_os_string();
    path.into_string().map_err(|path| {
        let path = path.display();
        io::Error::other(format!("the path of the OCI runtime, {path}, is not UTF-8"))
    })
}

/// Whether this thread has the mounts of the machine's first process, of this process's parent or of its first thread. One
/// that may not be looked at cannot be told.
fn shares_mounts() -> io::Result<bool> {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    let own = of("thread-self")?;
    let leader = if gettid() == getpid() { "1" } else { "self" };
    let others = ["1", leader, &getppid().to_string()];
    Ok(others
        .iter()
        .any(|other| of(other).is_ok_and(|other| other == own)))
}

impl Kind {
    /// By its file's name, or by that of the file which a link leads to.
    fn of(path: &Path) -> Self {
        let is_crun = |path: &Path| {
            let file = path.file_name().map(OsStr::to_string_lossy);
            file.is_some_and(|file| file.contains("crun"))
        };
        if is_crun(path) || path.canonicalize().is_ok_and(|path| is_crun(&path)) {
            Self::Crun
        } else {
            Self::Runc
        }
    }
}

const TRIAL_MEMORY: Bytes = Bytes::from_mib(64);
const TRIAL_PIDS: u64 = 64;

/// Makes a container as a tenant's is made, with nothing in it but `agent`, runs that and removes everything again.
///
/// # Errors
/// What does not work, for people.
pub fn try_out(runtime: &Runtime, agent: &Path) -> Result<(), TrialError> {
    if !is_executable(agent) {
        return Err(TrialError::NoAgent(agent.to_owned()));
    }
    if !geteuid().is_root() {
        return Err(TrialError::NotRoot);
    }
    let directory = tempfile::Builder::new()
        .prefix("fief-trial-")
        .tempdir()
        .map_err(failed("cannot make a directory for the trial"))?;
    // A directory's own random name: no two trials meet.
    let id = directory
        .path()
        .file_name()
        .unwrap_or_default()
        .to_os_string();
    let group = Path::new("/").join(&id);
    let result = elsewhere(|| {
        private_mounts(runtime).map_err(failed("cannot make mounts for the trial"))?;
        // As for a tenant: the container's users could not pass everybody's directory for temporary files.
        let place = root::place(&[agent, &runtime.path, directory.path()])?;
        root::cover(place)?;
        let namespaces =
            Namespaces::new(NOBODYS).map_err(failed("cannot make namespaces for the trial"))?;
        write_bundle(
            directory.path(),
            &place.join("root"),
            agent,
            &group,
            &namespaces,
        )?;
        run(runtime, directory.path(), &id)
    })
    .map_err(failed("cannot start a thread for the trial"))?;
    remove_groups(&group);
    result
}

/// Gives this thread mounts of its own that nobody else sees.
fn private_mounts(runtime: &Runtime) -> io::Result<()> {
    root::own_mounts()?;
    runtime.settle_mounts()
}

fn write_bundle(
    directory: &Path,
    root: &Path,
    agent: &Path,
    group: &Path,
    namespaces: &Namespaces,
) -> Result<(), TrialError> {
    let make = || -> io::Result<()> {
        // The container's root is nobody in it: the places of mounts must be there.
        for path in ["", "proc", "sys", "dev", "run"] {
            DirBuilder::new().mode(0o755).create(root.join(path))?;
        }
        Ok(())
    };
    make().map_err(failed("cannot make a root for the trial"))?;
    let version = mounts()
        .ok()
        .and_then(|all| all.first().map(|(version, _)| *version));
    let hierarchies = hierarchies().unwrap_or_default().into_iter();
    let mut spec = bundle::spec(&Description {
        root,
        agent,
        image: None,
        words: Vec::new(),
        hostname: "trial",
        ids: NOBODYS,
        namespaces: &namespaces.paths(),
        group: version.map(|version| Group {
            path: group.display().to_string(),
            version,
            controllers: hierarchies.flat_map(|one| one.controllers).collect(),
        }),
        memory: TRIAL_MEMORY,
        pids: TRIAL_PIDS,
        devices: &Devices::default(),
        nodes: &[],
    })?;
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(false));
        process.set_args(Some(vec![AGENT.to_owned(), "--version".to_owned()]));
    }
    bundle::write(&spec, directory).map_err(failed("cannot write the bundle"))
}

fn run(runtime: &Runtime, directory: &Path, id: &OsStr) -> Result<(), TrialError> {
    let (state, log) = (directory.join("state"), directory.join("log"));
    let mut command = runtime.command(&state, &log);
    let finished = finish(command.arg("run").arg("--bundle").arg(directory).arg(id));
    if !matches!(&finished, Ok((status, ..)) if status.success()) {
        // What it began is taken back; mostly it did so itself.
        let _ = finish(
            runtime
                .command(&state, &log)
                .args(["delete", "--force"])
                .arg(id),
        );
    }
    let (status, output, words) = finished?;
    let logged = File::open(&log).ok().map(|file| text(&file));
    if !status.success() {
        return Err(TrialError::Failed(ending(
            status,
            logged.as_deref(),
            &words,
        )));
    }
    if !output.starts_with("fief-agent ") {
        return Err(TrialError::WrongOutput(one_line(&output)));
    }
    Ok(())
}

/// Whatever a runtime left of `group`, in each hierarchy.
fn remove_groups(group: &Path) {
    let Ok(name) = group.strip_prefix("/") else {
        return;
    };
    for (_, mount) in mounts().unwrap_or_default() {
        // Only directories without a process or a group in them go.
        let _ = fs::remove_dir(mount.join(name));
    }
}

/// Runs a command to its end: how it ended, and what it printed on standard output and error. Files take that, so that
/// nothing it starts can keep the reader waiting.
fn finish(command: &mut Command) -> Result<(ExitStatus, String, String), TrialError> {
    let file = || tempfile::tempfile().map_err(failed("cannot make a file for a runtime's output"));
    let (output, words) = (file()?, file()?);
    let clone = |file: &File| {
        file.try_clone()
            .map_err(failed("cannot use a descriptor twice"))
    };
    command
        .stdin(Stdio::null())
        .stdout(clone(&output)?)
        .stderr(clone(&words)?);
    match process::finish(command, PATIENCE, None).map_err(failed("cannot run it"))? {
        Finished::With(status) => Ok((status, text(&output), text(&words))),
        Finished::TooLate | Finished::GivenUp => Err(TrialError::TimedOut),
    }
}

/// The beginning of a file, or what is in a pipe whose writers are gone.
pub fn text(mut file: &File) -> String {
    let mut bytes = Vec::new();
    let _ = lseek(file, 0, Whence::SeekSet);
    let _ = file.by_ref().take(OUTPUT_MAX).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Why it failed, or at least how.
pub fn ending(status: ExitStatus, log: Option<&str>, words: &str) -> String {
    reason(log.unwrap_or_default(), words)
        .unwrap_or_else(|| format!("it ended with {status} and said nothing"))
}

/// What went wrong, in a runtime's own words: the last error of its log (`--log-format json`), else the last line that it
/// printed on standard error. None if it said nothing. One line, bounded, without control characters: a part of it may
/// come out of a tenant's image.
fn reason(log: &str, standard_error: &str) -> Option<String> {
    let mut errors = log.lines().filter_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let level = entry.get("level")?.as_str()?;
        let message = entry.get("msg")?.as_str()?;
        matches!(level, "error" | "fatal" | "panic").then(|| message.to_owned())
    });
    let last = || {
        let mut lines = standard_error.lines().rev();
        lines
            .find(|line| !line.trim().is_empty())
            .map(str::to_owned)
    };
    let words = errors.next_back().or_else(last)?;
    let words = one_line(&words);
    // What every failure of runc begins with tells nothing.
    let plain = [
        "runc run failed: ",
        "runc create failed: ",
        "unable to start container process: ",
        "error during container init: ",
    ]
    .iter()
    .fold(words.as_str(), |words, prefix| {
        words.strip_prefix(prefix).unwrap_or(words)
    });
    (!plain.is_empty()).then(|| plain.to_owned())
}

fn one_line(words: &str) -> String {
    let clean = words
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    clean.take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(directory: &Path, name: &str, text: &str) -> Runtime {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Runtime::named(path.to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_path_names_an_executable_file_and_its_name_whose_command_line_it_has() {
        let directory = tempfile::tempdir().unwrap();
        let kinds = ["crun", "crun-1.20", "runc", "youki"]
            .map(|name| script(directory.path(), name, "").kind);
        assert_eq!(kinds, [Kind::Crun, Kind::Crun, Kind::Runc, Kind::Runc]);
        let link = directory.path().join("oci");
        std::os::unix::fs::symlink(directory.path().join("crun"), &link).unwrap();
        let linked = Runtime::named(link.to_str().unwrap()).unwrap();
        assert_eq!((linked.kind, linked.path), (Kind::Crun, link));
        let plain = directory.path().join("plain");
        fs::write(&plain, "").unwrap();
        let error = Runtime::named(plain.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, RuntimeError::NotExecutable(_)), "{error}");
        let error = Runtime::named("no-such-runtime").unwrap_err().to_string();
        assert!(error.contains("apt-get install no-such-runtime"), "{error}");
    }

    #[test]
    fn a_path_means_the_same_from_every_directory_and_a_name_stays_one() {
        let here = std::env::current_dir().unwrap();
        let path = portable("bin/crun").unwrap();
        assert_eq!(Path::new(&path), here.join("bin/crun"));
        assert_eq!(portable("/bin/crun").unwrap(), "/bin/crun");
        assert_eq!(portable("crun").unwrap(), "crun");
    }

    #[test]
    fn commands_name_the_state_and_the_log_and_keep_crun_from_systemd() {
        let directory = tempfile::tempdir().unwrap();
        let words = |name| {
            let runtime = script(directory.path(), name, "");
            let command = runtime.command(Path::new("/s"), Path::new("/l"));
            let words = command
                .get_args()
                .map(|word| word.to_str().unwrap().to_owned());
            words.collect::<Vec<_>>().join(" ")
        };
        let of_fiefs = |runtime: &Runtime| {
            let command = runtime.command(Path::new("/s"), Path::new("/l"));
            let mut changed = command.get_envs();
            changed.any(|(name, value)| name == "NOTIFY_SOCKET" && value.is_none())
        };
        assert!(of_fiefs(&script(directory.path(), "runc", "")));
        let common = "--root /s --log /l --log-format json";
        assert_eq!(words("runc"), common);
        assert_eq!(words("crun"), format!("{common} --cgroup-manager cgroupfs"));
    }

    #[test]
    fn a_version_is_one_line_and_a_failure_is_told_in_the_runtimes_words() {
        let directory = tempfile::tempdir().unwrap();
        let good = script(
            directory.path(),
            "good",
            "echo 'runc version 1.1.5'; echo spec: 1.0",
        );
        assert_eq!(good.version().unwrap(), "runc 1.1.5");
        let bad = script(directory.path(), "bad", "echo 'no such luck' >&2; exit 1");
        assert_eq!(bad.version().unwrap_err().to_string(), "no such luck");
        let silent = script(directory.path(), "silent", "exit 3");
        let error = silent.version().unwrap_err().to_string();
        assert_eq!(error, "it ended with exit status: 3 and said nothing");
    }

    #[test]
    fn the_reason_is_the_last_error_of_the_log_else_the_last_words() {
        let log = concat!(
            r#"{"level":"warning","msg":"odd","time":"t"}"#,
            "\n",
            r#"{"level":"error","msg":"first","time":"t"}"#,
            "\nnonsense\n",
            r#"{"level":"error","msg":"runc run failed: unable to start container process: exec: no\n\u001b[31m","time":"t"}"#,
            "\n",
            r#"{"level":"debug","msg":"later"}"#,
        );
        assert_eq!(reason(log, "other").unwrap(), "exec: no  [31m");
        let warned = r#"{"level":"warning","msg":"odd"}"#;
        assert_eq!(reason(warned, "one\ntwo\n\n").unwrap(), "two");
        assert_eq!(reason("", " \n"), None);
        assert_eq!(reason("", &"x".repeat(9000)).unwrap().len(), WORDS_MAX);
    }

    #[test]
    fn mounts_that_others_see_stay_as_they_are() {
        let mut runtime = Runtime {
            name: "crun".to_owned(),
            path: PathBuf::from("/crun"),
            kind: Kind::Crun,
        };
        assert!(shares_mounts().unwrap());
        let before = mounts().unwrap();
        // Refused, or nothing to do: which, depends on the machine.
        let _ = runtime.settle_mounts();
        assert_eq!(mounts().unwrap(), before);
        runtime.kind = Kind::Runc;
        runtime.settle_mounts().unwrap();
    }
}
