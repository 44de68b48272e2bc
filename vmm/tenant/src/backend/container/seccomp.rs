//! The system calls that a container's processes may make: all that programs of a Linux distribution need, init systems,
//! compilers, databases and containers inside included, and none that only open the kernel, which every container of the
//! machine shares.
//!
//! What is neither allowed nor refused by name fails with ENOSYS, as on a kernel that is older than the call: programs
//! and C libraries fall back from that, and from little else. So it goes for calls that are newer than this list.

use nix::libc::{AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_UNIX, EAFNOSUPPORT, ENOSYS, EPERM};
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// Files, directories and their attributes, by whatever name they are reached.
const FILES: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "close",
    "close_range",
    "copy_file_range",
    "creat",
    "dup",
    "dup2",
    "dup3",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fallocate",
    "fchdir",
    "fchmod",
    "fchmodat",
    "fchown",
    "fchownat",
    "fcntl",
    "fdatasync",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fremovexattr",
    "fsetxattr",
    "fstat",
    "fstatfs",
    "fsync",
    "ftruncate",
    "futimesat",
    "getcwd",
    "getdents",
    "getdents64",
    "getxattr",
    "ioctl",
    "lchown",
    "lgetxattr",
    "link",
    "linkat",
    "listxattr",
    "llistxattr",
    "lremovexattr",
    "lseek",
    "lsetxattr",
    "lstat",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "name_to_handle_at",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pipe",
    "pipe2",
    "pread64",
    "preadv",
    "preadv2",
    "pwrite64",
    "pwritev",
    "pwritev2",
    "read",
    "readahead",
    "readlink",
    "readlinkat",
    "readv",
    "removexattr",
    "rename",
    "renameat",
    "renameat2",
    "rmdir",
    "sendfile",
    "setxattr",
    "splice",
    "stat",
    "statfs",
    "statx",
    "symlink",
    "symlinkat",
    "sync",
    "sync_file_range",
    "syncfs",
    "tee",
    "truncate",
    "umask",
    "unlink",
    "unlinkat",
    "utime",
    "utimensat",
    "utimes",
    "vmsplice",
    "write",
    "writev",
];

/// Waiting for descriptors, and asynchronous I/O other than io_uring: databases use it.
const EVENTS: &[&str] = &[
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd",
    "eventfd2",
    "fanotify_init",
    "fanotify_mark",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init1",
    "inotify_rm_watch",
    "io_cancel",
    "io_destroy",
    "io_getevents",
    "io_pgetevents",
    "io_setup",
    "io_submit",
    "poll",
    "ppoll",
    "pselect6",
    "select",
    "signalfd",
    "signalfd4",
    "timerfd_create",
    "timerfd_gettime",
    "timerfd_settime",
];

/// Memory of processes, also of those on machines with several nodes.
const MEMORY: &[&str] = &[
    "brk",
    "get_mempolicy",
    "madvise",
    "mbind",
    "membarrier",
    "memfd_create",
    "memfd_secret",
    "migrate_pages",
    "mincore",
    "mlock",
    "mlock2",
    "mlockall",
    "mmap",
    "move_pages",
    "mprotect",
    "mremap",
    "msync",
    "munlock",
    "munlockall",
    "munmap",
    "pkey_alloc",
    "pkey_free",
    "pkey_mprotect",
    "process_madvise",
    "process_mrelease",
    "remap_file_pages",
    "set_mempolicy",
    "set_mempolicy_home_node",
];

/// System V's and POSIX's ways between processes; the container has an ipc namespace of its own.
const IPC: &[&str] = &[
    "mq_getsetattr",
    "mq_notify",
    "mq_open",
    "mq_timedreceive",
    "mq_timedsend",
    "mq_unlink",
    "msgctl",
    "msgget",
    "msgrcv",
    "msgsnd",
    "semctl",
    "semget",
    "semop",
    "semtimedop",
    "shmat",
    "shmctl",
    "shmdt",
    "shmget",
];

/// Processes and threads, namespaces below the container's own, debuggers, and what confines a program further.
const PROCESSES: &[&str] = &[
    "arch_prctl",
    "clone",
    "clone3",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "fork",
    "futex",
    "futex_waitv",
    "get_robust_list",
    "getcpu",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getsid",
    "gettid",
    "kcmp",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "landlock_restrict_self",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "prctl",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "restart_syscall",
    "rseq",
    "seccomp",
    "set_robust_list",
    "set_tid_address",
    "setns",
    "setpgid",
    "setsid",
    "unshare",
    "vfork",
    "wait4",
    "waitid",
];

