//! The kernels a tenant can have, and the forms they come in.

use fief_tests::run;

#[test]
fn the_small_kernel_boots_to_a_shell() {
    let said = run("run --rm --name small --kernel micro --image busybox -- uname -r").ok();
    assert!(said.starts_with('6'), "{said}");
}

#[test]
fn debians_kernel_boots_as_bzimage_and_as_elf() {
    let elf =
        run("run --rm --name elf --kernel debian --kernel-format elf --image busybox -- uname -r")
            .ok();
    let bzimage = run(
        "run --rm --name bz --kernel debian --kernel-format bzimage --image busybox -- uname -r",
    )
    .ok();
    assert_eq!(elf, bzimage);
    assert!(elf.ends_with("-cloud-amd64"), "{elf}");
}

#[test]
fn a_tenant_has_as_many_processors_and_as_much_memory_as_asked() {
    let said = run("run --rm --name four --cpus 4 --memory 300M --image busybox -- nproc").ok();
    assert_eq!(said, "4");
    let said = run("run --rm --name mem --memory 300M --image busybox -- cat /proc/meminfo").ok();
    let kib: u64 = said
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!((200 << 10..=300 << 10).contains(&kib), "{kib} KiB");
}
