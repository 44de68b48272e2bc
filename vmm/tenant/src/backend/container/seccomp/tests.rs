use std::collections::{BTreeMap, BTreeSet};

use nix::libc::{self, c_long};

use super::*;

/// The table of x86-64's system calls up to Linux 5.17, which libseccomp 2.5.4 knows, by libc's numbers.
macro_rules! table {
    ($($name:ident)*) => { [$((stringify!($name), libc::$name)),*] };
}

#[rustfmt::skip]
const TABLE: &[(&str, c_long)] = &table![
    SYS_read SYS_write SYS_open SYS_close SYS_stat SYS_fstat SYS_lstat SYS_poll SYS_lseek SYS_mmap SYS_mprotect
    SYS_munmap SYS_brk SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_ioctl SYS_pread64 SYS_pwrite64
    SYS_readv SYS_writev SYS_access SYS_pipe SYS_select SYS_sched_yield SYS_mremap SYS_msync SYS_mincore
    SYS_madvise SYS_shmget SYS_shmat SYS_shmctl SYS_dup SYS_dup2 SYS_pause SYS_nanosleep SYS_getitimer SYS_alarm
    SYS_setitimer SYS_getpid SYS_sendfile SYS_socket SYS_connect SYS_accept SYS_sendto SYS_recvfrom SYS_sendmsg
    SYS_recvmsg SYS_shutdown SYS_bind SYS_listen SYS_getsockname SYS_getpeername SYS_socketpair SYS_setsockopt
    SYS_getsockopt SYS_clone SYS_fork SYS_vfork SYS_execve SYS_exit SYS_wait4 SYS_kill SYS_uname SYS_semget
    SYS_semop SYS_semctl SYS_shmdt SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl SYS_fcntl SYS_flock SYS_fsync
    SYS_fdatasync SYS_truncate SYS_ftruncate SYS_getdents SYS_getcwd SYS_chdir SYS_fchdir SYS_rename SYS_mkdir
    SYS_rmdir SYS_creat SYS_link SYS_unlink SYS_symlink SYS_readlink SYS_chmod SYS_fchmod SYS_chown SYS_fchown
    SYS_lchown SYS_umask SYS_gettimeofday SYS_getrlimit SYS_getrusage SYS_sysinfo SYS_times SYS_ptrace
    SYS_getuid SYS_syslog SYS_getgid SYS_setuid SYS_setgid SYS_geteuid SYS_getegid SYS_setpgid SYS_getppid
    SYS_getpgrp SYS_setsid SYS_setreuid SYS_setregid SYS_getgroups SYS_setgroups SYS_setresuid SYS_getresuid
    SYS_setresgid SYS_getresgid SYS_getpgid SYS_setfsuid SYS_setfsgid SYS_getsid SYS_capget SYS_capset
    SYS_rt_sigpending SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_sigsuspend SYS_sigaltstack SYS_utime
    SYS_mknod SYS_uselib SYS_personality SYS_ustat SYS_statfs SYS_fstatfs SYS_sysfs SYS_getpriority
    SYS_setpriority SYS_sched_setparam SYS_sched_getparam SYS_sched_setscheduler SYS_sched_getscheduler
    SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_mlock SYS_munlock
    SYS_mlockall SYS_munlockall SYS_vhangup SYS_modify_ldt SYS_pivot_root SYS__sysctl SYS_prctl SYS_arch_prctl
    SYS_adjtimex SYS_setrlimit SYS_chroot SYS_sync SYS_acct SYS_settimeofday SYS_mount SYS_umount2 SYS_swapon
    SYS_swapoff SYS_reboot SYS_sethostname SYS_setdomainname SYS_iopl SYS_ioperm SYS_init_module
    SYS_delete_module SYS_quotactl SYS_nfsservctl SYS_getpmsg SYS_putpmsg SYS_afs_syscall SYS_tuxcall
    SYS_security SYS_gettid SYS_readahead SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_getxattr SYS_lgetxattr
    SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
    SYS_tkill SYS_time SYS_futex SYS_sched_setaffinity SYS_sched_getaffinity SYS_set_thread_area SYS_io_setup
    SYS_io_destroy SYS_io_getevents SYS_io_submit SYS_io_cancel SYS_get_thread_area SYS_lookup_dcookie
    SYS_epoll_create SYS_epoll_ctl_old SYS_epoll_wait_old SYS_remap_file_pages SYS_getdents64
    SYS_set_tid_address SYS_restart_syscall SYS_semtimedop SYS_fadvise64 SYS_timer_create SYS_timer_settime
    SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_clock_settime SYS_clock_gettime SYS_clock_getres
    SYS_clock_nanosleep SYS_exit_group SYS_epoll_wait SYS_epoll_ctl SYS_tgkill SYS_utimes SYS_vserver SYS_mbind
    SYS_set_mempolicy SYS_get_mempolicy SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive
    SYS_mq_notify SYS_mq_getsetattr SYS_kexec_load SYS_waitid SYS_add_key SYS_request_key SYS_keyctl
    SYS_ioprio_set SYS_ioprio_get SYS_inotify_init SYS_inotify_add_watch SYS_inotify_rm_watch SYS_migrate_pages
    SYS_openat SYS_mkdirat SYS_mknodat SYS_fchownat SYS_futimesat SYS_newfstatat SYS_unlinkat SYS_renameat
    SYS_linkat SYS_symlinkat SYS_readlinkat SYS_fchmodat SYS_faccessat SYS_pselect6 SYS_ppoll SYS_unshare
    SYS_set_robust_list SYS_get_robust_list SYS_splice SYS_tee SYS_sync_file_range SYS_vmsplice SYS_move_pages
    SYS_utimensat SYS_epoll_pwait SYS_signalfd SYS_timerfd_create SYS_eventfd SYS_fallocate SYS_timerfd_settime
    SYS_timerfd_gettime SYS_accept4 SYS_signalfd4 SYS_eventfd2 SYS_epoll_create1 SYS_dup3 SYS_pipe2
    SYS_inotify_init1 SYS_preadv SYS_pwritev SYS_rt_tgsigqueueinfo SYS_perf_event_open SYS_recvmmsg
    SYS_fanotify_init SYS_fanotify_mark SYS_prlimit64 SYS_name_to_handle_at SYS_open_by_handle_at
    SYS_clock_adjtime SYS_syncfs SYS_sendmmsg SYS_setns SYS_getcpu SYS_process_vm_readv SYS_process_vm_writev
    SYS_kcmp SYS_finit_module SYS_sched_setattr SYS_sched_getattr SYS_renameat2 SYS_seccomp SYS_getrandom
    SYS_memfd_create SYS_kexec_file_load SYS_bpf SYS_execveat SYS_userfaultfd SYS_membarrier SYS_mlock2
    SYS_copy_file_range SYS_preadv2 SYS_pwritev2 SYS_pkey_mprotect SYS_pkey_alloc SYS_pkey_free SYS_statx
    SYS_rseq SYS_pidfd_send_signal SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_open_tree
    SYS_move_mount SYS_fsopen SYS_fsconfig SYS_fsmount SYS_fspick SYS_pidfd_open SYS_clone3 SYS_close_range
    SYS_openat2 SYS_pidfd_getfd SYS_faccessat2 SYS_process_madvise SYS_epoll_pwait2 SYS_mount_setattr
    SYS_quotactl_fd SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
    SYS_memfd_secret SYS_process_mrelease SYS_futex_waitv SYS_set_mempolicy_home_node
];
/// Those of the table that libc has no number of.
const UNNUMBERED: [(&str, c_long); 4] = [
    ("SYS_create_module", 174),
    ("SYS_get_kernel_syms", 177),
    ("SYS_query_module", 178),
    ("SYS_io_pgetevents", 333),
];
/// Decided by their first argument.
const BY_ARGUMENT: [&str; 3] = ["personality", "socket", "socketpair"];

