//! `fief cp`, inside: the agent as a program that packs or unpacks, with the stream on its standard streams and remarks
//! on stderr, a line each.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fief_archive::{Policy, Source, Target};

/// Packs what is at `path` to stdout.
pub fn pack(path: &[u8]) -> Result<(), String> {
    let path = Path::new(OsStr::from_bytes(path));
    let named = || {
        let whole = path.canonicalize().ok()?;
        Some(whole.file_name()?.to_owned())
    };
    let base = Source::of(path, named).base;
    fief_archive::pack(path, &base, io::stdout().lock(), &mut tell)
        .map_err(|error| error.to_string())
}

/// Unpacks stdin to `path`. `what` is a source `itself`, its `contents`, or any `stream`; things belong to root, or with
/// `keep` to whom the stream says; `base` is the source's own name.
pub fn unpack(what: &[u8], owners: &[u8], path: &[u8], base: &[u8]) -> Result<(), String> {
    // It comes from the host, which may do anything here.
    let policy = Policy {
        set_id: true,
        hard_links: true,
        owners: owners == b"keep",
    };
    let path = Path::new(OsStr::from_bytes(path));
    let stdin = io::stdin().lock();
    let unpacked = if what == b"stream" {
        fief_archive::unpack_stream(stdin, path, policy, &mut tell)
    } else {
        let target = Target {
            path: path.to_owned(),
            source: Source {
                base: OsStr::from_bytes(base).to_owned(),
                contents: what == b"contents",
            },
        };
        fief_archive::unpack(stdin, &target, policy, &mut tell)
    };
    unpacked.map_err(|error| error.to_string())
}

pub fn tell(line: String) {
    use io::Write;
    // Nobody may listen any more; the copy goes on.
    let _ = writeln!(io::stderr(), "{line}");
}
