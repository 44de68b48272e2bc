//! Images of the user's own, and what becomes of tenants when an image is made anew.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use fief_tests::{in_host, run};

use super::backend::Backend;

/// A root file system of the machine's busybox, whose `/version` says `version`.
fn root_of(directory: &Path, version: &str) {
    let bin = directory.join("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in ["sh", "cat"] {
            symlink("busybox", bin.join(name)).unwrap();
        }
    }
    fs::write(directory.join("version"), version).unwrap();
}

both!(a_tenant_stays_on_the_image_that_it_was_made_from_when_that_is_made_anew);
fn a_tenant_stays_on_the_image_that_it_was_made_from_when_that_is_made_anew(backend: Backend) {
    let directory = tempfile::tempdir().unwrap();
    let image = format!("--image {}", directory.path().display());
    root_of(directory.path(), "one");
    let tenant = backend.start("settled", &image);
    tenant.sh("echo mine > /file").ok();
    run("stop settled").ok();
    // The same name means another image now, and that is where tenants run too.
    root_of(directory.path(), "two");
    let newer = run(&format!(
        "run --rm {backend} --name newer {image} -- cat /version"
    ));
    assert_eq!(newer.ok(), "two");
    run("start settled").ok();
    assert_eq!(tenant.sh("cat /version /file").ok(), "onemine");
    // Nor does it lose it when images are removed where it runs; others come back when they are asked for.
    run("stop settled").ok();
    let name = tenant.listed()["image"].as_str().unwrap().to_owned();
    in_host(&format!("fief images rm -f {name}")).ok();
    run("start settled").ok();
    assert_eq!(tenant.sh("cat /version").ok(), "one");
    let newer = run(&format!(
        "run --rm {backend} --name newer {image} -- cat /version"
    ));
    assert_eq!(newer.ok(), "two");
    // The rig keeps its images between runs, and this one's name is another each time.
    run(&format!("images rm {name}")).ok();
}