fn table() -> BTreeMap<&'static str, c_long> {
    let all = TABLE.iter().chain(&UNNUMBERED);
    all.map(|(name, number)| (name.strip_prefix("SYS_").unwrap(), *number))
        .collect()
}

/// What the filter does with a call, by evaluating its rules as libseccomp does: the one that fits, else the default.
fn outcome(name: &str, argument: u64) -> Result<(), u32> {
    let profile = profile().unwrap();
    let fits = |condition: &LinuxSeccompArg| match condition.op() {
        LinuxSeccompOperator::ScmpCmpEq => argument == condition.value(),
        LinuxSeccompOperator::ScmpCmpNe => argument != condition.value(),
        LinuxSeccompOperator::ScmpCmpGe => argument >= condition.value(),
        other => panic!("{other}"),
    };
    let rules = profile.syscalls().as_ref().unwrap();
    let mut fitting = rules.iter().filter(|rule| {
        let conditions = rule.args().as_deref().unwrap_or_default();
        rule.names().iter().any(|one| one == name) && conditions.iter().all(fits)
    });
    let rule = fitting.next();
    assert!(
        fitting.next().is_none(),
        "{name}({argument:#x}) has two rules"
    );
    match rule.map(LinuxSyscall::action) {
        Some(LinuxSeccompAction::ScmpActAllow) => Ok(()),
        Some(_) => Err(rule.unwrap().errno_ret().unwrap()),
        None => Err(profile.default_errno_ret().unwrap()),
    }
}

