//! Carrying a command line over into the emulated host: what is on this side (images, kernels given by path, variables)
//! is taken along, then the same `fief` runs there with this side's standard streams, terminal and signals.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use fief_agent_proto::{Connection, WriteFile};
use fief_host::EmulatedHost;
use fief_host::emulated::ports::{Held, Port};
use fief_host::qemu::Hardware;
use fief_images::{Images, Kind, Progress, Silent, Unit};

use crate::cli::{Context, Error, OWN_FAILURE, Result, prepare, remote, ssh_key};
use crate::progress::Shown;
use crate::spec::KernelChoice;
use crate::terminal::{self, Signals, Streams, attend, say};

/// Where files of this side are put inside.
const INBOX: &str = "/var/lib/fief/inbox";

/// What a command line needs of this side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// `--image` as given: a name or a path.
    pub image: Option<String>,
    /// `--kernel` as given.
    pub kernel: Option<String>,
    /// `--ssh-key` and `--remove-ssh-key` as given.
    pub ssh_keys: Vec<String>,
    pub streams: Streams,
    /// Variables that the command line passes on by name.
    pub env: Vec<(String, String)>,
    /// Ports of this machine that it publishes.
    pub publish: Vec<Port>,
    /// It may change which ports are published.
    pub changes_ports: bool,
}

/// Runs this process's command line in the emulated host.
pub fn carry(context: &Context, needs: &Needs) -> Result<ExitCode> {
    if needs.streams.tty {
        terminal::size()?;
    }
    let keys = key_texts(&needs.ssh_keys)?;
    let progress = Shown::default();
    let images = context.images()?;
    let fresh = start(context, &images, None, &progress)?;
    let mut along = take_along(context, &images, needs, &progress)?;
    along.replaced.extend(keys);
    // Until here Ctrl-C just ends this process. Before the first connection, whose thread inherits what is blocked.
    let signals = Signals::take_over()?;
    let connection = EmulatedHost::open(context.state()).connect()?;
    if let Some((given, path)) = along.kernel.take() {
        along
            .replaced
            .push((given, send(&connection, &path, &progress)?));
    }
    let names: Vec<_> = along
        .names
        .iter()
        .map(|(kind, name)| (*kind, name.as_str()))
        .collect();
    copy_in(context, &images, &names, &progress)?;
    drop(progress);
    let _held = if fresh || needs.changes_ports {
        Some(hold(context, &needs.publish)?)
    } else {
        None
    };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut request = EmulatedHost::carried(&inner_arguments(&arguments, &along.replaced));
    request.env.extend(needs.env.iter().cloned());
    // The fief inside counts the same signals, and does what is to be done: it must live to do it.
    let code = attend(&connection, request, needs.streams, &signals, &|_| ()).map_err(remote)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(OWN_FAILURE)))
}

/// What goes along with a command line.
#[derive(Debug, Default)]
struct Along {
    /// Images and kernels, by name.
    names: Vec<(Kind, String)>,
    /// A kernel file: the word on the command line, and where it is.
    kernel: Option<(String, PathBuf)>,
    /// Words that are others inside.
    replaced: Vec<(String, String)>,
}

/// Starts the emulated host, or finds that it runs; true if it did not. Then [`hold`] has to follow when its `fief` is
/// there, for the ports that tenants in it publish.
pub fn start(
    context: &Context,
    images: &Images,
    hardware: Option<&Hardware>,
    progress: &Shown,
) -> Result<bool> {
    let mut keeper = Command::new(std::env::current_exe()?);
    keeper.args(["host", "keep"]);
    let host = EmulatedHost::open(context.state());
    // One that runs needs no bar: it is a matter of milliseconds.
    let runs = host.status().running;
    let progress: &dyn Progress = if runs { &Silent } else { progress };
    host.start(hardware, images, context.agent(), keeper, progress)?;
    Ok(!runs)
}

/// Takes ports of this machine for what is about to publish them inside. When what is returned is dropped, exactly those
/// stay that tenants inside publish.
pub fn hold(context: &Context, ports: &[Port]) -> Result<Held> {
    let held = EmulatedHost::open(context.state()).hold(ports)?;
    for missing in &held.missing {
        say(&format!(
            "fief: a published port does not lead to its tenant from here: {missing}"
        ));
    }
    Ok(held)
}

/// Starts the emulated host and copies images into it.
pub fn ready(
    context: &Context,
    images: &Images,
    names: &[(Kind, &str)],
    progress: &Shown,
) -> Result<()> {
    let fresh = start(context, images, None, progress)?;
    copy_in(context, images, names, progress)?;
    if fresh {
        hold(context, &[])?;
    }
    Ok(())
}

/// Copies fief's binaries and the named images into the running emulated host, where they differ.
pub fn copy_in(
    context: &Context,
    images: &Images,
    names: &[(Kind, &str)],
    progress: &Shown,
) -> Result<()> {
    let host = EmulatedHost::open(context.state());
    let binaries: Vec<PathBuf> = vec![
        std::env::current_exe()?,
        context.monitor().to_owned(),
        context.agent().to_owned(),
    ];
    let connection = host.connect()?;
    Ok(host.synchronise(&connection, &binaries, images, names, progress)?)
}