/// Signals and the timers that send them.
const SIGNALS: &[&str] = &[
    "alarm",
    "getitimer",
    "kill",
    "pause",
    "rt_sigaction",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigqueueinfo",
    "rt_sigreturn",
    "rt_sigsuspend",
    "rt_sigtimedwait",
    "rt_tgsigqueueinfo",
    "setitimer",
    "sigaltstack",
    "tgkill",
    "timer_create",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_settime",
    "tkill",
];

/// Who a process is; sudo changes it.
const IDENTITY: &[&str] = &[
    "capget",
    "capset",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getresgid",
    "getresuid",
    "getuid",
    "setfsgid",
    "setfsuid",
    "setgid",
    "setgroups",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setuid",
];

/// Limits, priorities, and what a process may know of the machine.
const RESOURCES: &[&str] = &[
    "getpriority",
    "getrandom",
    "getrlimit",
    "getrusage",
    "ioprio_get",
    "ioprio_set",
    "prlimit64",
    "sched_get_priority_max",
    "sched_get_priority_min",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
    "sched_yield",
    "setpriority",
    "setrlimit",
    "sysinfo",
    "times",
    "uname",
];

/// Reading clocks. `adjtimex` reads too, and the kernel wants CAP_SYS_TIME of the host for more than that.
const TIME: &[&str] = &[
    "adjtimex",
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "gettimeofday",
    "nanosleep",
    "time",
];

/// Sockets, once there are some: `socket` and `socketpair` are allowed by family.
const NETWORK: &[&str] = &[
    "accept",
    "accept4",
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "listen",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
];

/// What root of the container may do to its own namespaces: mounts, names, and ending it (reboot(2), "Behavior inside
/// PID namespaces").
const SYSTEM: &[&str] = &[
    "chroot",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "pivot_root",
    "reboot",
    "setdomainname",
    "sethostname",
    "umount2",
    "vhangup",
];

const ALLOWED: &[&[&str]] = &[
    FILES, EVENTS, MEMORY, IPC, PROCESSES, SIGNALS, IDENTITY, RESOURCES, TIME, NETWORK, SYSTEM,
];

/// Calls that fail on purpose, with an error that tells the caller why.
struct Refusal {
    errno: i32,
    names: &'static [&'static str],
}

const REFUSED: &[Refusal] = &[
    // The kernel is the host's: another one, or more of it, is not a tenant's to load.
    Refusal {
        errno: EPERM,
        names: &[
            "kexec_file_load",
            "kexec_load",
            "delete_module",
            "finit_module",
            "init_module",
        ],
    },
    // The host's log, accounts, swap space and quotas.
    Refusal {
        errno: EPERM,
        names: &[
            "acct",
            "quotactl",
            "quotactl_fd",
            "swapoff",
            "swapon",
            "syslog",
        ],
    },
    // The host's clock.
    Refusal {
        errno: EPERM,
        names: &["clock_adjtime", "clock_settime", "settimeofday"],
    },
    // The host's I/O ports.
    Refusal {
        errno: EPERM,
        names: &["ioperm", "iopl"],
    },
    // It reaches files past the container's root: the way out of early Docker.
    Refusal {
        errno: EPERM,
        names: &["open_by_handle_at"],
    },
    // Programs in the kernel, and counters of all that runs on the machine.
    Refusal {
        errno: EPERM,
        names: &["bpf", "perf_event_open"],
    },
    // It stops the kernel at a moment of the caller's choice, which makes races into exploits.
    Refusal {
        errno: EPERM,
        names: &["userfaultfd"],
    },
    // Many ways into the kernel past this very filter. Programs that use it try first and fall back.
    Refusal {
        errno: ENOSYS,
        names: &["io_uring_enter", "io_uring_register", "io_uring_setup"],
    },
    // Keyrings have a long list of bugs and few users in a container. PAM, systemd and Kerberos do without.
    Refusal {
        errno: ENOSYS,
        names: &["add_key", "keyctl", "request_key"],
    },
    // 16-bit segments: as with a kernel that is built without CONFIG_MODIFY_LDT_SYSCALL.
    Refusal {
        errno: ENOSYS,
        names: &["modify_ldt"],
    },
    // Gone from Linux, never there on x86-64, or without a user for decades.
    Refusal {
        errno: ENOSYS,
        names: &[
            "_sysctl",
            "afs_syscall",
            "create_module",
            "epoll_ctl_old",
            "epoll_wait_old",
            "get_kernel_syms",
            "get_thread_area",
            "getpmsg",
            "lookup_dcookie",
            "nfsservctl",
            "putpmsg",
            "query_module",
            "security",
            "set_thread_area",
            "sysfs",
            "tuxcall",
            "uselib",
            "ustat",
            "vserver",
        ],
    },
];

