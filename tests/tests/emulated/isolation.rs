//! What a tenant does not get, and what its ordinary users cannot do by way of what belongs to fief.

use fief_tests::{Said, in_host, run_with};

use super::Tenant;
use super::backend::Backend;

/// `call CID PORT`: connects through vsock and begins a session as a client of the agent does (docs/agent-protocol.md).
const CALL: &str = r#"#!/usr/bin/perl
my ($cid, $port) = @ARGV;
$SIG{PIPE} = "IGNORE";
socket(S, 40, 1, 0) or die "no vsock: $!\n";
connect(S, pack("SSLLL", 40, 0, $port, $cid)) or (print("not connected: $!\n"), exit);
syswrite(S, "FIEF\0agent-hello" . "n" x 16);
my $answer;
print sysread(S, $answer, 32) ? "answered: " . substr($answer, 5, 11) . "\n" : "hung up\n";
"#;

/// `listen PORT COMMAND…`: runs the command while a child answers one call to the port as the agent does.
const LISTEN: &str = r#"#!/usr/bin/perl
my $port = shift;
socket(L, 40, 1, 0) && bind(L, pack("SSLLL", 40, 0, $port, 0xffffffff)) && listen(L, 1) or die "cannot listen: $!\n";
exec @ARGV if fork;
accept(C, L) && sysread(C, my $hello, 32) && syswrite(C, "FIEF\0agent-ready" . "n" x 16);
"#;

/// Prints this machine's context id: ioctl IOCTL_VM_SOCKETS_GET_LOCAL_CID.
const CID: &str = r#"#!/usr/bin/perl
my $cid = pack("L", 0);
open(D, "<", "/dev/vsock") && ioctl(D, 0x7b9, $cid) or die "$!\n";
print unpack("L", $cid);
"#;

/// Context ids under which a program reaches the machine it runs on: VMADDR_CID_LOCAL, and the machine's own.
fn own_cids(tenant: &Tenant) -> [String; 2] {
    ["1".to_owned(), tenant.sh("/tmp/cid").ok()]
}

/// A tenant of Debian with the three programs in `/tmp`.
#[track_caller]
fn start(name: &str, options: &str) -> Tenant {
    let tenant = Tenant::start(name, &format!("--image debian {options}"));
    for (program, text) in [("call", CALL), ("listen", LISTEN), ("cid", CID)] {
        let file = format!("/tmp/{program}");
        let script = format!("cat > {file} <<'END' && chmod 755 {file}\n{text}END");
        tenant.sh(&script).ok();
    }
    tenant
}

/// What an ordinary user of the tenant sees.
#[track_caller]
fn as_user(tenant: &Tenant, script: &str) -> String {
    run_with(&format!("exec --user user {} -- sh -c", tenant.0), script).ok()
}

#[test]
fn an_ordinary_user_cannot_talk_to_the_agent_even_where_vsock_is_looped_back() {
    let tenant = start("guarded", "");
    // Root may load it; from then on any user's calls to the machine itself arrive.
    tenant.sh("modprobe vsock_loopback").ok();
    for cid in own_cids(&tenant) {
        let control = format!("/tmp/listen 5000 /tmp/call {cid} 5000");
        assert_eq!(as_user(&tenant, &control), "answered: agent-ready");
        assert_eq!(
            as_user(&tenant, &format!("/tmp/call {cid} 1024")),
            "hung up"
        );
    }
    // The host's calls are answered as ever.
    assert_eq!(tenant.sh("id -u").ok(), "0");
}

#[test]
fn fiefs_own_kernels_do_not_loop_vsock_back() {
    let tenant = start("unlooped", "--kernel micro");
    for cid in own_cids(&tenant) {
        let got = as_user(&tenant, &format!("/tmp/call {cid} 1024"));
        assert!(got.starts_with("not connected"), "context id {cid}: {got}");
    }
}

both!(device_nodes_are_open_to_those_whom_udev_would_let_in);
fn device_nodes_are_open_to_those_whom_udev_would_let_in(backend: Backend) {
    let tenant = backend.start("nodes", "--image debian");
    let open = tenant.sh("stat -c '%a %U' /dev/null /dev/net/tun /dev/fuse");
    let closed = "/dev/vsock /dev/vhost-vsock /dev/ttyS0 /dev/vda";
    let closed = tenant.sh(&format!("stat -c '%a %U' {closed}"));
    let lines = |said: &Said| said.out.lines().map(str::to_owned).collect::<Vec<_>>();
    // A container has few.
    let expected: &[&str] = backend.either(&["666 root"; 3], &["666 root"]);
    assert_eq!(lines(&open), expected, "{open:?}");
    let expected: &[&str] = backend.either(&["600 root"; 4], &[]);
    assert_eq!(lines(&closed), expected, "{closed:?}");
}

#[test]
fn a_tenants_processors_are_the_hosts_without_what_is_withheld() {
    let tenant = Tenant::start("bare", "--image busybox");
    let show = "grep -m1 ^flags /proc/cpuinfo; \
                cat /sys/devices/system/clocksource/clocksource0/available_clocksource";
    let (guest, host) = (tenant.sh(show).ok(), in_host(show).ok());
    let has = |shown: &str, word: &str| shown.split_whitespace().any(|found| found == word);
    // What machines inside a machine are made of; the emulated host has it, or nothing here would run.
    assert!(has(&host, "svm") && !has(&guest, "svm"), "{guest}");
    for wanted in ["x2apic", "tsc_deadline_timer", "hypervisor", "kvm-clock"] {
        assert!(has(&guest, wanted), "{wanted} is not in: {guest}");
    }
}
