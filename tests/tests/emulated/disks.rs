//! Disks that come to tenants and go from them, while they run and while they do not.

use fief_tests::{in_host, run};

use super::{Tenant, json};

/// Most disks of a tenant.
const MOST: usize = 23;

/// Makes an empty file in the emulated host and gives its path.
fn file(name: &str, size: &str) -> String {
    let path = format!("/root/{name}");
    in_host(&format!("rm -f {path} && truncate -s {size} {path}")).ok();
    path
}

/// A shell line that sets `d` to the device of a disk.
fn find(disk: &str) -> String {
    format!(
        "for s in /sys/block/*/serial; do [ \"$(cat $s)\" = {disk} ] && d=/dev/$(basename ${{s%/serial}}); done; "
    )
}

/// The disks as `fief disk ls` tells.
fn disks(tenant: &str) -> Vec<serde_json::Value> {
    let listed = json(&run(&format!("disk ls {tenant} --json")).ok());
    listed.as_array().unwrap().clone()
}

#[test]
fn a_running_tenant_gets_a_disk_uses_it_and_gives_it_back() {
    let tenant = Tenant::start("plugs", "");
    let path = file("plugged", "64M");
    assert_eq!(
        run(&format!("disk add plugs {path} --name data")).ok(),
        "data"
    );
    let use_it = find("data")
        + "mkfs.ext4 -q $d && mount $d /mnt && echo precious-data > /mnt/file && sync && echo $d";
    let device = tenant.sh(&use_it).ok();
    let listed = disks("plugs");
    assert_eq!(listed[0]["device"], device, "{listed:?}");
    assert_eq!(
        (&listed[0]["used"], &listed[0]["own"]),
        (&true.into(), &false.into())
    );
    let refused = run("disk rm plugs data").fails(125);
    assert!(
        refused.contains("in use") && refused.contains(&device),
        "{refused}"
    );
    tenant.sh("umount /mnt").ok();
    run("disk rm plugs data").ok();
    assert!(disks("plugs").is_empty());
    tenant.sh(&format!("test ! -e {device}")).ok();
    in_host(&format!("grep -q precious-data {path}")).ok();
    // Once more, for reading only.
    run(&format!("disk add plugs {path} --name again --read-only")).ok();
    let read = find("again")
        + "mount -o ro $d /mnt && cat /mnt/file && ! touch $d/x && cat /sys/block/${d#/dev/}/ro";
    assert_eq!(tenant.sh(&read).ok(), "precious-data\n1");
    // Taken away while it is mounted: the tenant finds errors and lives.
    run("disk rm -f plugs again").ok();
    let after = tenant.sh("cat /mnt/file; umount /mnt; echo alive").ok();
    assert!(after.ends_with("alive"), "{after}");
}

#[test]
fn a_tenant_gets_as_many_disks_as_fit_and_gives_all_back() {
    let tenant = Tenant::start("many", "--image busybox");
    let before = tenant.sh("ls /sys/block").ok();
    for number in 1..=MOST {
        assert_eq!(run("disk add many 1M").ok(), format!("disk{number}"));
    }
    let refused = run("disk add many 1M").fails(125);
    assert!(refused.contains("23 disks already"), "{refused}");
    let all = tenant.sh("cat /sys/block/*/serial").ok();
    assert_eq!(all.matches("disk").count(), MOST + 1, "{all}");
    for number in 1..=MOST {
        run(&format!("disk rm many disk{number}")).ok();
    }
    assert_eq!(tenant.sh("ls /sys/block").ok(), before);
    in_host("! ls /var/lib/fief/tenants/many/disk-*").ok();
}

#[test]
fn disks_of_a_stopped_tenant_are_there_when_it_starts() {
    let tenant = Tenant::create("sleeps", "--image busybox");
    assert_eq!(run("disk add sleeps 16M --name store").ok(), "store");
    run("start sleeps").ok();
    assert_eq!(disks("sleeps")[0]["size_bytes"], 16 << 20);
    let write = find("store") + "echo kept > $d && sync";
    tenant.sh(&write).ok();
    run("restart sleeps").ok();
    // It comes once the guest's kernel listens; `disk ls` waits for it.
    assert_eq!(disks("sleeps")[0]["used"], false);
    assert_eq!(tenant.sh(&(find("store") + "head -n 1 $d")).ok(), "kept");
    run("stop sleeps").ok();
    run("disk rm sleeps store").ok();
    assert!(disks("sleeps").is_empty());
}

#[test]
fn what_cannot_be_a_disk_is_refused_and_leaves_nothing_behind() {
    let _one = Tenant::start("holds", "--image busybox");
    let _two = Tenant::start("wants", "--image busybox");
    let path = file("held", "1M");
    run(&format!("disk add holds {path} --name held")).ok();
    for (line, word) in [
        (format!("disk add wants {path}"), "another machine"),
        (
            format!("disk add wants {path} --read-only"),
            "another machine",
        ),
        ("disk add wants /no/such/disk".to_owned(), "/no/such/disk"),
        ("disk add wants /root".to_owned(), "/root"),
        ("disk add wants /dev/null".to_owned(), "/dev/null"),
        ("disk add wants ten".to_owned(), "no size"),
        ("disk add wants 100".to_owned(), "sector"),
        ("disk add wants 1M --name image".to_owned(), "image"),
        ("disk add wants 1M --name a/b".to_owned(), "a/b"),
        ("disk add nobody 1M".to_owned(), "nobody"),
        ("disk rm wants held".to_owned(), "no disk 'held'"),
        (format!("disk add holds {path} --name held"), "already"),
    ] {
        let said = run(&line).fails(125);
        assert!(
            said.contains(word) && said.trim().lines().count() == 1,
            "{line}: {said}"
        );
    }
    assert!(disks("wants").is_empty());
    in_host("! ls /var/lib/fief/tenants/wants/disk-*").ok();
    // The control: a file that nobody else has, and one that all only read.
    run("disk rm holds held").ok();
    run(&format!("disk add wants {path} --read-only")).ok();
    run(&format!("disk add holds {path} --read-only")).ok();
}
