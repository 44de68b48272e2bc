//! What root of a tenant tries to do to the host. The host's root makes each attempt, too: there it succeeds, and is seen.

use fief_tests::{Said, fief, in_host};

use super::Tenant;
use super::backend::Backend;
use Container::{Own, Refused};
use Proof::{Look, Told};

/// Something that root can do to its kernel.
struct Attempt {
    what: &'static str,
    /// Root's script. It finds what [`stage`] makes.
    script: &'static str,
    proof: Proof,
    container: Container,
    /// Whether it succeeds in a machine, on the machine's own kernel. Of processes none may have that number there.
    machine: bool,
}

/// How the host's part in it is seen.
enum Proof {
    /// A script on the host prints something else afterwards; another makes it as it was.
    Look(&'static str, &'static str),
    /// The attempt prints what is the host's alone.
    Told,
}

/// What becomes of it in a container.
enum Container {
    Refused,
    /// Whatever it does is done to something of the container's own.
    Own,
}

/// Makes calls that no program of Debian makes (numbers: arch/x86/entry/syscalls/syscall_64.tbl).
const CALL: &str = r#"#!/usr/bin/perl
my ($call, $word) = @ARGV;
my $none = "";
sub file { open FILE, "<", shift or die "$!\n"; fileno FILE }
# PTRACE_ATTACH, and PTRACE_CONT with SIGKILL.
sub end { my $pid = shift; syscall(101, 16, $pid, 0, 0) == 0 or return 1; waitpid $pid, 0; syscall 101, 7, $pid, 0, 9 }
# MODULE_INIT_COMPRESSED_FILE; KEXEC_FILE_NO_INITRAMFS, KEXEC_FILE_UNLOAD.
my $failed =
    $call eq "finit_module" ? syscall 313, file($word), $none, 4
  : $call eq "kexec_file_load" ? syscall 320, file($word), -1, 1, $none, 4
  : $call eq "kexec_unload" ? syscall 320, -1, -1, 0, 0, 1
  : $call eq "ptrace" ? end($word + 0) : die "no call $call\n";
die "$call: $!\n" if $failed;
"#;

/// Where the files of the attempts are, in the host and in tenants.
const AT: &str = "/root/fief-attempts";

const ATTEMPTS: [Attempt; 16] = [
    Attempt {
        what: "a kernel module",
        script: "./call finit_module module",
        proof: Look("grep -c '^dummy ' /proc/modules || true", "rmmod dummy"),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "another kernel by kexec",
        script: "./call kexec_file_load kernel",
        proof: Look("cat /sys/kernel/kexec_loaded", "./call kexec_unload"),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "a mount of the host's disk",
        script: "mknod disk b $DISK && mount -t ext4 disk at && touch at/fief-was-here && umount at",
        proof: Look(
            "mount -t ext4 /dev/vdb at && ls at && umount at",
            "mount -t ext4 /dev/vdb at && rm at/fief-was-here && umount at",
        ),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "the host's disk without its file system",
        // The UUID in the superblock.
        script: "mknod raw b $DISK && dd if=raw bs=1 skip=1128 count=16 | od -A n -t x1",
        proof: Told,
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "the host's memory",
        // The firmware's.
        script: "mknod memory c 1 1 && dd if=memory bs=4096 skip=240 count=16 > firmware && sha256sum < firmware",
        proof: Told,
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "a process of the host, as its debugger",
        script: "./call ptrace $VICTIM",
        proof: Look("kill -0 $VICTIM && echo lives || true", "true"),
        container: Refused,
        machine: false,
    },
    Attempt {
        what: "a process of the host, by a signal",
        script: "kill -9 $VICTIM",
        proof: Look("kill -0 $VICTIM && echo lives || true", "true"),
        container: Refused,
        machine: false,
    },
    Attempt {
        what: "the clock",
        script: "date -s @2100000000",
        proof: Look(
            "test $(date +%s) -lt 2000000000 && echo now || echo then",
            "date -s @$((BOOT + $(cut -d . -f 1 /proc/uptime)))",
        ),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "a setting of all",
        script: "echo 77 > /proc/sys/kernel/panic",
        proof: Look(
            "cat /proc/sys/kernel/panic",
            "echo $PANIC > /proc/sys/kernel/panic",
        ),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "the program that the kernel runs for a crash",
        script: "echo '|/bin/true' > /proc/sys/kernel/core_pattern",
        proof: Look(
            "cat /proc/sys/kernel/core_pattern",
            "echo core > /proc/sys/kernel/core_pattern",
        ),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "the program that the kernel runs for a module",
        script: "echo /bin/true > /proc/sys/kernel/modprobe",
        proof: Look(
            "cat /proc/sys/kernel/modprobe",
            "echo /sbin/modprobe > /proc/sys/kernel/modprobe",
        ),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "the program that the kernel runs for an empty control group",
        script: "mount -t cgroup -o none,name=fief-attempt attempt at || exit
            mkdir -p at/child && echo $PWD/agent > at/release_agent && echo 1 > at/child/notify_on_release || exit
            sh -c 'echo $$ > at/child/cgroup.procs'
            for look in $(seq 100); do test -e /run/fief-released && break; sleep 0.1; done
            rmdir at/child; umount at; test -e /run/fief-released",
        proof: Look("ls /run | grep fief-rel || true", "rm /run/fief-released"),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "control groups of the host",
        script: "mkdir /sys/fs/cgroup/fief-was-here",
        proof: Look("ls /sys/fs/cgroup", "rmdir /sys/fs/cgroup/fief-was-here"),
        container: Own,
        machine: true,
    },
    Attempt {
        what: "the keys of the console",
        script: "echo h > /proc/sysrq-trigger",
        proof: Look("dmesg | grep -c 'sysrq: HELP' || true", "true"),
        // Masked: it takes every word.
        container: Own,
        machine: true,
    },
    Attempt {
        what: "a word in the kernel's log",
        script: "mknod log c 1 11 && echo fief-was-here > log",
        proof: Look("dmesg | grep -c fief-was-here || true", "true"),
        container: Refused,
        machine: true,
    },
    Attempt {
        what: "the kernel's log",
        script: "dmesg > lines && grep -o 'fief-secret.*' lines | tail -n 1",
        proof: Told,
        container: Refused,
        machine: true,
    },
];

