//! `fief set --isolation`: a tenant moves between machine and container, and its files come along as they were.

use fief_tests::{Said, in_host, run, run_with, spawn, waiting};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::backend::Backend;
use super::{Tenant, json};

/// Lines for each thing: path, kind, mode, owner, mtime, size, names and target; content; attributes. Left out is what
/// every boot changes: what is mounted, names that the host gives (/etc/hosts, whose directory it is therefore written in),
/// and where modules are mounted in a machine.
const MANIFEST: &str = r#"
found() { find / \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /lib/modules -o -path /usr/lib/modules \
    -o -path /etc/hosts \) -prune -o "$@"; }
found \( -path / -o -path /etc -o -path /usr/lib \) -printf '%p %y %m %U %G\0' -o -type d -printf '%p %y %m %U %G %T@\0' \
    -o -printf '%p %y %m %U %G %T@ %s %n %l\0' | tr '\n\0' '\t\n'
found -type f -print0 | xargs -0 sha256sum
found -print0 | perl -0ne 'chomp; my $path = $_; my $names = "\0" x 4096; my $size = syscall(194, $path, $names, 4096);
    for my $name (split /\0/, substr($names, 0, $size > 0 ? $size : 0)) { my $value = "\0" x 4096;
        my $length = syscall(192, $path, $name, $value, 4096); next if $length < 0; $path =~ s/\n/\t/g;
        print "$path $name=", unpack("H*", substr($value, 0, $length)), "\n" }'
"#;

const PLANT: &str = r#"
set -e; cd /root
pack() { mkdir -p d/$1/DEBIAN d/$1/usr/bin; printf 'Package: %s\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n' $1 > d/$1/DEBIAN/control
  printf '#!/bin/sh\necho %s works\n' $1 > d/$1/usr/bin/$1; chmod 755 d/$1/usr/bin/$1; dpkg-deb -b d/$1 $1.deb >/dev/null; }
pack one; pack two; dpkg -i one.deb >/dev/null
mkdir odd; cd odd; printf x > "$(printf 'new\nline\377')"; echo first > first; ln first second; mkfifo -m 640 fifo
cp /bin/true suid; chmod 6755 suid; echo u > owned; chown 1234:4321 owned; touch -d '1931-02-03 04:05:06.125' old; touch -d '2200-01-01 00:00:00.123456' new
truncate -s 200M sparse; printf middle | dd of=sparse bs=1 seek=150000000 conv=notrunc 2>/dev/null
rm -r /usr/share/doc/base-files; rm /etc/issue; mkdir /etc/issue; echo in > /etc/issue/in; rm -r /etc/opt; echo file > /etc/opt; chmod 750 /srv
cp /bin/true capable
perl -e 'sub put { my ($path, $name, $value) = @_; syscall(189, $path, $name, $value, length $value, 0) == 0 or die "$name: $!" }
put("capable", "security.capability", pack("V5", 0x02000001, 1 << 13, 0, 0, 0)); put("owned", "user.note", "a\nb\0c");
put("owned", "system.posix_acl_access", pack("V", 2) . join "", map { pack "vvV", @$_ } [1,6,~0], [2,7,1000], [4,4,~0], [16,7,~0], [32,0,~0]);
put(".", "system.posix_acl_default", pack("V", 2) . join "", map { pack "vvV", @$_ } [1,7,~0], [2,5,1000], [4,5,~0], [16,5,~0], [32,0,~0]);'
"#;

