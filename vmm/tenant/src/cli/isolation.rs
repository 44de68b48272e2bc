//! `fief set --isolation`: a stopped tenant moves between machine and container, and takes its files along.
//!
//! Neither side's file system is read by anybody but its own kernel: the tenant is started once more the old way, for its
//! files alone, and its agent tells what differs from the image; then it is started the new way, on a fresh disk, and its
//! agent makes that so. In between it is a file of bytes that nobody here looks into. The tenant has moved when its spec says
//! so, and not before.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use fief_agent_proto::{Connection, ExecRequest};
use fief_images::RootImage;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::cp::{self, Broken, Counted, Words};
use super::error::remote;
use super::{Context, Error, Result, prepare, start, stop};
use crate::backend::Files;
use crate::backend::container::check_init;
use crate::cgroup::Group;
use crate::progress::Shown;
use crate::shim::{Attached, Order};
use crate::spec::{Isolation, Spec, TenantName};
use crate::store::{Exit, Held, Locked, Reason, Store};
use crate::terminal::Signals;

/// How long a side may take to shut down.
const GRACE: Duration = Duration::from_secs(60);
/// More than the disk's size twice, and this, does not differ on an honest disk: names and marks have a size, too.
const ROOM: u64 = 64 << 20;
const STOPPED: &str = "stopped; the tenant is as it was";

/// Moves a stopped tenant to what `change` makes of its spec, which is another isolation.
///
/// # Errors
/// It runs, cannot be what is asked for, has files that cannot be moved, or there is no room. It is then as it was.
pub fn change(
    context: &Context,
    store: &Store,
    name: &TenantName,
    change: &dyn Fn(&mut Spec) -> Result<()>,
) -> Result<()> {
    let locked = store.lock(name)?;
    let before = locked.tenant.spec()?;
    let mut after = before.clone();
    change(&mut after)?;
    if after.isolation == Isolation::Container && !after.disks.is_empty() {
        return Err(Error::new(format!(
            "tenant '{name}' has disks besides its own, and a container cannot have any; take them away with `fief disk rm` first"
        )));
    }
    if after.isolation == Isolation::Container {
        // Told at its start otherwise, when it has moved.
        check_init(after.init, &Group::of(&locked.tenant))?;
    }
    let images = context.images()?;
    let progress = Shown::default();
    let root = prepare::image_of(&images, name, &before, &progress)?;
    let files =
        |spec: &Spec, root: RootImage| prepare::files(&images, context, spec, root, &progress);
    let mut old = files(&before, root.clone())?;
    let new = files(&after, root)?;
    if let Files::Container(files) = &mut old {
        files.shows_image = true;
    }
    let exit = locked.tenant.exit()?;
    // An end is not written down where the host's disk was full, but whatever ran had a log.
    let has_run = exit.is_some() || locked.tenant.console().exists();
    // Until here Ctrl-C just ends this process; from here there is something to clean up.
    let signals = Signals::take_over()?;
    let spool = locked.tenant.moving().join("differences");
    let disk = locked.tenant.disk(after.isolation);
    locked.begin_move()?;
    let prepared = fief_images::disk::make(&disk, after.disk.0);
    let mut locked = Some(locked);
    let moved = prepared.map_err(Error::from).and_then(|()| {
        if !has_run {
            // There is nothing on its disk.
            return Ok(());
        }
        let most = before.disk.0.saturating_mul(2).saturating_add(ROOM);
        let mut differences = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&spool)?;
        let mut quietly = |spec: &Spec, files, work: &mut Work<'_>| {
            let (back, done) = run(locked.take(), spec, files, &signals, &progress, work);
            locked = back;
            done
        };
        quietly(&before, old, &mut |agent| {
            collect(agent, &signals, &mut differences, most)
        })?;
        differences.rewind()?;
        quietly(&after, new, &mut |agent| {
            apply(agent, &signals, &mut differences)
        })?;
        Ok(File::open(&disk)?.sync_all()?)
    });
    let Some(locked) = locked else {
        // Its shim was not to be reached: the next command cleans up.
        return moved;
    };
    let moved = moved.and_then(|()| {
        locked
            .tenant
            .change_spec(|spec| {
                change(spec)?;
                // Somebody may have asked for a larger one meanwhile.
                Ok(fief_images::disk::grow(&disk, spec.disk.0)?)
            })
            .map(drop)
    });
    // What cannot be removed is, by the next command. Before the rest, which needs room on a disk that may be full.
    let cleaned = locked.end_move();
    let _ = exit.map(|exit: Exit| locked.end_run(&exit));
    moved?;
    Ok(cleaned?)
}

type Work<'a> = dyn FnMut(&Connection) -> Result<()> + 'a;