/// The files of the attempts: in a tenant, and in the host.
fn prepare(line: &str) {
    let words = line.split_whitespace();
    let make = format!("rm -rf {AT} && mkdir -p {AT}/at");
    let words = words.chain(["sh", "-c", make.as_str()]);
    Said::from(fief_tests::waiting::output(fief(words))).ok();
    let put = |name: &str, content| super::put(line, &format!("{AT}/{name}"), content);
    put("call", CALL.into());
    put("agent", b"#!/bin/sh\ntouch /run/fief-released\n".into());
    let kernel = super::artifact("kernel", "debian").join("vmlinuz");
    put("kernel", std::fs::read(kernel).unwrap());
}

/// A line of shell that sets what the scripts need to know of the host, which is made ready for the next attempt.
fn stage() -> String {
    let script = format!(
        "cd {AT}; rm -rf disk raw memory firmware log /run/fief-released; rmmod dummy 2> /dev/null
         echo fief-secret $(cat /proc/sys/kernel/random/uuid) > /dev/kmsg
         setsid sleep 100000 > /dev/null 2>&1 &
         echo \"VICTIM=$! PANIC=$(cat /proc/sys/kernel/panic) DISK='$(stat -c '0x%t 0x%T' /dev/vdb)'\"
         echo \"BOOT=$(($(date +%s) - $(cut -d . -f 1 /proc/uptime))); cd {AT}\""
    );
    in_host(&script).ok() + "\n"
}

both!(roots_attempts_do_nothing_to_the_host_and_the_same_by_the_hosts_root_do);
fn roots_attempts_do_nothing_to_the_host_and_the_same_by_the_hosts_root_do(backend: Backend) {
    let tenant = backend.start("hostile-root", "--image debian --net none");
    fief_tests::host();
    for line in ["host exec -i --", "exec -i hostile-root --"] {
        prepare(line);
    }
    let module = "cat $(modinfo -n dummy)";
    in_host(&format!(
        "{module} > {AT}/module; {module} | fief exec -i hostile-root -- sh -c 'cat > {AT}/module'"
    ))
    .ok();
    for attempt in &ATTEMPTS {
        make(backend, &tenant, attempt);
    }
    in_host(&format!("rm -r {AT}")).ok();
}

/// In the tenant, then on the host.
fn make(backend: Backend, tenant: &Tenant, attempt: &Attempt) {
    let Attempt { what, script, .. } = attempt;
    let stage = stage();
    let look = || match &attempt.proof {
        Look(script, _) => in_host(&format!("{stage}{script}")).ok(),
        Told => String::new(),
    };
    let before = look();
    let inside = tenant.sh(&format!("{stage}{script}"));
    assert_eq!(look(), before, "{what}: {inside:?}");
    let succeeds = inside.code == Some(0);
    let expected = match (backend, &attempt.container) {
        (Backend::Machine, _) => attempt.machine || succeeds,
        (Backend::Container, Refused) => false,
        (Backend::Container, Own) => succeeds,
    };
    assert_eq!(succeeds, expected, "{what}: {inside:?}");

    let control = in_host(&format!("{stage}{script}"));
    let after = look();
    let undo = match &attempt.proof {
        Look(_, undo) => undo,
        Told => "true",
    };
    in_host(&format!("{stage}{undo}")).ok();
    in_host(&format!("{stage}kill -9 $VICTIM"));
    let told = control.out.trim().to_owned();
    assert_eq!(control.code, Some(0), "on the host, {what}: {control:?}");
    match attempt.proof {
        Look(..) => assert_ne!(after, before, "{what} is not seen on the host"),
        Told => assert!(
            !told.is_empty() && !inside.out.contains(&told),
            "{what}: {told}"
        ),
    }
}
