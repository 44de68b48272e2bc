//! Memory that a tenant does not use is the host's, and what the host takes the tenant gets back before it runs out.

use fief_tests::in_host;
use fief_tests::waiting::until;

use super::{Tenant, json};

const MEMORY_MIB: u64 = 320;

impl Tenant {
    fn monitor(&self) -> u64 {
        self.listed()["monitor_pid"].as_u64().unwrap()
    }
}

/// MiB of the monitor, guest RAM included, that are in the host's memory.
#[track_caller]
fn resident_mib(monitor: u64) -> u64 {
    let status = in_host(&format!("cat /proc/{monitor}/status")).ok();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() >> 10
}

/// A request to the monitor's API, in the host; the answer's body.
#[track_caller]
fn api(monitor: u64, line: &str, body: &str) -> String {
    let program = r#"use Socket; my ($socket, $line, $body) = @ARGV;
        socket(S, PF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un($socket)) or die "$socket: $!\n";
        syswrite(S, "$line HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: " . length($body) . "\r\n\r\n$body");
        my $answer = ""; while (sysread(S, my $more, 4096)) { $answer .= $more }
        $answer =~ m{^HTTP/1.1 2.*?\r\n\r\n(.*)$}s or die "$answer\n"; print $1;"#;
    let socket = format!("/proc/{monitor}/cwd/api.sock");
    in_host(&format!("perl -e '{program}' {socket} '{line}' '{body}'")).ok()
}

#[track_caller]
fn statistics(monitor: u64) -> serde_json::Value {
    json(&api(monitor, "GET /balloon/statistics", ""))
}

/// Asks for this much, and waits until the tenant has given it.
#[track_caller]
fn inflate(monitor: u64, mib: u64) {
    let body = format!(r#"{{"amount_mib": {mib}}}"#);
    api(monitor, "PATCH /balloon", &body);
    until("the balloon is as large as it is to be", || {
        (statistics(monitor)["actual_mib"] == mib).then_some(())
    });
}

/// MiB that a line of the tenant's /proc/meminfo says.
#[track_caller]
fn meminfo(tenant: &Tenant, figure: &str) -> u64 {
    let said = tenant.sh("cat /proc/meminfo").ok();
    let line = said.lines().find_map(|line| line.strip_prefix(figure));
    let kib = line.unwrap().trim_matches([':', ' ']).strip_suffix(" kB");
    kib.unwrap().trim().parse::<u64>().unwrap() >> 10
}

/// Waits until the tenant's driver, which is loaded beside the first command, has said something.
#[track_caller]
fn balloon_of(tenant: &Tenant) -> u64 {
    let monitor = tenant.monitor();
    until("the balloon's driver is there", || {
        statistics(monitor)["total_memory"].as_u64()
    });
    monitor
}

#[test]
fn memory_that_a_tenant_frees_is_the_hosts_again() {
    const FILL_MIB: u64 = 120;
    let tenant = Tenant::start("frees", &format!("--image debian --memory {MEMORY_MIB}M"));
    let monitor = balloon_of(&tenant);
    tenant.sh("mount -t tmpfs -o size=200m none /mnt").ok();
    let before = resident_mib(monitor);
    tenant
        .sh(&format!(
            "dd if=/dev/zero of=/mnt/fill bs=1M count={FILL_MIB}"
        ))
        .ok();
    let full = resident_mib(monitor);
    // What was free at first and reported may have been given back meanwhile, but not so much.
    assert!(full >= before + FILL_MIB / 2, "{before} MiB, then {full}");
    tenant.sh("rm /mnt/fill").ok();
    until("most of what was freed has left the monitor", || {
        (resident_mib(monitor) + FILL_MIB * 3 / 4 <= full).then_some(())
    });
    // And can be used again.
    tenant
        .sh(&format!(
            "dd if=/dev/zero of=/mnt/fill bs=1M count={FILL_MIB} && cmp -n {FILL_MIB}M /dev/zero /mnt/fill"
        ))
        .ok();
}

#[test]
fn what_the_balloon_takes_the_tenant_has_not_until_it_is_let_out() {
    const TAKEN_MIB: u64 = 100;
    let tenant = Tenant::start("gives", &format!("--image debian --memory {MEMORY_MIB}M"));
    let monitor = balloon_of(&tenant);
    let before = meminfo(&tenant, "MemAvailable");
    inflate(monitor, TAKEN_MIB);
    let inflated = meminfo(&tenant, "MemAvailable");
    assert!(
        inflated + TAKEN_MIB * 3 / 4 <= before,
        "{before} MiB were available, then {inflated}"
    );
    inflate(monitor, 0);
    let after = meminfo(&tenant, "MemAvailable");
    assert!(
        after >= inflated + TAKEN_MIB * 3 / 4,
        "{inflated} MiB were available, then {after}"
    );
}

#[test]
fn a_tenant_takes_back_what_it_gave_before_it_kills_programs() {
    const LEFT_MIB: u64 = 50;
    const WANTED_MIB: u64 = 100;
    let tenant = Tenant::start("tight", &format!("--image debian --memory {MEMORY_MIB}M"));
    let monitor = balloon_of(&tenant);
    let taken = meminfo(&tenant, "MemAvailable") - LEFT_MIB;
    inflate(monitor, taken);
    // Without the balloon's pages there is no room for it.
    let left = meminfo(&tenant, "MemAvailable");
    assert!(left < WANTED_MIB, "{left} MiB are available");
    let allocate = format!("perl -e '$x = \"x\" x ({WANTED_MIB} << 20); print length $x'");
    assert_eq!(tenant.sh(&allocate).ok(), (WANTED_MIB << 20).to_string());
    let actual = statistics(monitor)["actual_mib"].as_u64().unwrap();
    assert!(actual < taken, "{actual} MiB of {taken} are in the balloon");
}
