//! `fief cp`: files and directories into a tenant and out of it. The agent packs and unpacks inside, this process here.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use fief_agent_proto::{ChannelReader, Connection, ExecRequest, ExitStatus, Process};
use fief_archive::{Policy, Source, Target};
use fief_host::EmulatedHost;
use fief_images::{Progress, Unit};
use nix::sys::signal::Signal;

use super::error::remote;
use super::{Context, Error, Result};
use crate::carry;
use crate::progress::Shown;
use crate::spec::TenantName;
use crate::terminal::{Signals, say};

/// What comes out of a tenant: nothing in it may harm who copies it.
const FROM_TENANT: Policy = Policy {
    set_id: false,
    hard_links: false,
    owners: false,
};
/// How many bytes a tenant may remark before some are dropped.
const REMARKS: usize = 64 << 10;

/// Flags of `fief cp`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "As docker cp: a directory that is there is copied into, one that is not is made; SRC/. means what is \
    in SRC. Standard input (as SOURCE) and output (as TARGET) are tar streams, written -. Links are copied as links; \
    device nodes, FIFOs and sockets are left out. What comes out of a tenant belongs to who copies it, without set-id bits."
)]
pub struct Args {
    /// In the tenant, keep the owners by number; otherwise everything belongs to its root
    #[arg(long, short = 'a')]
    archive: bool,
    /// LOCAL, NAME:PATH, or - for a tar stream
    source: String,
    /// NAME:PATH, LOCAL, or - for a tar stream
    target: String,
}

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Side {
    Stream,
    Local(PathBuf),
    Tenant(TenantName, String),
}

