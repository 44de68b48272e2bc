//! `fief setup`: what the first run would do, done now.

use std::process::ExitCode;

use fief_images::{Kind, rootfs};

use super::{Context, Error, Result, prepare};
use crate::carry;
use crate::progress::Shown;
use crate::spec::KernelChoice;
use crate::terminal::output;

/// Flags of `fief setup`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kernels to make ready: debian (the distribution's), tuned (ours, built here), micro [debian]
    #[arg(long, value_name = "KERNEL")]
    kernel: Vec<String>,
    /// Images to make ready: debian, busybox [debian]
    #[arg(long, value_name = "IMAGE")]
    image: Vec<String>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let images = context.images()?;
    let progress = Shown::default();
    let nothing_asked = args.kernel.is_empty() && args.image.is_empty();
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