/// Families of sockets. Others are old, or reach past the container: AF_VSOCK the machine that the host itself runs on,
/// AF_ALG the kernel's ciphers. AF_PACKET needs CAP_NET_RAW in the container's own network namespace.
const FAMILIES: [i32; 5] = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET];
/// Above the last of [`FAMILIES`], and whatever has high bits set that the kernel would cut off.
const OTHER_FAMILIES: u64 = AF_PACKET.unsigned_abs() as u64 + 1;

/// Execution domains (personality(2)): Linux, also as i686 and as 2.6, each with or without addresses that are the same
/// at every run, which debuggers want; and the question for the present one. The others make memory easier to attack.
const DOMAINS: [u64; 9] = [
    0,
    PER_LINUX32,
    UNAME26,
    PER_LINUX32 | UNAME26,
    ADDR_NO_RANDOMIZE,
    PER_LINUX32 | ADDR_NO_RANDOMIZE,
    UNAME26 | ADDR_NO_RANDOMIZE,
    PER_LINUX32 | UNAME26 | ADDR_NO_RANDOMIZE,
    0xffff_ffff,
];
const PER_LINUX32: u64 = 0x0008;
const UNAME26: u64 = 0x0002_0000;
const ADDR_NO_RANDOMIZE: u64 = 0x0004_0000;

/// The filter of every container.
///
/// Only x86-64's own calls: i386's hide a socket's family in memory, where no filter sees it, and are code that few
/// test; x32 is off in Debian's kernels. A process that makes such a call is killed (SIGSYS).
///
/// # Errors
/// None that this list could cause.
pub fn profile() -> Result<LinuxSeccomp, OciSpecError> {
    let mut rules = vec![rule(&ALLOWED.concat(), None, None)?];
    // A rule that does what is done anyway is an error to libseccomp.
    for refusal in REFUSED.iter().filter(|refusal| refusal.errno != ENOSYS) {
        rules.push(rule(refusal.names, Some(refusal.errno), None)?);
    }
    let by_first = |name: &str, op, value, errno| rule(&[name], errno, Some(first(op, value)?));
    let equal = LinuxSeccompOperator::ScmpCmpEq;
    let unknown = Some(EAFNOSUPPORT);
    for family in 0..OTHER_FAMILIES {
        let known = FAMILIES
            .iter()
            .any(|one| family == u64::from(one.unsigned_abs()));
        let errno = unknown.filter(|_| !known);
        rules.push(by_first("socket", equal, family, errno)?);
    }
    let at_least = LinuxSeccompOperator::ScmpCmpGe;
    rules.push(by_first("socket", at_least, OTHER_FAMILIES, unknown)?);
    let unix = u64::from(AF_UNIX.unsigned_abs());
    rules.push(by_first("socketpair", equal, unix, None)?);
    let other = LinuxSeccompOperator::ScmpCmpNe;
    rules.push(by_first("socketpair", other, unix, unknown)?);
    for domain in DOMAINS {
        rules.push(by_first("personality", equal, domain, None)?);
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(ENOSYS.unsigned_abs())
        .architectures([Arch::ScmpArchX86_64])
        .syscalls(rules)
        .build()
}

/// A condition on a call's first argument.
fn first(op: LinuxSeccompOperator, value: u64) -> Result<LinuxSeccompArg, OciSpecError> {
    LinuxSeccompArgBuilder::default()
        .index(0usize)
        .op(op)
        .value(value)
        .build()
}

/// What becomes of calls: they fail with `errno`, or are allowed if there is none.
fn rule(
    names: &[&str],
    errno: Option<i32>,
    condition: Option<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut rule = LinuxSyscallBuilder::default().names(names);
    rule = match errno {
        Some(errno) => rule
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(errno.unsigned_abs()),
        None => rule.action(LinuxSeccompAction::ScmpActAllow),
    };
    if let Some(condition) = condition {
        rule = rule.args(vec![condition]);
    }
    rule.build()
}

#[cfg(test)]
mod tests;
