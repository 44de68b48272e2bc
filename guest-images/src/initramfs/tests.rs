use super::*;
use crate::kernel::KernelKind;
use crate::progress::Silent;
use crate::store::Error as StoreError;

/// A kernel artifact with an index of modules, as the recipe for the distribution's makes it.
fn kernel(store: &Store, index: &modules::Index, image: &[u8]) -> Kernel {
    store
        .ensure(Kind::Kernel, "debian", "1", &Silent, |work| {
            fs::write(work.out.join("vmlinuz"), "bz").unwrap();
            fs::write(work.out.join("vmlinux"), "elf").unwrap();
            fs::write(work.out.join("modules.erofs"), image).unwrap();
            fs::write(
                work.out.join("modules.json"),
                serde_json::to_vec(index).unwrap(),
            )
            .unwrap();
            Ok::<_, StoreError>([("release".to_owned(), "6.99-test".to_owned())].into())
        })
        .unwrap();
    kernel::find(store, KernelKind::Debian).unwrap().unwrap()
}

fn setup() -> (tempfile::TempDir, Store, InitramfsSpec) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let image = [b"\x7fELF first".as_slice(), b"\x7fELF second"].concat();
    let place = |path: &str| {
        Some(if path.contains("first") {
            (0, 10)
        } else {
            (10, 11)
        })
    };
    let index = modules::Index::parse(
        "k/second.ko: k/first.ko\nk/first.ko:\nk/third.ko: k/first.ko\n",
        "k/ext4.ko\n",
        place,
    )
    .unwrap();
    let agent = dir.path().join("agent");
    fs::write(&agent, "the agent").unwrap();
    let kernel = kernel(&store, &index, &image);
    let spec = InitramfsSpec {
        kernel,
        agent,
        modules: vec!["second".into(), "ext4".into()],
        later: vec!["third".into(), "first".into()],
        busybox: false,
    };
    (dir, store, spec)
}

fn contains(archive: &[u8], text: &str) -> bool {
    archive
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

#[test]
fn the_agent_is_init_and_modules_are_listed_in_load_order() {
    let (_dir, store, spec) = setup();
    let made = ensure(&store, &spec, &Silent).unwrap();
    let archive = fs::read(made.path).unwrap();
    assert!(contains(&archive, "the agent") && contains(&archive, "dev/console"));
    let list = "/lib/modules/6.99-test/k/first.ko\n/lib/modules/6.99-test/k/second.ko\n";
    assert!(contains(&archive, &format!("{list}\0")));
    // What the first list brings is not in the second again.
    assert!(contains(
        &archive,
        "\0/lib/modules/6.99-test/k/third.ko\n\0"
    ));
}

#[test]
fn it_is_made_again_only_when_agent_kernel_or_list_change() {
    let (dir, store, mut spec) = setup();
    let first = ensure(&store, &spec, &Silent).unwrap();
    let written = first.path.metadata().unwrap().modified().unwrap();
    let same = ensure(&store, &spec, &Silent).unwrap();
    assert_eq!(same.path.metadata().unwrap().modified().unwrap(), written);
    fs::write(dir.path().join("agent"), "another agent").unwrap();
    let other_agent = ensure(&store, &spec, &Silent).unwrap();
    assert_ne!(other_agent.artifact, first.artifact);
    spec.modules.clear();
    assert_ne!(
        ensure(&store, &spec, &Silent).unwrap().artifact,
        other_agent.artifact
    );
    // The first one is still there for whoever runs the first agent.
    assert!(first.path.exists());
}

#[test]
fn a_missing_agent_or_module_is_an_error_that_names_it() {
    let (_dir, store, mut spec) = setup();
    spec.modules.push("no_such_module".into());
    let message = ensure(&store, &spec, &Silent).unwrap_err().to_string();
    assert!(message.contains("no_such_module"), "{message}");
    spec.agent = "/no/agent".into();
    assert!(
        ensure(&store, &spec, &Silent)
            .unwrap_err()
            .to_string()
            .contains("/no/agent")
    );
}