/// Finds or makes what the command line names.
fn take_along(
    context: &Context,
    images: &Images,
    needs: &Needs,
    progress: &Shown,
) -> Result<Along> {
    let mut along = Along::default();
    if let Some(given) = &needs.image {
        let image = prepare::image(images, given, progress)?;
        if *given != image.name {
            along.replaced.push((given.clone(), image.name.clone()));
        }
        along.names.push((Kind::Rootfs, image.name));
    }
    if let Some(given) = &needs.kernel {
        let choice = prepare::kernel_choice(given)?;
        let (kernel, initramfs) = prepare::initramfs(images, context, &choice, progress)?;
        along
            .names
            .push((Kind::Kernel, kernel.kind.name().to_owned()));
        along.names.push((Kind::Initramfs, initramfs.name));
        if let KernelChoice::Path(path) = choice {
            along.kernel = Some((given.clone(), path));
        }
    }
    Ok(along)
}

/// Key files and what is in them, which is as good on the command line inside.
fn key_texts(given: &[String]) -> Result<Vec<(String, String)>> {
    let text = |given: &String| Ok((given.clone(), ssh_key::read(given)?.join("\n")));
    given.iter().map(text).collect()
}

/// Copies a file inside; its path there, which has the file's own name in a folder for its content.
fn send(connection: &Connection, path: &Path, progress: &Shown) -> Result<String> {
    let unreadable =
        |error: std::io::Error| Error::new(format!("cannot read {}: {error}", path.display()));
    let content = std::fs::read(path).map_err(unreadable)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let digest = fief_images::store::hash_bytes(&content);
    let target = format!("{INBOX}/{}/{name}", digest.get(..16).unwrap_or(&digest));
    progress.begin(
        "copying the kernel into the emulated host",
        Unit::Bytes,
        Some(content.len() as u64),
    );
    let request = WriteFile {
        path: target.clone(),
        mode: 0o644,
        owner: None,
        parents: true,
    };
    connection
        .write_file(&request, content.as_slice())
        .map_err(remote)?;
    progress.end();
    Ok(target)
}

/// The command line for the `fief` inside: without the flags that say which host and where, and with other words for
/// what was taken along. What follows `--` is the command's own.
fn inner_arguments(arguments: &[String], replaced: &[(String, String)]) -> Vec<String> {
    const OURS: [&str; 2] = ["--host", "--state-dir"];
    const REPLACED: [&str; 4] = ["--image", "--kernel", "--ssh-key", "--remove-ssh-key"];
    let replace = |word: &str| {
        let found = replaced.iter().find(|(from, _)| from == word);
        found.map_or_else(|| word.to_owned(), |(_, to)| to.clone())
    };
    let mut inner = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let (flag, value) = match word.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (word.as_str(), None),
        };
        if word == "--" {
            inner.push(word.clone());
            inner.extend(words.by_ref().cloned());
        } else if OURS.contains(&flag) {
            if value.is_none() {
                words.next();
            }
        } else if REPLACED.contains(&flag) {
            let value =
                value.map_or_else(|| words.next().cloned().unwrap_or_default(), str::to_owned);
            inner.extend([flag.to_owned(), replace(&value)]);
        } else {
            inner.push(word.clone());
        }
    }
    inner
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(line: &str, replaced: &[(&str, &str)]) -> String {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let replaced: Vec<_> = replaced
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        inner_arguments(&words, &replaced).join(" ")
    }

    #[test]
    fn flags_about_this_side_stay_here() {
        assert_eq!(
            inner(
                "--host emulated --state-dir /s run --host=auto --rm -- a",
                &[]
            ),
            "run --rm -- a"
        );
    }

    #[test]
    fn the_command_is_carried_over_as_it_is() {
        let line = "run -- prog --host x --image ./i -- --state-dir=y";
        assert_eq!(inner(line, &[("./i", "j")]), line);
    }

    #[test]
    fn what_was_taken_along_has_its_name_inside() {
        let replaced = [
            ("./root.tar", "path-root-1"),
            ("/k", "/in/k"),
            ("id.pub", "ssh-ed25519 AAAA me\nssh-rsa AAAA"),
        ];
        assert_eq!(
            inner(
                "run --image ./root.tar --kernel=/k --name ./root.tar --ssh-key id.pub",
                &replaced
            ),
            "run --image path-root-1 --kernel /in/k --name ./root.tar --ssh-key ssh-ed25519 AAAA me\nssh-rsa AAAA"
        );
        assert_eq!(
            inner("set a --remove-ssh-key id.pub", &replaced),
            "set a --remove-ssh-key ssh-ed25519 AAAA me\nssh-rsa AAAA"
        );
        assert_eq!(inner("create a --image", &[]), "create a --image ");
    }
}
