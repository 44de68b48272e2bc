//! `fief logs`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::{Context, Result};
use crate::shim::{identity, parts};
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
    let mut text = Vec::new();
    let mut follow = Follow::default();
    follow.read(path, &mut text)?;
    stdout.write_all(last_lines(&text, args.tail))?;
    stdout.flush()?;
    if !args.follow {
        return Ok(());
    }
    loop {
        // Looked at before the last read: what was printed until the end is shown.
        let runs = tenant.runs();
        text.clear();
        follow.read(path, &mut text)?;
        stdout.write_all(&text)?;
        stdout.flush()?;
        if !runs {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// A log that grows, and whose files are renamed when they are full.
#[derive(Default)]
struct Follow {
    /// The file that was read last, where reading ended.
    last: Option<File>,
}

impl Follow {
    /// Adds what has come since the last time; the first time, all there is.
    fn read(&mut self, path: &Path, into: &mut Vec<u8>) -> io::Result<()> {
        let mut parts = parts(path)?;
        if let Some(last) = &mut self.last {
            let mine = identity(last)?;
            let mut place = None;
            for (number, part) in parts.iter().enumerate() {
                if identity(part)? == mine {
                    place = Some(number);
                }
            }
            // Its last lines may have come since it was read, also if it is gone by now.
            last.read_to_end(into)?;
            // What is newer than it; all, if it was so long ago that it is gone.
            parts.truncate(place.unwrap_or(parts.len()));
        }
        for mut part in parts.into_iter().rev() {
            part.read_to_end(into)?;
            self.last = Some(part);
        }
        Ok(())
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
    use std::fs;

    use super::*;
    use crate::shim::older;

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
    fn a_followed_log_loses_nothing_when_it_is_renamed_more_than_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let (mut follow, mut text) = (Follow::default(), Vec::new());
        follow.read(&path, &mut text).unwrap();
        assert_eq!(text, b"");
        fs::write(&path, "one ").unwrap();
        follow.read(&path, &mut text).unwrap();
        let mut old = fs::OpenOptions::new().append(true).open(&path).unwrap();
        old.write_all(b"two ").unwrap();
        for content in ["three ", "four "] {
            let _ = fs::rename(older(&path, 1), older(&path, 2));
            fs::rename(&path, older(&path, 1)).unwrap();
            fs::write(&path, content).unwrap();
        }
        follow.read(&path, &mut text).unwrap();
        assert_eq!(text, b"one two three four ");
        follow.read(&path, &mut text).unwrap();
        assert_eq!(text, b"one two three four ");
    }
}