const NOT_ALLOWED: u32 = EPERM.unsigned_abs();
const UNKNOWN: u32 = ENOSYS.unsigned_abs();
const NO_FAMILY: u32 = EAFNOSUPPORT.unsigned_abs();

#[test]
fn every_call_of_the_table_is_allowed_or_refused_by_name_and_none_twice_or_unknown() {
    let named: Vec<&str> = ALLOWED
        .iter()
        .copied()
        .chain(REFUSED.iter().map(|refusal| refusal.names))
        .flatten()
        .copied()
        .chain(BY_ARGUMENT)
        .collect();
    let distinct: BTreeSet<_> = named.iter().copied().collect();
    assert_eq!(distinct.len(), named.len(), "a name is there twice");
    let table = table();
    let all: BTreeSet<_> = table.keys().copied().collect();
    assert_eq!(distinct, all);
    // The table has no hole: x86-64's numbers run to 334, and from 424 on as everywhere.
    let numbers: BTreeSet<_> = table.values().copied().collect();
    assert_eq!(numbers, (0..=334).chain(424..=450).collect());
}

#[test]
fn what_programs_need_is_allowed_and_the_kernel_stays_shut() {
    for name in [
        "read",
        "clone3",
        "unshare",
        "mount",
        "ptrace",
        "reboot",
        "setuid",
        "seccomp",
        "io_submit",
    ] {
        assert_eq!(outcome(name, 0), Ok(()), "{name}");
    }
    for name in [
        "bpf",
        "finit_module",
        "kexec_load",
        "clock_settime",
        "open_by_handle_at",
    ] {
        assert_eq!(outcome(name, 0), Err(NOT_ALLOWED), "{name}");
    }
    for name in [
        "io_uring_setup",
        "keyctl",
        "modify_ldt",
        "a_call_of_tomorrow",
    ] {
        assert_eq!(outcome(name, 0), Err(UNKNOWN), "{name}");
    }
}

#[test]
fn sockets_are_of_the_families_that_stay_inside() {
    for family in [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET] {
        assert_eq!(
            outcome("socket", u64::from(family.unsigned_abs())),
            Ok(()),
            "{family}"
        );
    }
    for family in [
        libc::AF_UNSPEC,
        libc::AF_ALG,
        libc::AF_VSOCK,
        libc::AF_BLUETOOTH,
        libc::AF_X25,
    ] {
        let family = u64::from(family.unsigned_abs());
        assert_eq!(outcome("socket", family), Err(NO_FAMILY), "{family}");
    }
    // The kernel looks at the low 32 bits only.
    for low in [libc::AF_VSOCK, libc::AF_INET] {
        let family = 1 << 32 | u64::from(low.unsigned_abs());
        assert_eq!(outcome("socket", family), Err(NO_FAMILY), "{family:#x}");
    }
    assert_eq!(outcome("socketpair", 1), Ok(()));
    assert_eq!(outcome("socketpair", 38), Err(NO_FAMILY));
}

#[test]
fn debuggers_may_fix_addresses_and_nobody_may_map_page_zero() {
    assert_eq!(outcome("personality", 0xffff_ffff), Ok(()));
    let fixed = u64::from(libc::ADDR_NO_RANDOMIZE.unsigned_abs());
    assert_eq!(outcome("personality", fixed), Ok(()));
    for bad in [libc::MMAP_PAGE_ZERO, libc::READ_IMPLIES_EXEC] {
        let bad = u64::from(bad.unsigned_abs());
        assert_eq!(outcome("personality", bad | fixed), Err(UNKNOWN));
    }
}

#[test]
fn runtimes_are_given_no_rule_that_does_what_is_done_anyway() {
    let profile = profile().unwrap();
    let default = (profile.default_action(), profile.default_errno_ret());
    for rule in profile.syscalls().as_ref().unwrap() {
        assert_ne!(
            (rule.action(), rule.errno_ret()),
            default,
            "{:?}",
            rule.names()
        );
    }
}
