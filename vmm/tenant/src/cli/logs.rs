//! `fief logs`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::{Context, Result};
use crate::shim::older;
use crate::spec::TenantName;
use crate::store::Tenant;

/// How often a followed log is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Flags of `fief logs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Go on showing what comes, until the tenant ends
    #[arg(long, short = 'f')]
    follow: bool,
    /// Show only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// What the monitor has to say, instead of the tenant's console
    #[arg(long)]
    monitor: bool,
    /// The tenant
    name: TenantName,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let store = context.store()?;
    let tenant = store.tenant(&args.name)?;
    let path = if args.monitor {
        tenant.monitor_log()
    } else {
        tenant.console()
    };
    let shown = show(&tenant, &path, args);
    match shown {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(tenant: &Tenant, path: &Path, args: &Args) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let mut text = read_if_there(&older(path))?;
    let mut current = Follow::open(path)?;
    current.read(&mut text)?;
    stdout.write_all(last_lines(&text, args.tail))?;
    stdout.flush()?;
    if !args.follow {
        return Ok(());
    }
    loop {
        // Looked at before the last read: what was printed until the end is shown.
        let runs = matches!(tenant.state(), Ok(Some(_)));
        text.clear();
        current.read(&mut text)?;
        current.turn(path, &mut text)?;
        stdout.write_all(&text)?;
        stdout.flush()?;
        if !runs {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// A file that grows, and may be renamed when it is full.
struct Follow(Option<File>);

impl Follow {
    fn open(path: &Path) -> io::Result<Self> {
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(None)),
            other => Ok(Self(Some(other?))),
        }
    }

    fn read(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        if let Some(file) = &mut self.0 {
            file.read_to_end(into)?;
        }
        Ok(())
    }

    /// Goes on with the new file if there is one.
    fn turn(&mut self, path: &Path, into: &mut Vec<u8>) -> io::Result<()> {
        let identity = |data: fs::Metadata| (data.dev(), data.ino());
        let there = fs::metadata(path).ok().map(identity);
        let mine = self
            .0
            .as_ref()
            .and_then(|file| file.metadata().ok())
            .map(identity);
        if there.is_some() && there != mine {
            // Its last lines may have come since it was read.
            self.read(into)?;
            *self = Self::open(path)?;
            if let Some(file) = &mut self.0 {
                file.seek(SeekFrom::Start(0))?;
            }
            self.read(into)?;
        }
        Ok(())
    }
}

fn read_if_there(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn last_lines(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return text };
    let end = text.strip_suffix(b"\n").unwrap_or(text);
    if lines == 0 {
        return &[];
    }
    let before = end
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n')
        .nth(lines - 1);
    before.map_or(text, |(place, _)| &text[place + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_has_as_many_lines_as_asked_or_as_there_are() {
        let text = b"one\ntwo\nthree\n";
        assert_eq!(last_lines(text, None), text);
        assert_eq!(last_lines(text, Some(0)), b"");
        assert_eq!(last_lines(text, Some(1)), b"three\n");
        assert_eq!(last_lines(text, Some(2)), b"two\nthree\n");
        assert_eq!(last_lines(text, Some(9)), text);
        assert_eq!(last_lines(b"one\ntwo", Some(1)), b"two");
        assert_eq!(last_lines(b"", Some(1)), b"");
    }

    #[test]
    fn a_followed_log_loses_nothing_when_it_is_renamed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "one ").unwrap();
        let mut follow = Follow::open(&path).unwrap();
        let mut text = Vec::new();
        follow.read(&mut text).unwrap();
        let mut old = fs::OpenOptions::new().append(true).open(&path).unwrap();
        old.write_all(b"two ").unwrap();
        fs::rename(&path, older(&path)).unwrap();
        fs::write(&path, "three").unwrap();
        follow.turn(&path, &mut text).unwrap();
        assert_eq!(text, b"one two three");
    }
}
