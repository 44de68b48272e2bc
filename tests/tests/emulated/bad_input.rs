//! What users get wrong, and what a host lacks: one line that says what, why and what to do; a code of fief's own;
//! nothing left behind.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::MutexGuard;

use fief_tests::{Said, in_host, run};

use super::backend::Backend;
use super::traces::traces;
use super::{IMAGES, Tenant};

/// Progress of long work is no error.
fn is_progress(line: &str) -> bool {
    line.ends_with(" …") || line.ends_with(" s)")
}

/// It failed as fief does: its own code, nothing on standard output, one line that holds `words`.
#[track_caller]
fn is_refusal(said: &Said, words: &[&str]) {
    assert_eq!(said.code, Some(125), "{said:?}");
    assert_eq!(said.out, "", "{said:?}");
    let lines: Vec<&str> = said.err.lines().filter(|line| !is_progress(line)).collect();
    let [line] = lines[..] else {
        panic!("not one line: {}", said.err)
    };
    assert!(
        line.starts_with("fief: ") && line.contains("; ") && !line.contains("panicked"),
        "{line}"
    );
    for word in words {
        assert!(line.contains(word), "no '{word}' in: {line}");
    }
}

/// What there is of tenants called `name…` and of images, while no other test makes any.
struct Untouched {
    name: &'static str,
    before: Vec<String>,
    _images: MutexGuard<'static, ()>,
}

impl Untouched {
    fn new(name: &'static str) -> Self {
        let images = IMAGES.lock().unwrap_or_else(|lock| lock.into_inner());
        Self {
            name,
            before: traces(name),
            _images: images,
        }
    }

    /// The command is refused, and nothing has changed.
    #[track_caller]
    fn refused(&self, line: &str, words: &[&str]) {
        is_refusal(&run(line), words);
        assert_eq!(traces(self.name), self.before, "{line} left something");
    }
}

#[test]
fn names_cannot_leave_the_state_directory_and_are_given_once() {
    let bad = Untouched::new("bad");
    for name in ["../bad", "bad/b", "..", "Bad", "bad..b"] {
        bad.refused(
            &format!("run --name {name} --image busybox -- true"),
            &[name, "a-z"],
        );
    }
    bad.refused("create ../bad --image busybox", &["../bad", "a-z"]);
    drop(bad);
    let _tenant = Tenant::start("taken", "--kernel micro --image busybox");
    let taken = Untouched::new("taken");
    taken.refused(
        "run --rm --name taken --image busybox -- true",
        &["'taken' is taken", "--name"],
    );
    taken.refused("create taken --image busybox", &["'taken' is taken"]);
    taken.refused("rm taken", &["is running", "fief stop taken"]);
    assert_eq!(run("exec taken -- echo alive").ok(), "alive");
}

#[test]
fn sizes_that_cannot_be_and_unknown_words_are_refused() {
    let bad = Untouched::new("bad");
    let run = "run --rm --name bad --image busybox";
    for (flags, words) in [
        ("--cpus 0", ["--cpus 0", "1 to 32"]),
        ("--cpus 33", ["--cpus 33", "1 to 32"]),
        ("--memory 0", ["--memory", "at least"]),
        ("--memory 900G", ["--memory 900 GiB", "give less"]),
        ("--memory many", ["many", "512M"]),
        ("--memry 1G", ["--memry", "--memory"]),
    ] {
        bad.refused(&format!("{run} {flags} -- true"), &words);
    }
    bad.refused(
        "run --rm --name bad --image no-such-image -- true",
        &["no-such-image", "debian"],
    );
}

/// A file outside, with the first `length` bytes of `source`.
fn cut(source: &PathBuf, name: &str, length: u64) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join(name);
    fs::copy(source, &copy).unwrap();
    let copy = fs::OpenOptions::new().write(true).open(copy).unwrap();
    assert!(copy.metadata().unwrap().len() > length);
    copy.set_len(length).unwrap();
    directory
}

#[test]
fn kernels_that_are_none_or_cut_off_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let none = directory.path().join("none");
    fs::write(&none, "not a kernel\n").unwrap();
    let bad = Untouched::new("bad");
    let run = "run --rm --name bad --image busybox";
    let no_kernel = |path: &str, words: &[&str]| {
        bad.refused(&format!("{run} --kernel {path} -- true"), words);
    };
    no_kernel(&none.display().to_string(), &["none", "bzImage"]);
    no_kernel(
        &directory.path().display().to_string(),
        &["directory", "bzImage"],
    );
    no_kernel("/no/such/file", &["/no/such/file", "bzImage"]);
    no_kernel("no-such-kernel", &["no-such-kernel", "debian"]);
    for name in ["vmlinux", "vmlinuz"] {
        let whole = super::artifact("kernel", "micro").join(name);
        let half = cut(&whole, name, fs::metadata(&whole).unwrap().len() / 2);
        let half = half.path().join(name);
        no_kernel(&half.display().to_string(), &["cut off", "damaged"]);
    }
}

