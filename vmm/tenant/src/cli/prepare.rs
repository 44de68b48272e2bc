//! Images and kernels for a tenant: found, or made where fief knows how.

use std::fs;
use std::path::{Path, PathBuf};

use fief_images::{
    Images, InitramfsSpec, Kernel, KernelKind, Progress, RootImage, modules, rootfs,
};

use super::{Context, Error, Result};
use crate::backend::{BootFiles, ContainerFiles, Files};
use crate::spec::{Bytes, Isolation, KernelChoice, KernelFormat, Spec, TenantName};

/// A kernel by name, or the path of one.
pub fn kernel_choice(text: &str) -> Result<KernelChoice> {
    if text.parse::<KernelKind>().is_ok() {
        return Ok(KernelChoice::Named(text.to_owned()));
    }
    if !is_path(text) {
        return Err(Error::new(format!(
            "there is no kernel '{text}'; say debian, debian-full, tuned or micro, or give the path of a kernel file"
        )));
    }
    let unusable = |error: &dyn std::fmt::Display| {
        Error::new(format!(
            "the kernel {text} cannot be used: {error}; give the path of a bzImage or an ELF kernel"
        ))
    };
    let path = fs::canonicalize(text).map_err(|error| unusable(&error))?;
    let file = fs::File::open(&path).map_err(|error| unusable(&error))?;
    if !is_kernel(&file).map_err(|error| unusable(&error))? {
        return Err(unusable(&"it is neither a bzImage nor an ELF file"));
    }
    Ok(KernelChoice::Path(path))
}

/// A glance at the magic numbers: ELF's (System V ABI, "ELF Identification") or the boot protocol's "HdrS" at 0x202
/// (Linux, Documentation/arch/x86/boot.rst). The monitor looks closer.
fn is_kernel(file: &fs::File) -> std::io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let at = |offset| {
        let mut magic = [0; 4];
        match file.read_exact_at(&mut magic, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            other => other.map(|()| Some(magic)),
        }
    };
    Ok(at(0)? == Some(*b"\x7fELF") || at(0x202)? == Some(*b"HdrS"))
}

/// Whether an `--image` or `--kernel` means a file: names hold no slash.
pub fn is_path(text: &str) -> bool {
    text.contains('/')
}

/// The image of that name; fief's own are made where they are missing. One that is a path is imported.
pub fn image(images: &Images, text: &str, progress: &dyn Progress) -> Result<RootImage> {
    if is_path(text) {
        let source = fs::canonicalize(text).map_err(|error| {
            Error::new(format!(
                "the image {text} cannot be used: {error}; give another path"
            ))
        })?;
        return import(images, &imported_name(&source), &source, progress);
    }
    match images.rootfs(text) {
        Err(_) if rootfs::recipes().any(|recipe| recipe == text) && is_missing(images, text) => {
            Ok(images.ensure_rootfs(text, progress)?)
        }
        other => Ok(other?),
    }
}

/// Makes an image of a directory, tar or image file.
pub fn import(
    images: &Images,
    name: &str,
    path: &Path,
    progress: &dyn Progress,
) -> Result<RootImage> {
    images.import_rootfs(name, path, progress).map_err(|error| {
        let why = crate::failure::chain(&error);
        let advice = if why.contains("; ") {
            ""
        } else {
            "; give a directory with files in it, a whole tar, or an erofs or ext4 image"
        };
        let path = path.display();
        Error::new(format!("the image {path} cannot be used: {why}{advice}"))
    })
}

/// Missing, rather than damaged: what is damaged is for a person to know.
fn is_missing(images: &Images, name: &str) -> bool {
    images.list().is_ok_and(|listed| {
        !listed
            .iter()
            .any(|image| image.kind == fief_images::Kind::Rootfs && image.name == name)
    })
}

/// A name for what was given by path: its own, as far as that can be in a name, and enough of the whole path to tell it
/// from others.
fn imported_name(path: &Path) -> String {
    let stem = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let stem = stem.split('.').next().unwrap_or_default();
    let plain: String = stem
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(24)
        .collect();
    let digest = fief_images::store::hash_bytes(path.as_os_str().as_encoded_bytes());
    let plain = plain.trim_start_matches('-');
    format!("path-{plain}-{}", digest.get(..8).unwrap_or_default())
}

/// A kernel of fief's own, made where it is missing.
pub fn kernel(images: &Images, kind: KernelKind, progress: &dyn Progress) -> Result<Kernel> {
    match images.kernel(kind) {
        Err(fief_images::Error::NoKernel(_)) => Ok(images.ensure_kernel(kind, progress)?),
        other => Ok(other?),
    }
}

/// Makes the spec name what is there: its image by name, with the artifact it has now.
pub fn resolve(images: &Images, spec: &mut Spec, progress: &dyn Progress) -> Result<RootImage> {
    let root = image(images, &spec.image, progress)?;
    if spec.init == crate::spec::Init::Image && root.init.is_none() {
        return Err(Error::new(format!(
            "the image '{}' has no init of its own; leave --init image out, or take another image",
            root.name
        )));
    }
    spec.image = root.name.clone();
    spec.artifact = Some(root.artifact.clone());
    Ok(root)
}

/// The image that a tenant was made from, whatever its name means by now.
pub fn image_of(
    images: &Images,
    tenant: &TenantName,
    spec: &Spec,
    progress: &dyn Progress,
) -> Result<RootImage> {
    let Some(artifact) = &spec.artifact else {
        return image(images, &spec.image, progress);
    };
    images.rootfs_artifact(&spec.image, artifact)?.ok_or_else(|| {
        Error::new(format!(
            "the image that tenant '{tenant}' was made from ('{}', {}) is gone, and its disk fits over no other; bring \
             back that very image, or remove the tenant with `fief rm {tenant}`",
            spec.image,
            artifact.short()
        ))
    })
}

