//! What tenants' networks need of this machine (docs/networking.md).

use std::fs::{self, OpenOptions};
use std::path::Path;

use super::{Check, Health, program};

/// Kernel modules: links of tenants, what passes frames on to their taps, and what counts their connections.
const MODULES: [&str; 5] = [
    "veth",
    "sch_ingress",
    "cls_matchall",
    "act_mirred",
    "nft_connlimit",
];

/// What limits a container's network. A monitor does that itself.
const RATES: &str = "sch_tbf";

/// Without any of these, tenants can be made with `--net none` alone: `absent` says how bad that is here.
pub fn checks(absent: Health) -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let directory = Path::new("/lib/modules").join(release.trim());
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let files = read("modules.dep") + &read("modules.builtin");
    let is_loaded = |name: &str| Path::new("/sys/module").join(name).exists();
    vec![
        program("packet filter", "nft", "nftables", absent),
        taps(absent),
        links(&files, is_loaded, absent),
        rates(&files, is_loaded),
        forwarding(&fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default()),
    ]
}

fn taps(absent: Health) -> Check {
    let (name, device) = ("taps", "/dev/net/tun");
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Check::ok(name, format!("{device} can be opened")),
        Err(error) => Check::bad(
            name,
            absent,
            format!("{device}: {error}"),
            "load the module tun (`modprobe tun`); until then, tenants can be made with --net none",
        ),
    }
}

/// `files` is what modules.dep and modules.builtin say; `is_loaded` knows what is there already.
fn links(files: &str, is_loaded: impl Fn(&str) -> bool, absent: Health) -> Check {
    let name = "tenants' links";
    let missing: Vec<&str> = MODULES
        .into_iter()
        .filter(|module| !is_loaded(module) && !is_known(files, module))
        .collect();
    if missing.is_empty() {
        return Check::ok(name, MODULES.join(", "));
    }
    Check::bad(
        name,
        absent,
        format!("this kernel has no {}", missing.join(", ")),
        "boot a kernel that has them, as Debian's; until then, tenants can be made with --net none",
    )
}

fn rates(files: &str, is_loaded: impl Fn(&str) -> bool) -> Check {
    let name = "containers' rates";
    if is_loaded(RATES) || is_known(files, RATES) {
        return Check::ok(name, RATES);
    }
    Check::bad(
        name,
        Health::Warning,
        format!("this kernel has no {RATES}"),
        "boot a kernel that has it, as Debian's; until then, --net-rate is for virtual machines alone",
    )
}

/// Whether a module is a file or built in.
pub(crate) fn is_known(files: &str, module: &str) -> bool {
    let file = format!("/{module}.ko");
    files.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        path.split_once(&file)
            .is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('.'))
    })
}

fn forwarding(setting: &str) -> Check {
    let found = match setting.trim() {
        "" => "this kernel does not tell",
        "0" => "off; fief switches it on with the first tenant's network, for tenants alone",
        _ => "on",
    };
    Check::ok("forwarding", found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_counts_whether_it_is_loaded_built_in_or_a_file() {
        let files = "kernel/net/sched/cls_matchall.ko.xz:\n\
                     kernel/net/sched/act_mirred.ko: kernel/x/other.ko\n\
                     kernel/drivers/net/veth.ko\nkernel/net/netfilter/nft_connlimit.ko\nkernel/y/my_sch_ingress.ko: kernel/net/sch_ingress.ko\n";
        let check = |loaded: &str| links(files, |name| name == loaded, Health::Missing);
        assert_eq!(check("sch_ingress").health, Health::Ok);
        let without = check("");
        assert_eq!(without.health, Health::Missing);
        assert_eq!(without.found, "this kernel has no sch_ingress");
        assert!(
            without
                .remedy
                .is_some_and(|remedy| remedy.contains("--net none"))
        );
    }

    #[test]
    fn a_kernel_that_cannot_limit_containers_is_good_for_machines() {
        let files = "kernel/net/sched/sch_tbf.ko.xz:\n";
        assert_eq!(rates(files, |_| false).health, Health::Ok);
        assert_eq!(rates("", |name| name == RATES).health, Health::Ok);
        let without = rates("", |_| false);
        assert_eq!(without.health, Health::Warning);
        assert_eq!(without.found, "this kernel has no sch_tbf");
    }

    #[test]
    fn forwarding_that_is_off_is_no_fault() {
        assert!(forwarding("0\n").found.starts_with("off"));
        assert_eq!(forwarding("1\n").found, "on");
        assert_eq!(forwarding("0\n").health, Health::Ok);
    }
}