#[test]
fn images_that_are_none_or_cut_off_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let tar = |name: &str, options: &[&str]| {
        let status = Command::new("tar")
            .arg("-cf")
            .arg(file(name))
            .args(options)
            .status();
        assert!(status.unwrap().success());
    };
    fs::write(file("text"), "not an image\n".repeat(1000)).unwrap();
    fs::write(file("nothing.tar"), "").unwrap();
    tar("empty.tar", &["-T", "/dev/null"]);
    fs::create_dir(file("empty")).unwrap();
    fs::write(file("content"), vec![7; 100_000]).unwrap();
    tar(
        "cut.tar",
        &["-C", directory.path().to_str().unwrap(), "content"],
    );
    let cut_tar = fs::OpenOptions::new().write(true).open(file("cut.tar"));
    cut_tar.unwrap().set_len(50_000).unwrap();
    let erofs = super::artifact("image", "busybox").join("root.img");
    let cut_erofs = cut(&erofs, "cut.erofs", 1 << 20);
    fs::rename(cut_erofs.path().join("cut.erofs"), file("cut.erofs")).unwrap();
    let bad = Untouched::new("bad");
    for (name, word) in [
        ("text", "text"),
        ("nothing.tar", "nothing.tar"),
        ("empty.tar", "empty.tar"),
        ("empty", "empty"),
        ("cut.tar", "cut.tar"),
        ("cut.erofs", "truncated"),
        ("no-such-file", "no-such-file"),
    ] {
        let path = file(name);
        bad.refused(
            &format!("run --rm --name bad --image {} -- true", path.display()),
            &[word],
        );
    }
}

/// A state directory of its own in the emulated host, on a file system of its own, that borrows the images there.
struct Elsewhere(&'static str);

impl Elsewhere {
    /// `options` are those of mount(8) for a tmpfs.
    fn new(name: &'static str, options: &str) -> Self {
        in_host(&format!(
            "set -e; mkdir -p /run/{name}; mount -t tmpfs -o {options} {name} /run/{name}
             mkdir /run/{name}/tenants; ln -s /var/lib/fief/images /run/{name}/images; touch /run/{name}/names.lock"
        ))
        .ok();
        Self(name)
    }

    fn content(&self) -> String {
        in_host(&format!("find /run/{} | sort", self.0)).ok()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        in_host(&format!("umount -l /run/{0}; rmdir /run/{0}", self.0));
    }
}

both!(a_full_file_system_is_refused_before_and_while_a_tenant_is_made);
fn a_full_file_system_is_refused_before_and_while_a_tenant_is_made(backend: Backend) {
    run("run --rm --name warm-space --kernel micro --image busybox -- true").ok();
    // Little space is seen before; that no file can be made is met in the midst of it, wherever that is.
    for (name, options, words) in [
        ("full", "size=32m".to_owned(), ["32 MiB", "free"]),
        ("files", "nr_inodes=9".to_owned(), ["No space left", "free"]),
        ("file", "nr_inodes=12".to_owned(), ["No space left", "free"]),
    ] {
        let elsewhere = Elsewhere::new(name, &options);
        let before = elsewhere.content();
        let said = in_host(&format!(
            "fief --state-dir /run/{name} run --rm {backend} --name spaceless --kernel micro --image busybox -- true"
        ));
        is_refusal(&said, &words);
        assert_eq!(elsewhere.content(), before, "{options}: {}", said.err);
    }
}

#[test]
fn a_kvm_that_is_missing_forbidden_or_none_is_told_with_what_to_do() {
    // Makes the images present inside, and shows that the same succeeds where all is well.
    run("run --rm --name warm-kvm --kernel micro --image busybox -- true").ok();
    // An ordinary user (who may make no network) with a state directory and small images of its own, who sees a /dev of the test's making.
    let user = "setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/run/kvm";
    in_host(
        "set -e; umount -l /run/kvm 2>/dev/null || true; mkdir -p /run/kvm; mount -t tmpfs kvm /run/kvm
         mkdir -p /run/kvm/state/images /run/kvm/dev; cd /var/lib/fief/images; cp -a locks refs tmp /run/kvm/state/images
         mkdir /run/kvm/state/images/artifacts
         for one in artifacts/*; do
             if test $(du -sm $one | cut -f1) -lt 30; then cp -a $one /run/kvm/state/images/artifacts; fi
         done
         chown -R 65534:65534 /run/kvm",
    )
    .ok();
    let try_with = |node: &str| {
        in_host(&format!(
            "unshare -m sh -ec 'mount -t tmpfs dev /run/kvm/dev; cd /dev; cp -a null zero full random urandom /run/kvm/dev
             {node}; mount --move /run/kvm/dev /dev
             {user} fief --state-dir /run/kvm/state run --rm --name kvmless --net none --kernel micro --image busybox -- echo it runs'"
        ))
    };
    let left = || in_host("find /run/kvm -not -path '*/locks/*' | sort").ok();
    let allowed = try_with("mknod -m 666 /run/kvm/dev/kvm c 10 232");
    assert_eq!(allowed.ok(), "it runs");
    let before = left();
    for (node, words) in [
        ("true", ["/dev/kvm", "kvm_amd"]),
        (
            "mknod -m 600 /run/kvm/dev/kvm c 10 232",
            ["/dev/kvm", "group"],
        ),
        (
            "mknod -m 666 /run/kvm/dev/kvm c 1 3",
            ["/dev/kvm", "not KVM"],
        ),
    ] {
        is_refusal(&try_with(node), &words);
        assert_eq!(left(), before, "{node}");
    }
    in_host("umount -l /run/kvm; rmdir /run/kvm").ok();
}