impl Side {
    /// docker's rule: what begins with `/` or `.` is here; else what is in front of a colon names a tenant.
    fn parse(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err(Error::new(
                "an empty path names nothing; give a path, or NAME:PATH",
            ));
        }
        match text.split_once(':') {
            Some((name, path)) if !text.starts_with(['/', '.']) => {
                let path = if path.starts_with('/') {
                    path.to_owned()
                } else {
                    format!("/{path}")
                };
                Ok(Self::Tenant(name.parse()?, path))
            }
            _ => Ok(Self::Local(PathBuf::from(text))),
        }
    }
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    match (Side::parse(&args.source)?, Side::parse(&args.target)?) {
        (Side::Tenant(name, path), target @ (Side::Local(_) | Side::Stream)) => {
            let copy = Copy::begin(context, &name, &["--pack", &path], false)?;
            copy.out(&path, &target)
        }
        (source @ (Side::Local(_) | Side::Stream), Side::Tenant(name, path)) => {
            let what = What::of(&source)?;
            let owners = if args.archive { "keep" } else { "root" };
            let words = ["--unpack", what.word, owners, &path, &what.base];
            let copy = Copy::begin(context, &name, &words, true)?;
            copy.into(&source, &what)
        }
        (Side::Tenant(..), Side::Tenant(..)) => Err(Error::new(
            "files are not copied from one tenant to another; copy them here first, or pipe: \
             `fief cp a:/x - | fief cp - b:/`",
        )),
        _ => Err(Error::new(
            "neither side is in a tenant; write NAME:PATH for the one that is, as in `fief cp file alice:/root/`",
        )),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// What goes into a tenant.
struct What {
    /// For the agent: `itself`, `contents` or `stream`.
    word: &'static str,
    base: String,
    /// Bytes, where that is known.
    size: Option<u64>,
}

impl What {
    fn of(source: &Side) -> Result<Self> {
        let Side::Local(path) = source else {
            return Ok(Self {
                word: "stream",
                base: String::new(),
                size: None,
            });
        };
        let data = path.symlink_metadata().map_err(|error| {
            Error::new(format!(
                "cannot read {}: {error}; give another path",
                path.display()
            ))
        })?;
        let source = source_of(path);
        let base = source.base.into_string().map_err(|base| {
            Error::new(format!(
                "the name {} is not valid UTF-8; rename it, or pipe a tar stream: `tar -c … | fief cp - NAME:PATH`",
                base.display()
            ))
        })?;
        Ok(Self {
            word: if source.contents {
                "contents"
            } else {
                "itself"
            },
            base,
            size: data.is_file().then_some(data.len()),
        })
    }
}

fn source_of(path: &Path) -> Source {
    let whole = || -> Option<OsString> { Some(path.canonicalize().ok()?.file_name()?.to_owned()) };
    Source::of(path, whole)
}

/// The agent at work in a tenant, with its streams.
struct Copy {
    /// The process's streams go through it.
    _connection: Connection,
    process: Process,
    signals: Signals,
}

impl Copy {
    fn begin(context: &Context, name: &TenantName, words: &[&str], stdin: bool) -> Result<Self> {
        let emulated = context.is_emulated() && EmulatedHost::open(context.state()).exists();
        if emulated {
            let progress = Shown::default();
            let images = context.images()?;
            carry::ready(context, &images, &[], &progress)?;
        }
        // Before the first connection, whose thread inherits what is blocked.
        let signals = Signals::take_over()?;
        let (connection, mut request) = if emulated {
            let mut line = ["exec", "--agent", name.as_str()]
                .map(str::to_owned)
                .to_vec();
            if stdin {
                line.push("-i".to_owned());
            }
            line.push("--".to_owned());
            line.extend(words.iter().map(|&word| word.to_owned()));
            let connection = EmulatedHost::open(context.state()).connect()?;
            (connection, EmulatedHost::carried(&line))
        } else {
            let (tenant, _) = context.store()?.running(name)?;
            let lives = || signals.asked_to_end().is_none();
            let connection = crate::agent::connect(&tenant, &lives).map_err(remote)?;
            let request = ExecRequest {
                own: true,
                ..ExecRequest::new(words.iter().copied())
            };
            (connection, request)
        };
        request.stdin = stdin;
        let process = connection.exec(&request).map_err(remote)?;
        Ok(Self {
            _connection: connection,
            process,
            signals,
        })
    }

    /// From the tenant to here.
    fn out(mut self, path: &str, target: &Side) -> Result<()> {
        let stdout = self.process.take_stdout().ok_or_else(no_stream)?;
        // What `..` means in there, nobody here knows.
        let source = Source::of(Path::new(path), || None);
        if *target == Side::Stream && io::stdout().is_terminal() {
            return Err(Error::new(
                "a tar stream is not for a terminal; pipe it, or give a path here",
            ));
        }
        self.attend(None, |stopped, progress| {
            let mut stream = Counted::new(stdout, stopped, progress);
            match target {
                Side::Local(path) => {
                    let path = path.clone();
                    let target = Target { path, source };
                    fief_archive::unpack(&mut stream, &target, FROM_TENANT, &mut remark)
                        .map_err(Broken::from)
                }
                _ => io::copy(&mut stream, &mut io::stdout().lock())
                    .map(drop)
                    .map_err(Broken::from),
            }
        })
    }

    /// From here into the tenant.
    fn into(mut self, source: &Side, what: &What) -> Result<()> {
        let stdin = self.process.take_stdin().ok_or_else(no_stream)?;
        if *source == Side::Stream && io::stdin().is_terminal() {
            return Err(Error::new(
                "a tar stream does not come from a terminal; pipe one, or give a path here",
            ));
        }
        drop(self.process.take_stdout());
        self.attend(what.size, |stopped, progress| {
            let mut stream = Counted::new(stdin, stopped, progress);
            match source {
                Side::Local(path) => {
                    let base = OsString::from(&what.base);
                    fief_archive::pack(path, &base, &mut stream, &mut remark).map_err(Broken::from)
                }
                _ => io::copy(&mut io::stdin().lock(), &mut stream)
                    .map(drop)
                    .map_err(Broken::from),
            }
        })
    }

    fn attend(
        self,
        size: Option<u64>,
        copy: impl FnOnce(&AtomicBool, &Shown) -> std::result::Result<(), Broken>,
    ) -> Result<()> {
        let words = Words {
            title: "copying",
            stopped: "stopped; what was complete by then stays",
        };
        attend(self.process, &self.signals, words, size, copy)
    }
}

/// What is said of a copy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    pub title: &'a str,
    pub stopped: &'a str,
}

