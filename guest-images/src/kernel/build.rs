//! Kernels of our own configuration, from the distribution's source package.

use std::fs;
use std::path::{Path, PathBuf};

use super::{BZIMAGE, CONFIG, ELF, Error, KernelKind, RELEASE, apt, io, payload, write};
use crate::progress::{Progress, Unit};
use crate::space;
use crate::store::{Properties, Work};
use crate::tool::Tool;

const TAR: Tool = Tool {
    program: "tar",
    package: "tar",
};
const MAKE: Tool = Tool {
    program: "make",
    package: "make",
};
const SH: Tool = Tool {
    program: "sh",
    package: "dash",
};

/// What `make` starts, and the packages to name when something is missing.
const TOOLCHAIN: [Tool; 9] = [
    Tool {
        program: "gcc",
        package: "gcc",
    },
    Tool {
        program: "ld",
        package: "binutils",
    },
    MAKE,
    Tool {
        program: "flex",
        package: "flex",
    },
    Tool {
        program: "bison",
        package: "bison",
    },
    Tool {
        program: "bc",
        package: "bc",
    },
    Tool {
        program: "perl",
        package: "perl",
    },
    Tool {
        program: "xz",
        package: "xz-utils",
    },
    Tool {
        program: "lz4",
        package: "lz4",
    },
];
/// Header that the kernel's objtool includes, and its package.
const LIBELF: (&str, &str) = ("/usr/include/gelf.h", "libelf-dev");

/// Unpacked source 1.4 GiB, objects up to 1 GiB.
const SPACE: u64 = 3 << 30;

/// Same bytes from the same source: no name of the builder, no clock.
const FIXED: [(&str, &str); 3] = [
    ("KBUILD_BUILD_TIMESTAMP", "2026-01-01"),
    ("KBUILD_BUILD_USER", "fief"),
    ("KBUILD_BUILD_HOST", "fief"),
];

/// The fragment over `make tinyconfig`.
fn fragment(kind: KernelKind) -> &'static str {
    match kind {
        KernelKind::Tuned => include_str!("../../kernel/tuned.config"),
        _ => include_str!("../../kernel/micro.config"),
    }
}

/// Object files of a build with Debian's 6.1 source: what progress is measured against.
fn objects(kind: KernelKind) -> u64 {
    match kind {
        KernelKind::Tuned => 1700,
        _ => 1300,
    }
}

/// Everything but the source that decides the result.
pub fn request(kind: KernelKind) -> String {
    format!("{} {:?}", fragment(kind), installed_source())
}

pub fn make(work: &Work, kind: KernelKind, progress: &dyn Progress) -> Result<Properties, Error> {
    check_toolchain()?;
    space::require(&work.scratch, &format!("building the kernel {kind}"), SPACE)?;
    let archive = match installed_source() {
        Some((path, _)) => path,
        None => downloaded_source(&work.scratch, progress)?,
    };
    let source = unpack(&archive, &work.scratch, progress)?;
    configure(&source, kind)?;
    compile(&source, kind, progress)?;
    let built = source.join("arch/x86/boot/bzImage");
    let image = fs::read(&built).map_err(io("reading", &built))?;
    write(&work.out.join(ELF), &payload::extract(&image)?)?;
    write(&work.out.join(BZIMAGE), &image)?;
    let config = source.join(".config");
    fs::copy(&config, work.out.join(CONFIG)).map_err(io("copying", &config))?;
    let release_file = source.join("include/config/kernel.release");
    let release = fs::read_to_string(&release_file).map_err(io("reading", &release_file))?;
    let source = archive
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok([
        (RELEASE.to_owned(), release.trim().to_owned()),
        ("source".to_owned(), source),
    ]
    .into())
}

fn check_toolchain() -> Result<(), Error> {
    let missing = TOOLCHAIN
        .iter()
        .filter(|tool| tool.find().is_err())
        .map(|tool| tool.package);
    let header = (!Path::new(LIBELF.0).exists()).then_some(LIBELF.1);
    let missing: Vec<&str> = missing.chain(header).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::Toolchain(missing.join(" ")))
    }
}

/// The newest `linux-source-*` of this machine and its size.
fn installed_source() -> Option<(PathBuf, u64)> {
    let version = |path: &Path| -> Option<Vec<u32>> {
        let name = path
            .file_name()?
            .to_str()?
            .strip_prefix("linux-source-")?
            .strip_suffix(".tar.xz")?;
        name.split('.').map(|part| part.parse().ok()).collect()
    };
    let paths = fs::read_dir("/usr/src")
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    let newest = paths
        .filter_map(|path| Some((version(&path)?, path)))
        .max()?;
    let size = newest.1.metadata().ok()?.len();
    Some((newest.1, size))
}

fn downloaded_source(scratch: &Path, progress: &dyn Progress) -> Result<PathBuf, Error> {
    let meta = apt::first_known(&["linux-source"], progress)?;
    let package = apt::dependency(&meta, "linux-source-")?;
    let deb = apt::download(&package, scratch, progress)?;
    let dir = scratch.join("package");
    apt::unpack(&deb, &dir)?;
    let found = dir.join("usr/src").join(format!("{}.tar.xz", package.name));
    if found.is_file() {
        Ok(found)
    } else {
        Err(Error::NoKernel(package.name))
    }
}

fn unpack(archive: &Path, scratch: &Path, progress: &dyn Progress) -> Result<PathBuf, Error> {
    progress.begin("unpacking the kernel's source", Unit::Items, None);
    let dir = scratch.join("source");
    fs::create_dir(&dir).map_err(io("making the directory", &dir))?;
    let arguments = [
        "-xf".as_ref(),
        archive.as_os_str(),
        "-C".as_ref(),
        dir.as_os_str(),
        "--strip-components=1".as_ref(),
    ];
    TAR.output(arguments)?;
    progress.end();
    Ok(dir)
}

fn configure(source: &Path, kind: KernelKind) -> Result<(), Error> {
    let path = source.join("fief.config");
    write(&path, fragment(kind).as_bytes())?;
    MAKE.run(
        |c| {
            c.current_dir(source).args(["-s", "tinyconfig"]);
        },
        |_| (),
    )?;
    let merge = [
        "scripts/kconfig/merge_config.sh",
        "-m",
        ".config",
        "fief.config",
    ];
    SH.run(
        |c| {
            c.current_dir(source).args(merge);
        },
        |_| (),
    )?;
    MAKE.run(
        |c| {
            c.current_dir(source).args(["-s", "olddefconfig"]);
        },
        |_| (),
    )?;
    Ok(())
}

fn compile(source: &Path, kind: KernelKind, progress: &dyn Progress) -> Result<(), Error> {
    progress.begin(
        &format!("compiling the kernel {kind}"),
        Unit::Items,
        Some(objects(kind)),
    );
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut done = 0;
    MAKE.run(
        |c| {
            c.current_dir(source)
                .envs(FIXED)
                .arg(format!("-j{jobs}"))
                .arg("bzImage");
        },
        |line| {
            let line = line.trim_start();
            if line.starts_with("CC ") || line.starts_with("AS ") {
                done += 1;
                progress.done(done);
            }
        },
    )?;
    progress.end();
    Ok(())
}