/// Starts the tenant for its files alone, does `work` with its agent, and shuts it down. The lock comes back, and was this
/// process's all the time.
fn run(
    locked: Option<Locked>,
    spec: &Spec,
    files: Files,
    signals: &Signals,
    progress: &Shown,
    work: &mut Work<'_>,
) -> (Option<Locked>, Result<()>) {
    let Some(locked) = locked else {
        return (None, Err(Error::new("another fief has the tenant")));
    };
    // A second descriptor of the same lock: when the shim lets go, this one still holds it.
    let kept = match locked.share_lock() {
        Ok(kept) => kept,
        Err(error) => return (Some(locked), Err(error.into())),
    };
    let order = Order {
        name: locked.tenant.name.clone(),
        directory: start::text(locked.tenant.directory()),
        files,
        attached: true,
        command: None,
        quiet: Some(Box::new(spec.clone().quiet())),
    };
    progress.step("starting the tenant for its files");
    let (tenant, attached) = match crate::shim::start(Path::new(start::SELF), locked, &order) {
        Ok(started) => started,
        Err((locked, error)) => return (Some(locked), Err(error.into())),
    };
    let asked = Cell::new(None);
    let lives = || {
        asked.set(asked.get().or(signals.asked_to_end()));
        asked.get().is_none()
    };
    let connected = crate::agent::connect(&tenant, &lives);
    fief_images::Progress::end(progress);
    let done = match (connected, asked.get()) {
        (_, Some(signal)) => Err(Error::new(STOPPED).with_code(128 + signal as i32)),
        (Err(error), None) => Err(remote(error)),
        (Ok(agent), None) => work(&agent).map(|()| agent),
    };
    let done = match done {
        Ok(agent) => shut_down(&agent, attached),
        Err(error) => {
            attached.kill();
            attached.wait();
            Err(error)
        }
    };
    (Some(Locked::adopt(tenant, Held::adopt(kept))), done)
}

/// In order: what was written is then on the disk.
fn shut_down(agent: &Connection, attached: Attached) -> Result<()> {
    let watch = attached.watch()?;
    let ended = stop::ask(agent).is_ok() && {
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(GRACE).unwrap_or(PollTimeout::MAX);
        poll(&mut fds, patience).is_ok_and(|count| count > 0)
    };
    if !ended {
        attached.kill();
    }
    match attached.wait() {
        Some(exit) if exit.reason == Reason::Poweroff => Ok(()),
        Some(exit) => Err(Error::new(format!(
            "the tenant, started for its files, did not shut down: {}; try again",
            start::end_in_words(&exit)
        ))),
        None => Err(Error::new(
            "the tenant, started for its files, did not tell how it ended: was it killed, or is the host's disk full? Free some \
             space, then try again",
        )),
    }
}

fn own(argument: &str, stdin: bool) -> ExecRequest {
    ExecRequest {
        own: true,
        stdin,
        ..ExecRequest::new([argument])
    }
}

/// What differs from the image, into a file; no more than `most` bytes.
fn collect(agent: &Connection, signals: &Signals, into: &mut File, most: u64) -> Result<()> {
    let mut process = agent.exec(&own("--diff", false)).map_err(remote)?;
    let stdout = process.take_stdout().ok_or_else(cp::no_stream)?;
    let words = Words {
        title: "collecting what differs from the image",
        stopped: STOPPED,
    };
    cp::attend(process, signals, words, None, |stopped, progress| {
        let mut stream = Counted::new(stdout, stopped, progress);
        let mut buffer = vec![0; 128 << 10];
        let mut left = most;
        let broken = |why| Broken {
            why,
            by_stream: false,
        };
        loop {
            let count = match stream.read(&mut buffer)? {
                0 => return Ok(()),
                count => count,
            };
            left = left.checked_sub(count as u64).ok_or_else(|| {
                broken(Error::new(
                    "more differs from the image than the tenant's disk can hold; is its file system damaged?",
                ))
            })?;
            into.write_all(&buffer[..count])
                .map_err(|error| broken(error.into()))?;
        }
    })
}

/// The same, out of the file.
fn apply(agent: &Connection, signals: &Signals, from: &mut File) -> Result<()> {
    let mut process = agent.exec(&own("--apply", true)).map_err(remote)?;
    let stdin = process.take_stdin().ok_or_else(cp::no_stream)?;
    drop(process.take_stdout());
    let words = Words {
        title: "moving the tenant's files",
        stopped: STOPPED,
    };
    let size = from.metadata()?.len();
    cp::attend(process, signals, words, Some(size), |stopped, progress| {
        let mut stream = Counted::new(stdin, stopped, progress);
        std::io::copy(from, &mut stream)
            .map(drop)
            .map_err(Broken::from)
    })
}
