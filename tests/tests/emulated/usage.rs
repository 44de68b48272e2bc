//! `fief stats`, and logs in several files.

use fief_tests::{feed, in_host, run, spawn};

use super::backend::Backend;

both!(what_a_tenant_uses_is_counted_in_a_table_and_as_json);
fn what_a_tenant_uses_is_counted_in_a_table_and_as_json(backend: Backend) {
    let tenant = backend.start("counted", "--kernel micro --image busybox --memory 128M");
    let look =
        || -> serde_json::Value { super::json(&run("stats --no-stream --json counted").ok()) };
    let before = look();
    tenant
        .sh("head -c 20000000 /dev/urandom > /root/file; sync; i=0; while test $i -lt 20000; do i=$((i+1)); done")
        .ok();
    let after = look();
    let number = |row: &serde_json::Value, key: &str| {
        row[key]
            .as_u64()
            .unwrap_or_else(|| panic!("no {key} in {row}"))
    };
    assert!(number(&after, "cpu_ns") > number(&before, "cpu_ns"));
    let written = |row| number(row, "disk_written_bytes");
    assert!(
        written(&after) >= written(&before) + 20_000_000,
        "{before} {after}"
    );
    assert!(number(&after, "disk_used_bytes") >= 20_000_000);
    let limit = (128 + 64 + 4) << 20;
    assert_eq!(number(&after, "memory_limit_bytes"), limit);
    let memory = number(&after, "memory_bytes");
    assert!((1 << 20..=limit).contains(&memory), "{after}");
    let inside = number(&after, "inside_memory_total_bytes");
    assert!((64 << 20..=128 << 20).contains(&inside), "{after}");
    assert!(after["cpu_percent"].is_number() && number(&after, "processes") >= 1);
    let table = run("stats --no-stream").ok();
    let header = table.lines().next().unwrap();
    for column in ["NAME", "CPU", "MEMORY", "DISK", "RECEIVED"] {
        assert!(header.contains(column), "{table}");
    }
    assert!(
        table.lines().any(|line| line.starts_with("counted ")),
        "{table}"
    );
    for (line, word) in [
        ("stats nobody-there", "no tenant 'nobody-there'"),
        ("stats counted nobody-there", "no tenant 'nobody-there'"),
    ] {
        assert!(run(line).fails(125).contains(word));
    }
    run("stop counted").ok();
    assert!(
        run("stats --no-stream counted")
            .fails(125)
            .contains("not running")
    );
    assert_eq!(
        run("stats --no-stream --json")
            .ok()
            .matches("\"counted\"")
            .count(),
        0
    );
}

both!(a_log_is_followed_across_its_files_and_kept_in_as_many_as_asked);
fn a_log_is_followed_across_its_files_and_kept_in_as_many_as_asked(backend: Backend) {
    // More than what is printed, so that a follower that gets no time for a while finds all of it.
    let tenant = backend.start(
        "talker",
        "--kernel micro --image busybox --log-size 4K --log-files 20",
    );
    let follower = spawn("logs -f talker");
    tenant
        .sh(
            "i=0; while test $i -lt 2000; do i=$((i+1)); echo \"line number $i\"; done > /dev/console",
        )
        .ok();
    run("stop talker").ok();
    let followed = String::from_utf8(feed(follower, Vec::new()).stdout).unwrap();
    let numbers = |text: &str| -> Vec<u32> {
        let number = |line: &str| line.trim().strip_prefix("line number ")?.parse().ok();
        text.lines().filter_map(number).collect()
    };
    assert_eq!(numbers(&followed), (1..=2000).collect::<Vec<_>>());
    assert_eq!(numbers(&run("logs talker").ok()).len(), 2000);
    let files = || in_host("ls /var/lib/fief/tenants/talker/console.log*").ok();
    assert!(files().lines().count() > 8, "{}", files());
    run("set talker --log-files 2").ok();
    run("restart talker").ok();
    assert_eq!(files().lines().count(), 2, "{}", files());
    let kept = run("logs talker").ok();
    assert!(kept.len() <= 8 << 10, "{}", kept.len());
}
