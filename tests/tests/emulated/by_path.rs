//! Images and kernels that are files of this machine, named by their paths.

use std::path::Path;
use std::process::Command;

use fief_tests::{Said, fief, run, waiting};

use super::backend::Backend;
use super::{IMAGES, busybox_root};

fn tool(program: &str, arguments: &[&str], directory: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env(
            "PATH",
            format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap()),
        )
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

both!(an_image_is_a_directory_a_tar_or_an_image_file_and_a_kernel_is_a_file);
fn an_image_is_a_directory_a_tar_or_an_image_file_and_a_kernel_is_a_file(backend: Backend) {
    let _images = IMAGES.lock().unwrap_or_else(|lock| lock.into_inner());
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    busybox_root(here);
    std::fs::write(here.join("root/mark"), "from outside\n").unwrap();
    tool("tar", &["-cf", "a.tar", "-C", "root", "."], here);
    tool("tar", &["-czf", "b.tar.gz", "-C", "root", "."], here);
    tool("mkfs.erofs", &["c.erofs", "root"], here);
    tool(
        "mke2fs",
        &["-q", "-t", "ext4", "-d", "root", "d.ext4", "16M"],
        here,
    );
    for kernel in ["vmlinux", "vmlinuz"] {
        let file = super::artifact("kernel", "micro").join(kernel);
        std::fs::copy(file, here.join(kernel)).unwrap();
    }
    for (image, kernel) in [
        ("./root", "micro"),
        ("./a.tar", "debian"),
        ("./b.tar.gz", "./vmlinuz"),
        ("./c.erofs", "./vmlinux"),
        ("./d.ext4", "micro"),
    ] {
        let line =
            format!("run --rm {backend} --name path --image {image} --kernel {kernel} -- sh -c");
        fief_tests::host();
        let mut command = fief(line.split_whitespace().chain(["cat /mark; uname -r"]));
        command.current_dir(here);
        let said = Said::from(waiting::output(command)).ok();
        let (mark, release) = said.split_once('\n').unwrap();
        assert_eq!(mark, "from outside", "{image}");
        // The two kernels differ in their versions. A container has the host's, which is Debian's.
        assert_eq!(
            release.contains("cloud"),
            backend.either(kernel == "debian", true),
            "{image} {kernel}: {release}"
        );
    }
    for image in super::json(&run("images --json").ok()).as_array().unwrap() {
        let name = image["name"].as_str().unwrap();
        if image["kind"] == "image" && name.starts_with("path-") {
            run(&format!("images rm {name}")).ok();
        }
    }
}
