//! What users get wrong: one line that says what, why and what to do; a code that is not 0; nothing left behind.

use fief_tests::{in_host, run};

/// The command fails as fief's own failures do, its message holds `words`, and no tenant is left.
#[track_caller]
fn refused(line: &str, words: &[&str]) {
    let before = run("ps -a --json").ok();
    let said = run(line);
    assert!(matches!(said.code, Some(125 | 2)), "{line}: {said:?}");
    for word in words {
        assert!(
            said.err.contains(word),
            "{line}: no '{word}' in: {}",
            said.err
        );
    }
    assert!(
        said.err.trim().lines().count() <= 4,
        "{line}: too long: {}",
        said.err
    );
    assert!(!said.err.contains("panicked"), "{line}: {}", said.err);
    let named = |json: &str| json.contains("\"bad\"");
    assert_eq!(
        named(&run("ps -a --json").ok()),
        named(&before),
        "{line} left a tenant behind"
    );
}

#[test]
fn names_cannot_leave_the_state_directory() {
    refused("run --name ../bad --image busybox -- true", &["../bad"]);
    refused("run --name a/b --image busybox -- true", &["a/b"]);
    refused("run --name .. --image busybox -- true", &[".."]);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    refused(
        "run --rm --name bad --image busybox --cpus 0 -- true",
        &["cpus"],
    );
    refused(
        "run --rm --name bad --image busybox --cpus 33 -- true",
        &["32"],
    );
    refused(
        "run --rm --name bad --image busybox --memory 0 -- true",
        &["memory"],
    );
    refused(
        "run --rm --name bad --image busybox --memory 900G -- true",
        &["memory"],
    );
    refused(
        "run --rm --name bad --image busybox --memory many -- true",
        &["many"],
    );
}

#[test]
fn unknown_images_and_kernels_that_are_none_are_named() {
    refused(
        "run --rm --name bad --image no-such-image -- true",
        &["no-such-image", "debian"],
    );
    in_host("echo not a kernel > /tmp/none").ok();
    refused(
        "run --rm --name bad --image busybox --kernel /tmp/no-such-file -- true",
        &["/tmp/no-such-file"],
    );
}

#[test]
fn unknown_flags_get_a_hint() {
    refused("run --memry 1G -- true", &["--memory"]);
}
