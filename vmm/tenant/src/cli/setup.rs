//! `fief setup`: what the first run would do, done now.

use std::path::Path;
use std::process::ExitCode;

use fief_images::{Kind, rootfs};

use super::{Context, Error, Result, access, prepare};
use crate::carry;
use crate::progress::Shown;
use crate::spec::KernelChoice;
use crate::terminal::output;

/// Flags of `fief setup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kernels to make ready: debian (the distribution's for clouds), debian-full (with drivers of all hardware), tuned (ours, built here), micro [debian]
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Images to make ready: debian, busybox, bench (for `fief bench`) [debian]
    #[arg(long, value_name = "IMAGE")]
    image: Vec<String>,
    /// Let the members of a group use fief: as root, by way of sudo
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Install the systemd unit that starts tenants when this machine boots, and shuts them down with it
    #[arg(long)]
    systemd: bool,
}

/// The unit, for a fief in /usr/local/bin.
const UNIT: &str = include_str!("../../../../packaging/fief.service");
const UNIT_BINARY: &str = "/usr/local/bin/fief";
/// Where units of a machine's administrator are.
const UNITS: &str = "/etc/systemd/system";

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let nothing_asked = args.kernel.is_empty() && args.image.is_empty();
    if let Some(group) = &args.group {
        access::permit(group, context.state())?;
        output(&format!(
            "group {group}: its members may use fief, and are as mighty as root by that\n"
        ))?;
    }
    if args.systemd {
        install_unit()?;
        output("fief.service: installed; `systemctl enable --now fief` switches it on\n")?;
    }
    if nothing_asked && (args.group.is_some() || args.systemd) {
        return Ok(ExitCode::SUCCESS);
    }
    let images = context.images()?;
    let progress = Shown::default();
    let or_debian = |asked: &[String]| {
        if nothing_asked {
            vec!["debian".to_owned()]
        } else {
            asked.to_vec()
        }
    };
    let (kernel_names, image_names) = (or_debian(&args.kernel), or_debian(&args.image));
    let mut made = Vec::new();
    for name in &kernel_names {
        let kind = name.parse()?;
        let kernel = images.ensure_kernel(kind, &progress)?;
        let (_, initramfs) = prepare::initramfs(
            &images,
            context,
            &KernelChoice::Named(name.clone()),
            &progress,
        )?;
        made.push((Kind::Kernel, name.clone()));
        made.push((Kind::Initramfs, initramfs.name));
        output(&format!("kernel {name}: {}\n", kernel.release))?;
    }
    for name in &image_names {
        if !rootfs::recipes().any(|recipe| recipe == name) {
            let known = rootfs::recipes().collect::<Vec<_>>().join(", ");
            return Err(Error::new(format!(
                "'{name}' is no image that fief can make (those are {known}); import it with `fief images import`"
            )));
        }
        let image = images.ensure_rootfs(name, &progress)?;
        made.push((Kind::Rootfs, name.clone()));
        output(&format!(
            "image {name}: {}\n",
            crate::spec::Bytes(image.size)
        ))?;
    }
    let decision = context.decide();
    if decision.kind == fief_host::HostKind::Emulated {
        let names: Vec<_> = made
            .iter()
            .map(|(kind, name)| (*kind, name.as_str()))
            .collect();
        carry::ready(context, &images, &names, &progress)?;
        output(&format!("emulated host: ready ({})\n", decision.why))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn install_unit() -> Result<()> {
    let directory = Path::new(UNITS);
    if !directory.is_dir() {
        return Err(Error::new(format!(
            "there is no {UNITS} on this machine; have `fief start --all` run when it boots, and `fief stop --all \
             --for-shutdown` when it shuts down"
        )));
    }
    let program = std::env::current_exe()?.display().to_string();
    // Spaces and the like have meanings in a unit (systemd.service(5)).
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(&byte);
    if !program.bytes().all(plain) {
        return Err(Error::new(format!(
            "the path {program} cannot stand in a unit; install fief in /usr/local/bin"
        )));
    }
    let path = directory.join("fief.service");
    std::fs::write(&path, UNIT.replace(UNIT_BINARY, &program)).map_err(|error| {
        Error::new(format!(
            "cannot write {}: {error}; run it with sudo",
            path.display()
        ))
    })
}
