//! Many tenants at once on a host of 4 GiB.

use fief_tests::{Said, fief, host, in_host, run, waiting};

use super::backend::Backend;
use super::{Tenant, json};

const TENANTS: usize = 20;
/// MiB of each.
const MEMORY_MIB: u64 = 128;
/// MiB of the host's memory that an idle tenant takes on average, shared pages counted in part (PSS): busybox on the
/// kernel `micro`, whose monitor took 28.6 when this was written, and in a container, whose agent took 0.3.
const PSS_LIMIT: [u64; 2] = [36, 1];

/// Processes of monitors and shims in the host.
fn processes() -> String {
    in_host("cat /proc/[0-9]*/comm | grep -c '^fief' || true").ok()
}

both!(twenty_idle_tenants_run_at_once_and_leave_nothing);
fn twenty_idle_tenants_run_at_once_and_leave_nothing(backend: Backend) {
    host();
    let names: Vec<String> = (0..TENANTS).map(|index| format!("crowd{index}")).collect();
    let tenants: Vec<Tenant> = names.iter().map(|name| Tenant::named(name)).collect();
    let before = processes();
    let options = format!("{backend} --image busybox --kernel micro --memory {MEMORY_MIB}M");
    let starting = |name: &String| {
        let line = format!("run -d --name {name} {options}");
        fief(line.split_whitespace()).spawn().unwrap()
    };
    let started: Vec<_> = names.iter().map(starting).collect();
    for (child, name) in started.into_iter().zip(&names) {
        Said::from(waiting::end_of(child, name)).ok();
    }
    for tenant in &tenants {
        assert_eq!(tenant.sh("echo here").ok(), "here");
    }
    let mut pss_kib = 0;
    for tenant in &tenants {
        let listed = tenant.listed();
        assert_eq!(listed["status"], "running");
        let monitor = &listed["monitor_pid"];
        let rollup = in_host(&format!("grep ^Pss: /proc/{monitor}/smaps_rollup")).ok();
        let kib = rollup.split_whitespace().nth(1).unwrap();
        pss_kib += kib.parse::<u64>().unwrap();
    }
    let average = pss_kib / TENANTS as u64;
    println!("PSS of an idle tenant with {MEMORY_MIB} MiB: {average} KiB");
    println!(
        "{}",
        in_host("grep -E '^(MemTotal|MemAvailable)' /proc/meminfo").ok()
    );
    run(&format!("rm -f {}", names.join(" "))).ok();
    let all = json(&run("ps -a --json").ok());
    let left = |entry: &&serde_json::Value| names.iter().any(|name| entry["name"] == name.as_str());
    assert_eq!(all.as_array().unwrap().iter().find(left), None);
    assert_eq!(processes(), before);
    let limit = backend.either(PSS_LIMIT[0], PSS_LIMIT[1]);
    assert!(
        average <= limit << 10,
        "{average} KiB, more than {limit} MiB"
    );
}