/// The initramfs for a kernel: with the agent, and the modules that a tenant's boot needs.
pub fn initramfs(
    images: &Images,
    context: &Context,
    choice: &KernelChoice,
    progress: &dyn Progress,
) -> Result<(Kernel, fief_images::Initramfs)> {
    let (kind, first, later) = match choice {
        KernelChoice::Named(name) => (name.parse()?, modules::TENANT, modules::TENANT_LATER),
        // A kernel from elsewhere has what it needs built in; of the one named here, nothing is taken.
        KernelChoice::Path(_) => (KernelKind::Debian, &[][..], &[][..]),
    };
    let kernel = kernel(images, kind, progress)?;
    let spec = InitramfsSpec {
        kernel: kernel.clone(),
        agent: context.agent().to_owned(),
        modules: first.iter().map(|&name| name.to_owned()).collect(),
        later: later.iter().map(|&name| name.to_owned()).collect(),
        busybox: false,
    };
    let initramfs = images.ensure_initramfs(&spec, progress)?;
    Ok((kernel, initramfs))
}

/// Everything a tenant is started from.
pub fn files(
    images: &Images,
    context: &Context,
    spec: &Spec,
    root: RootImage,
    progress: &dyn Progress,
) -> Result<Files> {
    match spec.isolation {
        Isolation::Vm => {
            let kernel = (&spec.kernel, spec.kernel_format);
            boot_files(images, context, kernel, root, progress).map(Files::Vm)
        }
        Isolation::Container => Ok(Files::Container(ContainerFiles {
            agent: context.agent().to_owned(),
            image: root.path,
            image_format: root.format.name().to_owned(),
            runtime: spec.runtime.clone(),
            shows_image: false,
        })),
    }
}

/// What a virtual machine boots from, by any monitor.
pub fn boot_files(
    images: &Images,
    context: &Context,
    (choice, format): (&KernelChoice, KernelFormat),
    root: RootImage,
    progress: &dyn Progress,
) -> Result<BootFiles> {
    let (kernel, initramfs) = initramfs(images, context, choice, progress)?;
    let (file, modules): (PathBuf, _) = match (choice, format) {
        (KernelChoice::Path(path), _) => (path.clone(), None),
        (KernelChoice::Named(_), KernelFormat::Elf) => (kernel.elf, kernel.modules_image),
        (KernelChoice::Named(_), KernelFormat::Bzimage) => (kernel.bzimage, kernel.modules_image),
    };
    Ok(BootFiles {
        monitor: context.monitor().to_owned(),
        kernel: file,
        initramfs: initramfs.path,
        image: root.path,
        image_format: root.format.name().to_owned(),
        modules,
    })
}

/// Memory of this machine.
pub fn total_memory() -> Result<Bytes> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .ok_or_else(|| Error::new("/proc/meminfo has no MemTotal; is /proc mounted?"))?;
    Ok(Bytes(kib.saturating_mul(1024)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_imported_name_is_a_name_and_tells_paths_apart() {
        let one = imported_name(Path::new("/a/My root.tar.gz"));
        let two = imported_name(Path::new("/b/My root.tar.gz"));
        assert!(one.starts_with("path-myroot-"), "{one}");
        assert_ne!(one, two);
        for path in [
            "/",
            "/x/---",
            "/ä",
            "/x/.hidden",
            &format!("/{}", "a".repeat(200)),
        ] {
            let name = imported_name(Path::new(path));
            assert!(fief_images::store::check_name(&name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_tenant_keeps_the_image_that_it_was_made_from() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let images = Images::open(&directory.path().join("images")).unwrap();
        let silent = &fief_images::Silent;
        let import = |content: &str| {
            fs::write(root.join("file"), content).unwrap();
            images.import_rootfs("tiny", &root, silent).unwrap()
        };
        let old = import("old");
        let mut spec = Spec {
            image: "tiny".into(),
            ..crate::spec::tests::spec()
        };
        resolve(&images, &mut spec, silent).unwrap();
        let name: TenantName = "a".parse().unwrap();
        let new = import("new");
        assert_ne!(old.path, new.path);
        let found = |spec: &Spec| image_of(&images, &name, spec, silent).unwrap().path;
        assert_eq!(found(&spec), old.path);
        images
            .remove(fief_images::Kind::Rootfs, "tiny", &[old.artifact])
            .unwrap();
        assert_eq!(found(&spec), old.path);
        images.store().prune(&[]).unwrap();
        let error = image_of(&images, &name, &spec, silent).unwrap_err().text();
        assert!(
            error.contains("'a'") && error.contains("tiny") && error.contains("fief rm a"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none");
        for content in ["", "#!", &"x".repeat(4096)] {
            fs::write(&path, content).unwrap();
            let error = kernel_choice(path.to_str().unwrap()).unwrap_err();
            assert!(
                error.text().contains("none") && error.text().contains("bzImage"),
                "{}",
                error.text()
            );
        }
        fs::write(&path, b"\x7fELF").unwrap();
        assert!(matches!(
            kernel_choice(path.to_str().unwrap()),
            Ok(KernelChoice::Path(_))
        ));
        assert!(
            kernel_choice("no-such-kernel")
                .unwrap_err()
                .text()
                .contains("tuned")
        );
        assert!(
            kernel_choice("/no/such/kernel")
                .unwrap_err()
                .text()
                .contains("/no/such/kernel")
        );
    }
}