/// Copies, with progress and signals, and judges what became of it on both sides.
pub(super) fn attend(
    mut process: Process,
    signals: &Signals,
    words: Words<'_>,
    size: Option<u64>,
    copy: impl FnOnce(&AtomicBool, &Shown) -> std::result::Result<(), Broken>,
) -> Result<()> {
    let progress = Shown::default();
    progress.begin(words.title, Unit::Bytes, size);
    let stopped = AtomicBool::new(false);
    let remote_control = process.remote();
    let stderr = process.take_stderr();
    let (stop, stopper) = io::pipe()?;
    let (copied, remarks, signal) = std::thread::scope(|scope| {
        let remarks = scope.spawn(|| remarks(stderr));
        let signal = scope.spawn(|| {
            let signal = asked_to_end(signals, &stop);
            if signal.is_some() {
                stopped.store(true, Ordering::Relaxed);
                let _ = remote_control.cancel();
            }
            signal
        });
        let copied = copy(&stopped, &progress);
        if matches!(&copied, Err(broken) if !broken.by_stream) {
            // A stream that just ends is no reason for the other side to give up.
            let _ = remote_control.cancel();
        }
        let remarks = remarks.join().unwrap_or_default();
        drop(stopper);
        (copied, remarks, signal.join().unwrap_or_default())
    });
    progress.end();
    drop(progress);
    if let Some(signal) = signal {
        let told = Error::new(words.stopped);
        return Err(told.with_code(128 + signal as i32));
    }
    judge(copied, &remarks, process.wait())
}

pub(super) fn no_stream() -> Error {
    Error::new("the agent has no stream; try again")
}

fn asked_to_end(signals: &Signals, stop: &io::PipeReader) -> Option<Signal> {
    loop {
        match signals.wait(stop.as_fd()) {
            Some(Signal::SIGWINCH) => {}
            other => return other,
        }
    }
}

/// Why this side did not finish.
pub(super) struct Broken {
    pub why: Error,
    /// It was the stream: then the other side may know better why.
    pub by_stream: bool,
}

