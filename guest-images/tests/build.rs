//! Kernels and root images from real packages. Needs apt's sources and, the first time, minutes; what it made stays in
//! `FIEF_IMAGES_STORE`, or else in the build directory, for the next run.

use std::path::{Path, PathBuf};
use std::process::Command;

use fief_images::{Images, InitramfsSpec, Kernel, KernelKind, Kind, Silent, modules};

fn store() -> Images {
    let fallback = Path::new(env!("CARGO_TARGET_TMPDIR")).join("images");
    let dir = std::env::var_os("FIEF_IMAGES_STORE").map_or(fallback, PathBuf::from);
    Images::open(&dir).unwrap()
}

fn debian_kernel(images: &Images) -> Kernel {
    images.ensure_kernel(KernelKind::Debian, &Silent).unwrap()
}

/// `fsck.erofs` of erofs-utils: another reader than ours agrees that this is a file system.
fn check_erofs(image: &Path) {
    let output = Command::new("fsck.erofs")
        .arg(image)
        .output()
        .expect("fsck.erofs is in the package erofs-utils");
    assert!(output.status.success(), "{image:?}: {output:?}");
}

fn holds(path: &Path, text: &str) -> bool {
    let bytes = std::fs::read(path).unwrap();
    let text = text.as_bytes();
    bytes.windows(text.len()).any(|window| window == text)
}

#[test]
fn the_distributions_kernel_comes_as_bzimage_elf_and_modules_and_is_made_once() {
    let images = store();
    let kernel = debian_kernel(&images);
    let elf = std::fs::read(&kernel.elf).unwrap();
    assert!(elf.starts_with(b"\x7fELF\x02"));
    assert!(holds(
        &kernel.elf,
        &format!("Linux version {}", kernel.release)
    ));
    check_erofs(kernel.modules_image.as_deref().unwrap());
    assert_eq!(debian_kernel(&images).artifact, kernel.artifact);
}

#[test]
fn both_module_lists_fit_the_distributions_kernel() {
    let images = store();
    let kernel = debian_kernel(&images);
    for (list, later) in [
        (modules::TENANT, modules::TENANT_LATER),
        (modules::HOST, &[][..]),
    ] {
        let spec = InitramfsSpec {
            kernel: kernel.clone(),
            agent: std::env::current_exe().unwrap(),
            modules: list.iter().map(|&name| name.to_owned()).collect(),
            later: later.iter().map(|&name| name.to_owned()).collect(),
            busybox: false,
        };
        let made = images.ensure_initramfs(&spec, &Silent).unwrap();
        assert!(holds(&made.path, "virtio_blk.ko\n"));
        images.remove(Kind::Initramfs, &made.name, &[]).unwrap();
    }
}

#[test]
fn a_debian_image_has_an_init_and_a_user_who_may_become_root() {
    let images = store();
    let image = images.ensure_rootfs("debian", &Silent).unwrap();
    check_erofs(&image.path);
    assert_eq!(image.init.as_deref(), Some("/usr/sbin/init"));
    assert!(holds(&image.path, "user ALL=(ALL:ALL) NOPASSWD: ALL\n"));
    assert_eq!(
        images.ensure_rootfs("debian", &Silent).unwrap().artifact,
        image.artifact
    );
}

#[test]
fn the_emulated_hosts_image_is_made() {
    let image = store().ensure_rootfs("host", &Silent).unwrap();
    check_erofs(&image.path);
}
