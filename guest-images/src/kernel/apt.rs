//! Packages from this machine's own sources, whatever they are.

use std::path::{Path, PathBuf};

use crate::progress::{Progress, Unit};
use crate::tool::{self, Tool};

const APT_CACHE: Tool = Tool {
    program: "apt-cache",
    package: "apt",
};
const APT_GET: Tool = Tool {
    program: "apt-get",
    package: "apt",
};
const DPKG_DEB: Tool = Tool {
    program: "dpkg-deb",
    package: "dpkg",
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "none of the packages {0} is known to apt: run `apt-get update` as root, or add a source that has one of them"
    )]
    Unknown(String),
    #[error("the package {0} does not name the package it stands for")]
    Unresolved(String),
    #[error("apt downloaded {0}, but no such file is there")]
    Lost(String),
    #[error(transparent)]
    Tool(#[from] tool::Error),
    #[error("{} cannot be read", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// A package that apt can download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Bytes of the download.
    pub size: u64,
}

/// The first of `names` that apt knows; its lists are refreshed once if it knows none.
pub fn first_known(names: &[&str], progress: &dyn Progress) -> Result<Package, Error> {
    for attempt in 0..2 {
        for name in names {
            if let Some(package) = candidate(name)? {
                return Ok(package);
            }
        }
        if attempt == 0 && nix::unistd::geteuid().is_root() {
            progress.begin("refreshing the package lists", Unit::Items, None);
            APT_GET.run(
                |c| {
                    c.args(["-q", "update"]);
                },
                |_| (),
            )?;
            progress.end();
        }
    }
    Err(Error::Unknown(names.join(", ")))
}

/// The package whose name begins with `prefix` that the meta package `meta` depends on.
pub fn dependency(meta: &Package, prefix: &str) -> Result<Package, Error> {
    let text = APT_CACHE.output([
        "depends",
        "--no-recommends",
        "--no-suggests",
        meta.name.as_str(),
    ])?;
    let mut depends = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let name = depends
        .find(|name| name.starts_with(prefix))
        .ok_or_else(|| Error::Unresolved(meta.name.clone()))?;
    candidate(name)?.ok_or_else(|| Error::Unknown(name.to_owned()))
}

fn candidate(name: &str) -> Result<Option<Package>, Error> {
    let text = match APT_CACHE.output(["show", "--no-all-versions", name]) {
        Ok(text) => text,
        // It says so with an exit code when no such package is known.
        Err(tool::Error::Failed { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let field = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::trim)
    };
    let size = field("Size:")
        .and_then(|size| size.parse().ok())
        .unwrap_or(0);
    Ok(field("Version:").map(|version| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        size,
    }))
}

/// Downloads the package into the directory `dir`; apt checks its signature chain. The path of the file.
pub fn download(package: &Package, dir: &Path, progress: &dyn Progress) -> Result<PathBuf, Error> {
    progress.begin(
        &format!("downloading {} {}", package.name, package.version),
        Unit::Bytes,
        Some(package.size),
    );
    let wanted = format!("{}={}", package.name, package.version);
    let setup = |command: &mut std::process::Command| {
        command
            .current_dir(dir)
            .args(["-q", "-o", "APT::Status-Fd=1"]);
        if nix::unistd::geteuid().is_root() {
            // apt's own user cannot write to our directory; it would warn and go on as root.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command.args(["download", &wanted]);
    };
    APT_GET.run(setup, |line| {
        // dlstatus:<item>:<percent>:<text>
        let percent = line
            .strip_prefix("dlstatus:")
            .and_then(|rest| rest.split(':').nth(1))
            .and_then(|p| p.parse().ok());
        if let Some(percent) = percent {
            let percent: f64 = percent;
            progress.done((package.size as f64 * (percent / 100.0).clamp(0.0, 1.0)) as u64);
        }
    })?;
    progress.end();
    let prefix = format!("{}_", package.name);
    let failed = |source| Error::Read {
        path: dir.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if name.starts_with(&prefix) && name.ends_with(".deb") {
            return Ok(path);
        }
    }
    Err(Error::Lost(wanted))
}

/// Unpacks a package's files below `dir`.
pub fn unpack(deb: &Path, dir: &Path) -> Result<(), Error> {
    DPKG_DEB.output([Path::new("-x"), deb, dir])?;
    Ok(())
}