impl From<fief_archive::Error> for Broken {
    fn from(error: fief_archive::Error) -> Self {
        use fief_archive::Error::{Empty, Format, Read, Truncated, Write};
        Self {
            by_stream: matches!(error, Empty | Format(_) | Read(_) | Truncated(_) | Write(_)),
            why: error.into(),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self {
            why: error.into(),
            by_stream: true,
        }
    }
}

/// What became of a copy: here, in the words of the other side, and by its end.
fn judge(
    copied: std::result::Result<(), Broken>,
    remarks: &str,
    ended: std::result::Result<ExitStatus, fief_agent_proto::Error>,
) -> Result<()> {
    let mut lines: Vec<&str> = remarks.lines().collect();
    let failed = !matches!(&ended, Ok(status) if status.success());
    let theirs = match &copied {
        Err(Broken {
            by_stream: false, ..
        }) => None,
        _ if failed => lines.pop(),
        _ => None,
    };
    if copied.is_ok() || theirs.is_some() {
        lines.iter().for_each(|line| remark((*line).to_owned()));
    }
    match (theirs, copied, ended) {
        (Some(why), ..) => {
            let why = printable(why);
            Err(Error::new(why.strip_prefix("fief: ").unwrap_or(&why)))
        }
        (None, Err(broken), _) => Err(broken.why),
        (None, Ok(()), Err(error)) => Err(remote(error)),
        (None, Ok(()), Ok(_)) if failed => Err(Error::new(
            "the tenant broke the copy off without a word; try again",
        )),
        (None, Ok(()), Ok(_)) => Ok(()),
    }
}

/// What the agent has to say: all of it if it is short, else its beginning and its end.
fn remarks(stderr: Option<ChannelReader>) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    if let Some(mut stderr) = stderr {
        // A connection that broke is told by the end of the process.
        while let Ok(count @ 1..) = stderr.read(&mut chunk) {
            bytes.extend_from_slice(&chunk[..count]);
            if bytes.len() > 2 * REMARKS {
                bytes.drain(REMARKS..bytes.len() - chunk.len());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A line from the other side is printed as text, whatever it holds.
fn printable(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).collect()
}

fn remark(line: String) {
    let line = printable(&line);
    say(&if line.starts_with("fief: ") {
        line
    } else {
        format!("fief: {line}")
    });
}

/// A stream that tells how far it is, and ends when this process is asked to.
pub(super) struct Counted<'a, S> {
    inner: S,
    done: u64,
    stopped: &'a AtomicBool,
    progress: &'a Shown,
}

impl<'a, S> Counted<'a, S> {
    pub fn new(inner: S, stopped: &'a AtomicBool, progress: &'a Shown) -> Self {
        Self {
            inner,
            done: 0,
            stopped,
            progress,
        }
    }

    fn counted(&mut self, count: usize) -> usize {
        self.done += count as u64;
        self.progress.done(self.done);
        count
    }

    fn check(&self) -> io::Result<()> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped"));
        }
        Ok(())
    }
}

impl<S: Read> Read for Counted<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        let count = self.inner.read(buffer)?;
        Ok(self.counted(count))
    }
}

impl<S: Write> Write for Counted<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        let count = self.inner.write(bytes)?;
        Ok(self.counted(count))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart_as_docker_does() {
        let tenant = |name: &str, path: &str| Side::Tenant(name.parse().unwrap(), path.to_owned());
        for (text, side) in [
            ("-", Side::Stream),
            ("file", Side::Local("file".into())),
            ("./a:b", Side::Local("./a:b".into())),
            ("/a:b", Side::Local("/a:b".into())),
            ("alice:/root/x", tenant("alice", "/root/x")),
            ("alice:x", tenant("alice", "/x")),
            ("alice:", tenant("alice", "/")),
        ] {
            assert_eq!(Side::parse(text).unwrap(), side, "{text}");
        }
        assert!(Side::parse("A b:/x").is_err());
        assert!(Side::parse("").is_err());
    }

    fn broken(by_stream: bool) -> std::result::Result<(), Broken> {
        Err(Broken {
            why: Error::new("here"),
            by_stream,
        })
    }

    #[test]
    fn the_side_that_failed_first_tells_why() {
        let (good, bad) = (Ok(ExitStatus::Code(0)), Ok(ExitStatus::Code(1)));
        let told =
            |copied, remarks, ended| judge(copied, remarks, ended).map_err(|error| error.text());
        assert_eq!(told(Ok(()), "left out x\n", good.clone()), Ok(()));
        for remark in ["there\n", "left out x\nfief: there\n"] {
            assert_eq!(
                told(broken(true), remark, bad.clone()),
                Err("fief: there".to_owned())
            );
            assert_eq!(
                told(Ok(()), remark, bad.clone()),
                Err("fief: there".to_owned())
            );
            assert_eq!(
                told(broken(false), remark, bad.clone()),
                Err("fief: here".to_owned())
            );
        }
        assert_eq!(told(broken(true), "", bad), Err("fief: here".to_owned()));
        assert_eq!(told(broken(true), "", good), Err("fief: here".to_owned()));
    }

    #[test]
    fn what_a_tenant_says_cannot_move_the_cursor() {
        assert_eq!(printable("a\u{1b}[2Jb\r"), "a[2Jb");
    }
}
