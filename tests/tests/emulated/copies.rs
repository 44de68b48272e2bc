//! `fief cp`: files and directories both ways, and what a hostile tenant may not do with that.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use fief_tests::{Said, feed, fief, run, spawn, waiting};

use super::backend::Backend;

/// `fief cp A B`, in `directory`.
fn cp(directory: &Path, from: &str, to: &str) -> Said {
    fief_tests::host();
    let mut command = fief(["cp", from, to]);
    command.current_dir(directory);
    waiting::output(command).into()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A tree with everything that there is to keep.
fn tree(path: &Path) {
    fs::create_dir_all(path.join("sub/empty")).unwrap();
    fs::write(path.join("sub/file"), "content\n").unwrap();
    let big: Vec<u8> = (0..=255_u8).cycle().take(5 << 20).collect();
    fs::write(path.join("big file"), big).unwrap();
    fs::set_permissions(path.join("sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(path.join("sub"), fs::Permissions::from_mode(0o710)).unwrap();
    symlink("sub/file", path.join("link")).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(path.join("sub/file"))
        .unwrap()
        .set_modified(old)
        .unwrap();
}

both!(a_tree_goes_into_a_tenant_and_comes_back_as_it_was);
fn a_tree_goes_into_a_tenant_and_comes_back_as_it_was(backend: Backend) {
    let _tenant = backend.start("copies", "--kernel micro --image busybox");
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    tree(&here.join("tree"));
    cp(here, "tree", "copies:/root/new").ok();
    let inside = run("exec copies -- stat -c %a:%Y:%u /root/new/sub/file").ok();
    assert_eq!(inside, "640:1000000000:0");
    // It is there now: into it.
    cp(here, "./tree", "copies:/root/new").ok();
    run("exec copies -- test -f /root/new/tree/sub/file").ok();
    cp(here, "tree/sub/.", "copies:/root/new").ok();
    assert_eq!(run("exec copies -- cat /root/new/file").ok(), "content");
    run("exec copies -- rm -r /root/new/tree /root/new/file /root/new/empty").ok();
    cp(here, "copies:/root/new", "back").ok();
    let back = here.join("back");
    assert_eq!(
        fs::read(back.join("big file")).unwrap(),
        fs::read(here.join("tree/big file")).unwrap()
    );
    assert_eq!(
        fs::read_link(back.join("link")).unwrap(),
        Path::new("sub/file")
    );
    assert_eq!(mode(&back.join("sub")), 0o710);
    assert_eq!(mode(&back.join("sub/file")), 0o640);
    assert!(back.join("sub/empty").is_dir());
    assert_eq!(
        fs::metadata(back.join("sub/file")).unwrap().mtime(),
        1_000_000_000
    );
}

both!(tar_streams_go_through_standard_input_and_output);
fn tar_streams_go_through_standard_input_and_output(backend: Backend) {
    let _tenant = backend.start("tars", "--kernel micro --image busybox");
    let directory = tempfile::tempdir().unwrap();
    tree(&directory.path().join("tree"));
    let tar = |words: &[&str]| {
        let mut command = std::process::Command::new("tar");
        command.current_dir(directory.path()).args(words);
        command
    };
    let stream = tar(&["-c", "tree"]).output().unwrap().stdout;
    let said: Said = feed(spawn("cp - tars:/root"), stream).into();
    said.ok();
    assert_eq!(run("exec tars -- cat /root/tree/sub/file").ok(), "content");
    fief_tests::host();
    let out = waiting::output(fief(["cp", "tars:/root/tree/sub", "-"]));
    assert!(out.status.success(), "{out:?}");
    fs::write(directory.path().join("out.tar"), out.stdout).unwrap();
    let listed = tar(&["-tf", "out.tar"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let mut names: Vec<_> = listed.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["sub/", "sub/empty/", "sub/file"]);
    // A stream that is none.
    let said: Said = feed(spawn("cp - tars:/root"), vec![1; 4096]).into();
    assert!(said.fails(125).contains("no tar archive"));
}

both!(what_cannot_be_copied_is_told_and_nothing_changes);
fn what_cannot_be_copied_is_told_and_nothing_changes(backend: Backend) {
    let _tenant = backend.start("copyless", "--kernel micro --image busybox");
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    fs::write(here.join("file"), "mine").unwrap();
    fs::create_dir(here.join("dir")).unwrap();
    let refused = |from: &str, to: &str, words: &[&str]| {
        let said = cp(here, from, to).fails(125);
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "no '{word}' in: {said}");
        }
    };
    refused(
        "file",
        "copyless:/no/such/file",
        &["/no/such", "make it first"],
    );
    refused(
        "file",
        "copyless:/root/new/",
        &["/root/new/", "make it first"],
    );
    refused(
        "dir",
        "copyless:/etc/passwd",
        &["/etc/passwd", "no directory"],
    );
    refused("file", "copyless:/dev/null", &["/dev/null", "neither"]);
    refused("none", "copyless:/root", &["none", "No such file"]);
    refused("copyless:/no/such", "x", &["/no/such", "No such file"]);
    refused("copyless:/etc", "file", &["file", "no directory"]);
    refused("copyless:/etc/passwd", "no/x", &["no", "make it first"]);
    refused(
        "copyless:/etc/passwd",
        "/dev/null",
        &["/dev/null", "neither"],
    );
    refused("file", "dir", &["neither side", "NAME:PATH"]);
    refused(
        "copyless:/x",
        "copyless:/y",
        &["from one tenant to another"],
    );
    refused("file", "nobody:/x", &["no tenant 'nobody'"]);
    assert_eq!(fs::read_to_string(here.join("file")).unwrap(), "mine");
    assert_eq!(fs::read_dir(here).unwrap().count(), 2);
    // The control.
    cp(here, "file", "copyless:/root/new").ok();
    cp(here, "copyless:/root/new", "x").ok();
}

both!(what_comes_out_of_a_tenant_has_no_set_id_bits_and_no_device_nodes_and_stays_in_its_place);
fn what_comes_out_of_a_tenant_has_no_set_id_bits_and_no_device_nodes_and_stays_in_its_place(
    backend: Backend,
) {
    let tenant = backend.start("hostile", "--kernel micro --image busybox");
    tenant
        .sh(
            "mkdir -p /root/x/sub; cd /root/x; echo evil > program; chmod 6755 program; mknod null c 1 3; mkfifo fifo
             ln -s /etc/passwd link; ln -s .. sub/up; ln program hard",
        )
        .ok();
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    // A link that was there before, where the copy has a file of that name.
    fs::create_dir_all(here.join("out/x")).unwrap();
    fs::write(here.join("mine"), "mine").unwrap();
    symlink("../../mine", here.join("out/x/program")).unwrap();
    let said = cp(here, "hostile:/root/x", "out");
    assert_eq!(said.code, Some(0), "{said:?}");
    // A container's root can make no device node.
    let told = ["null", "fifo"].map(|name| said.err.contains(name));
    assert_eq!(told, [backend.either(true, false), true], "{}", said.err);
    let out = here.join("out/x");
    assert_eq!(mode(&out.join("program")), 0o755);
    assert_eq!(fs::read_to_string(out.join("program")).unwrap(), "evil\n");
    assert_eq!(fs::read_to_string(out.join("hard")).unwrap(), "evil\n");
    assert_eq!(fs::read_to_string(here.join("mine")).unwrap(), "mine");
    assert!(!out.join("null").exists() && !out.join("fifo").exists());
    assert_eq!(
        fs::read_link(out.join("link")).unwrap(),
        Path::new("/etc/passwd")
    );
}
