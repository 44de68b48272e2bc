//! `--disk-rate` and `--disk-ops`: what passes in the time that another tenant without a limit needs for so many bytes. (Those
//! of the network: network/rates.rs.)

use std::sync::Mutex;

use fief_tests::{in_host, run, waiting};

use super::Tenant;
use super::backend::Backend;

const OPTIONS: &str = "--kernel micro --image busybox --net none --memory 128M --disk 256M";
/// Bytes a second, or requests: 16 KiB each.
const RATE: &str = "--disk-rate 16K";
const OPS: &str = "--disk-ops 1";
/// Requests of the tenant without a limit, 16 MiB.
const FREE: u64 = 1024;
/// What the limited one begins, 32 MiB: more than passes within its limit in the time that a test waits.
const LIMITED: u64 = 2048;
const REQUEST: u64 = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the disk.
    Out,
    /// From it.
    In,
}

/// The command that has so many requests pass the tenant's caches, and its file that stands at what has passed.
fn copy(way: Way, requests: u64) -> (String, u8) {
    let (files, end) = match way {
        Way::Out => ("if=/dev/zero of=/file oflag=direct conv=notrunc", 1),
        Way::In => ("if=/file of=/dev/null iflag=direct", 0),
    };
    (format!("dd {files} bs={REQUEST} count={requests}"), end)
}

/// While one tenant has [`FREE`] requests pass, the limited one has only a few, but some. Without the limit then, all that it
/// has begun.
#[track_caller]
fn is_limited(limited: &Tenant, free: &Tenant, way: Way, limit: &str) {
    let (slow, end) = copy(way, LIMITED);
    let begin = format!("rm -f /code; ({slow}; echo code $? > /code) > /dev/null 2>&1 &");
    limited.sh(&begin).ok();
    let look = format!("grep pos: /proc/$(pidof dd)/fdinfo/{end}");
    let passed = || -> Option<u64> {
        let said = limited.sh(&look);
        said.out.split_whitespace().last()?.parse().ok()
    };
    let before = waiting::until("the copy begins", passed);
    free.sh(&copy(way, FREE).0).ok();
    let after = passed().expect("it goes on");
    println!(
        "{limit} {way:?}: {} bytes while {} passed without a limit",
        after - before,
        FREE * REQUEST
    );
    assert!(
        after - before < FREE * REQUEST / 8,
        "{limit} {way:?}: {after}"
    );
    waiting::until("something passes within the limit", || {
        (passed()? > before).then_some(())
    });
    let name = &limited.0;
    run(&format!("set {name} --disk-rate 0 --disk-ops 0")).ok();
    let code = waiting::until("the copy ends", || {
        let said = limited.sh("cat /code");
        said.out.contains("code ").then_some(said.out)
    });
    assert_eq!(code.trim(), "code 0");
}

both!(a_rate_of_the_disk_holds_both_ways_from_the_beginning_and_as_it_is_changed);
fn a_rate_of_the_disk_holds_both_ways_from_the_beginning_and_as_it_is_changed(backend: Backend) {
    let limited = backend.start("disk-limited", &format!("{OPTIONS} {RATE}"));
    let free = backend.start("disk-free", OPTIONS);
    is_limited(&limited, &free, Way::Out, RATE);
    for (way, limit) in [(Way::In, RATE), (Way::Out, OPS), (Way::In, OPS)] {
        let said = run(&format!("set disk-limited {limit}"));
        assert_eq!(said.err, "");
        said.ok();
        is_limited(&limited, &free, way, limit);
    }
}

// A machine's cache is its own.
#[test]
fn what_a_container_writes_through_the_cache_is_limited_and_holds_up_neither_neighbours_nor_its_end()
 {
    let options = format!("--isolation container {OPTIONS}");
    let limited = Tenant::start("disk-cached", &format!("{options} {RATE}"));
    let free = Tenant::start("disk-uncached", &options);
    let written = |name: &str| -> u64 {
        let said = in_host(&format!(
            "device=$(losetup -n -O MAJ:MIN -j /var/lib/fief/tenants/{name}/layer.ext4)
             grep \"^$(echo $device) \" /sys/fs/cgroup/fief/{name}-*/io.stat"
        ));
        let said = said.ok();
        let bytes = said
            .split(' ')
            .find_map(|word| word.strip_prefix("wbytes="));
        bytes.unwrap().parse().unwrap()
    };
    let fill = "dd if=/dev/zero of=/file bs=1M count=16";
    let before = ["disk-cached", "disk-uncached"].map(written);
    limited.sh(&format!("{fill} > /dev/null 2>&1 &")).ok();
    // This waits for all disks, that of the limited one too.
    free.sh(&format!("{fill}; sync")).ok();
    let passed = [written("disk-cached"), written("disk-uncached")];
    let [slow, fast] = [passed[0] - before[0], passed[1] - before[1]];
    println!("{slow} bytes while {fast} passed without a limit");
    assert!(fast >= 16 << 20, "{fast}");
    assert!(slow < fast / 4, "{slow} of {fast}");
    waiting::until("something passes within the limit", || {
        (written("disk-cached") > before[0]).then_some(())
    });
    // At this rate, what waits in the cache by now would take longer than a test waits.
    run("set disk-cached --disk-rate 64").ok();
    run("kill disk-cached").ok();
    assert_eq!(limited.ended(), "killed");
    run("set disk-cached --disk-rate 0").ok();
    run("start disk-cached").ok();
    assert_eq!(limited.sh("test -e /file && echo kept").ok(), "kept");
}

/// Held by those who need sch_tbf, and by the one who takes it away.
pub static SHAPING: Mutex<()> = Mutex::new(());

#[test]
fn a_rate_that_a_machine_cannot_enforce_is_refused_by_name_unless_that_is_accepted() {
    let _alone = SHAPING.lock().unwrap_or_else(|lock| lock.into_inner());
    let line = |more: &str| {
        format!(
            "fief --host native run --rm --isolation container --image busybox {more} -- echo it runs"
        )
    };
    // Makes the image present inside. The control: this machine can.
    run("run --rm --isolation container --image busybox --net none -- true").ok();
    in_host(&line("--disk-rate 1M --net-rate 1M")).ok();

    // Version 2 says here which controllers there are.
    let few = |more: &str| {
        in_host(&format!(
            "unshare -m sh -ec 'echo cpuset cpu memory pids > /run/few
             mount --bind /run/few /sys/fs/cgroup/cgroup.controllers; {}'",
            line(more)
        ))
    };
    let error = few("--net none --disk-rate 1M --disk-ops 9").fails(125);
    assert!(
        error.contains("no io controller") && error.contains("--disk-rate and --disk-ops"),
        "{error}"
    );
    let accepted = few("--net none --disk-rate 1M --allow-unenforced");
    assert_eq!(accepted.ok(), "it runs");

    let rule = "/etc/modprobe.d/no-tbf.conf";
    in_host(&format!("echo install sch_tbf /bin/false > {rule}")).ok();
    // Namespaces that had one are cleaned up in the kernel's own time.
    waiting::until("sch_tbf is gone", || {
        (in_host("modprobe -r sch_tbf").code == Some(0)).then_some(())
    });
    let refused = in_host(&line("--net-rate 1M"));
    let accepted = in_host(&line("--net-rate 1M --allow-unenforced"));
    in_host(&format!("rm {rule}")).ok();
    let error = refused.fails(125);
    assert!(
        error.contains("--net-rate") && error.contains("sch_tbf"),
        "{error}"
    );
    assert_eq!(accepted.ok(), "it runs");
    in_host(&line("--net-rate 1M")).ok();
}