fn manifest(tenant: &Tenant) -> Vec<String> {
    let line = format!("exec {} -- sh -c", tenant.0);
    let said = run_with(&line, MANIFEST).ok();
    let mut lines: Vec<_> = said.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[track_caller]
fn assert_same(before: &[String], after: &[String]) {
    assert!(before.len() > 1000, "{} lines", before.len());
    let without = |one: &[String], other: &[String]| -> Vec<String> {
        let other: std::collections::HashSet<_> = other.iter().collect();
        let only = one.iter().filter(|line| !other.contains(line));
        only.take(10).cloned().collect()
    };
    let attributes = before.iter().filter(|line| {
        [
            "security.capability=",
            "system.posix_acl_access=",
            "system.posix_acl_default=",
            "user.note=",
        ]
        .iter()
        .any(|name| line.contains(name))
    });
    assert!(attributes.count() >= 4);
    let differs = (without(before, after), without(after, before));
    assert_eq!(differs, (Vec::new(), Vec::new()));
}

fn inspected(name: &str) -> String {
    json(&run(&format!("inspect {name}")).ok()).to_string()
}

#[test]
fn a_debian_goes_into_a_container_and_back_with_all_that_it_has() {
    let tenant = Tenant::start("moves", "--image debian --net none");
    tenant.sh(PLANT).ok();
    let before = manifest(&tenant);
    let error = run("set moves --isolation container").fails(125);
    assert!(error.contains("fief stop moves"), "{error}");
    run("stop moves").ok();
    run("set moves --isolation container").ok();
    run("start moves").ok();
    assert_same(&before, &manifest(&tenant));
    assert_eq!(
        tenant.sh("one; stat -c %b /root/odd/sparse").ok(),
        "one works\n8"
    );
    tenant.sh("dpkg -i /root/two.deb && two").ok();
    let before = manifest(&tenant);
    run("stop moves").ok();
    run("set moves --isolation vm").ok();
    run("start moves").ok();
    assert_same(&before, &manifest(&tenant));
    let works = tenant
        .sh("one; two; dpkg -V one two; dpkg -r one two >/dev/null; test ! -e /usr/bin/two")
        .ok();
    assert_eq!(works, "one works\ntwo works");
}

#[test]
fn what_cannot_move_is_named_and_a_move_that_is_killed_changes_nothing() {
    let tenant = Tenant::start("stays", "--kernel micro --image busybox --net none");
    tenant
        .sh("echo kept > /root/file; mknod /root/null c 1 3")
        .ok();
    run("stop stays").ok();
    let error = run("set stays --isolation container").fails(125);
    assert!(error.contains("/root/null (a device node)"), "{error}");
    run("start stays").ok();
    tenant.sh("rm /root/null").ok();
    run("stop stays").ok();
    let mut moving = spawn("set stays --isolation container");
    let inside = waiting::until("the move is on its way", || {
        let found = in_host("pgrep -f '[s]et stays --isolation'").out;
        let spool = in_host("ls /var/lib/fief/tenants/stays/moving").code == Some(0);
        (spool && !found.trim().is_empty()).then(|| found.trim().replace('\n', " "))
    });
    in_host(&format!("kill -9 {inside}")).ok();
    moving.wait().unwrap();
    waiting::until("it can be started again", || {
        (run("start stays").code == Some(0)).then_some(())
    });
    assert_eq!(
        tenant
            .sh("cat /root/file; uname -r | grep -c micro; true")
            .ok()
            .lines()
            .next(),
        Some("kept")
    );
    let left = in_host("ls /var/lib/fief/tenants/stays").ok();
    assert!(
        left.contains("disk.ext4") && !left.contains("layer.ext4") && !left.contains("moving"),
        "{left}"
    );
    run("stop stays").ok();
    // The control: nothing else keeps it from moving.
    run("set stays --isolation container").ok();
    run("set stays --isolation container").ok();
    run("start stays").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
    assert!(inspected("stays").contains("\"container\""));
}

/// Gives `/root/file` an attribute: setxattr and removexattr on x86-64.
fn mark(name: &str) -> String {
    // A file capability, or any text.
    let call = r#"my ($path, $name) = @ARGV; my $value = pack("V5", 0x02000001, 1 << 13, 0, 0, 0);
        syscall(188, $path, $name, $value, length $value, 0) == 0 or die "$!\n""#;
    format!("perl -e '{call}' /root/file {name}")
}

fn unmark(name: &str) -> String {
    let call = r#"my ($path, $name) = @ARGV; syscall(197, $path, $name) == 0 or die "$!\n""#;
    format!("perl -e '{call}' /root/file {name}")
}

/// What a tenant is to be, and how it ended.
fn spec(name: &str) -> String {
    let all = json(&run(&format!("inspect {name}")).ok());
    format!("{} {}", all["spec"], all["exit"])
}

/// What there is of a tenant on the host's disk.
fn directory(name: &str) -> String {
    in_host(&format!("ls /var/lib/fief/tenants/{name}")).ok()
}

#[test]
fn trusted_attributes_and_an_interrupt_keep_a_tenant_as_it_was() {
    let tenant = Tenant::start("held", "--image debian --net none");
    let mark = mark("trusted.note");
    let unmark = unmark("trusted.note");
    tenant.sh(&format!("echo kept > /root/file; {mark}")).ok();
    run("stop held").ok();
    let before = (spec("held"), directory("held"));
    let error = run("set held --isolation container --memory 256M").fails(125);
    let named = "/root/file (has the attribute trusted.note)";
    assert!(
        error.contains(named) && error.contains("remove them in the tenant"),
        "{error}"
    );
    assert_eq!((spec("held"), directory("held")), before);
    run("start held").ok();
    tenant.sh(&format!("cat /root/file; {unmark}")).ok();
    run("stop held").ok();
    let before = (spec("held"), directory("held"));
    let moving = spawn("set held --isolation container");
    waiting::until("the move is on its way", || {
        directory("held").contains("moving").then_some(())
    });
    kill(Pid::from_raw(moving.id().cast_signed()), Signal::SIGINT).unwrap();
    let said = Said::from(waiting::end_of(moving, "a move that is interrupted"));
    assert_eq!(said.code, Some(130), "{said:?}");
    assert_eq!((spec("held"), directory("held")), before);
    // The control.
    run("set held --isolation container").ok();
    run("start held").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
}

#[test]
fn a_tenant_that_never_ran_moves_at_once_and_what_the_other_kind_cannot_have_is_told() {
    let tenant = Tenant::create("unborn", "--image busybox --kernel micro --net none");
    super::gpus::describe();
    let other = Tenant::create(
        "unborn-gpu",
        "--image busybox --net none --isolation container --gpu fief.test/gpu=0",
    );
    let refused = |line: &str, words: &[&str]| {
        let before = inspected("unborn");
        let error = run(line).fails(125);
        for word in words {
            assert!(error.contains(word), "{line}: {error}");
        }
        assert_eq!(inspected("unborn"), before, "{line}");
    };
    run("disk add --name data unborn 16M").ok();
    refused(
        "set unborn --isolation container",
        &["'unborn' has disks", "fief disk rm"],
    );
    run("disk rm -f unborn data").ok();
    run("set unborn --disk-rate 1M").ok();
    refused(
        "set unborn --isolation container --disk 1M",
        &["cannot shrink"],
    );
    run("set unborn --isolation container").ok();
    // It keeps its rates.
    assert!(inspected("unborn").contains("1048576"));
    // Without a start: there is nothing that it could have said.
    let files = directory("unborn");
    assert!(
        files.contains("layer.ext4") && !files.contains("disk.ext4") && !files.contains("console"),
        "{files}"
    );
    run("start unborn").ok();
    tenant.sh("true").ok();
    let error = run("set unborn-gpu --isolation vm").fails(125);
    assert!(error.contains("fief.test/gpu=0"), "{error}");
    assert!(inspected(&other.0).contains("\"container\""));
}

#[test]
fn a_kernel_without_attributes_is_told_and_a_move_that_is_killed_half_way_is_undone() {
    let tenant = Tenant::start(
        "halts",
        "--isolation container --kernel micro --image debian --net none",
    );
    tenant
        .sh(&format!(
            "echo kept > /root/file; {}",
            mark("security.capability")
        ))
        .ok();
    run("stop halts").ok();
    let before = (spec("halts"), directory("halts"));
    let error = run("set halts --isolation vm").fails(125);
    for word in ["/root/file", "security.capability", "--kernel debian"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!((spec("halts"), directory("halts")), before);
    run("start halts").ok();
    tenant.sh(&unmark("security.capability")).ok();
    run("stop halts").ok();
    let mut moving = spawn("set halts --isolation vm");
    // The container has told what it has when there is a monitor.
    let pid = waiting::until("the machine is there", || {
        let monitor = in_host("pgrep -f 'fief-vm[m].*--id halts'").code == Some(0);
        let found = in_host("pgrep -f '[s]et halts --isolation'").out;
        (monitor && !found.trim().is_empty()).then(|| found.trim().replace('\n', " "))
    });
    in_host(&format!("kill -9 {pid}")).ok();
    moving.wait().unwrap();
    waiting::until("it can be started again", || {
        (run("start halts").code == Some(0)).then_some(())
    });
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
    let left = directory("halts");
    assert!(
        left.contains("layer.ext4") && !left.contains("disk.ext4") && !left.contains("moving"),
        "{left}"
    );
    run("stop halts").ok();
    run("set halts --isolation vm").ok();
    // As if it had been killed between the spec and the end.
    in_host("cd /var/lib/fief/tenants/halts; mkdir moving; echo x > layer.ext4").ok();
    run("start halts").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
    let left = directory("halts");
    assert!(
        left.contains("disk.ext4") && !left.contains("layer.ext4") && !left.contains("moving"),
        "{left}"
    );
}

both!(a_tenant_whose_files_do_not_fit_on_the_hosts_disk_twice_stays_as_it_was);
fn a_tenant_whose_files_do_not_fit_on_the_hosts_disk_twice_stays_as_it_was(backend: Backend) {
    run("run --rm --name warm-moves --kernel micro --image busybox -- true").ok();
    let at = "/run/narrow";
    in_host(&format!(
        "umount -l {at} 2> /dev/null; set -e; mkdir -p {at}; mount -t tmpfs -o size=300m narrow {at}; ln -s /var/lib/fief/images {at}/images"
    ))
    .ok();
    let inside = |line: &str| in_host(&format!("fief --host native --state-dir {at} {line}"));
    let options = format!("{backend} --kernel micro --image busybox --net none --disk 64M");
    inside(&format!("run -d --name narrow {options}")).ok();
    let content = "exec narrow -- sha256sum /root/file";
    inside("exec narrow -- dd if=/dev/urandom of=/root/file bs=1M count=20").ok();
    let sum = inside(content).ok();
    inside("stop narrow").ok();
    let has = in_host(&format!("du -sm {at} | cut -f 1")).ok();
    let has: u32 = has.parse().unwrap();
    let set = format!(
        "set narrow --isolation {}",
        backend.either("container", "vm")
    );
    // A range of ids, once taken, stays a tenant's.
    let files = || in_host(&format!("ls {at}/tenants/narrow | grep -v ids.json")).ok();
    let before = files();
    // Too little for what differs, and for the new disk.
    for (more, words) in [(10, "No space left"), (33, "cannot write /")] {
        in_host(&format!("mount -o remount,size={}m {at}", has + more)).ok();
        let error = inside(&set).fails(125);
        assert!(error.contains(words), "{error}");
        assert_eq!(files(), before);
        inside("start narrow").ok();
        assert_eq!(inside(content).ok(), sum);
        inside("stop narrow").ok();
    }
    // A start that failed on a full disk leaves no word of how the last run ended. The tenant has files all the same.
    in_host(&format!(
        "mount -o remount,size=300m {at}; rm {at}/tenants/narrow/exit.json"
    ))
    .ok();
    inside(&set).ok();
    inside("start narrow").ok();
    assert_eq!(inside(content).ok(), sum);
    inside("rm -f narrow").ok();
    in_host(&format!("umount -l {at}; rmdir {at}")).ok();
}
