//! `fief gpu bind` and `fief gpu unbind`.

use super::{BRIDGE, HOST_DRIVE, MANY, PAIR, SERIAL, SHARED, SPARE_DRIVE};
use super::{disk, driver, in_host, listed, run};

/// A command that is refused; what it says has all these words.
#[track_caller]
fn refused(line: &str, words: &[&str]) {
    let said = run(line).fails(125);
    for word in words {
        assert!(said.contains(word), "{line}: {said}");
    }
}

#[test]
fn a_drive_is_taken_from_the_host_and_given_back_with_what_is_on_it() {
    let before = disk(SPARE_DRIVE);
    let read = format!("dd if={before} bs=4096 count=1 status=none | sha256sum");
    in_host(&format!(
        "head -c 4096 /dev/urandom | dd of={before} oflag=direct bs=4096 status=none"
    ))
    .ok();
    let content = in_host(&read).ok();
    let short = SPARE_DRIVE.trim_start_matches("0000:");
    let bound = run(&format!("gpu bind {short}")).ok();
    assert_eq!(bound, format!("{SPARE_DRIVE}: nvme -> vfio-pci"));
    assert_eq!(driver(SPARE_DRIVE), "vfio-pci");
    let entry = listed(SPARE_DRIVE);
    assert_eq!(entry["passable"], "ready", "{entry}");
    let node = format!("/dev/vfio/{}", entry["group"]);
    assert_eq!(entry["vfio_group"], node.as_str());
    assert!(
        entry["vfio"].as_str().unwrap().starts_with("vfio"),
        "{entry}"
    );
    in_host(&format!("test ! -e {before} && test -c {node}")).ok();
    let again = run(&format!("gpu bind {SPARE_DRIVE}")).ok();
    assert_eq!(again, format!("{SPARE_DRIVE}: vfio-pci, as before"));

    // The kernel would wait for who has it.
    let held = in_host(&format!(
        "exec 3<>{node}; fief gpu unbind {SPARE_DRIVE}; echo code $?"
    ));
    assert!(held.out.contains("code 125"), "{held:?}");
    assert!(
        held.err.contains("(process ") && held.err.contains("stop"),
        "{held:?}"
    );
    assert_eq!(driver(SPARE_DRIVE), "vfio-pci");

    let given = run(&format!("gpu unbind {SPARE_DRIVE}")).ok();
    assert_eq!(given, format!("{SPARE_DRIVE}: vfio-pci -> nvme"));
    assert_eq!(disk(SPARE_DRIVE), before);
    assert_eq!(in_host(&read).ok(), content);
    let again = run(&format!("gpu unbind {SPARE_DRIVE}")).ok();
    assert_eq!(again, format!("{SPARE_DRIVE}: nvme, as before"));
    // Nothing is left that would keep the driver from it the next time.
    let script =
        format!("cat /sys/bus/pci/devices/{SPARE_DRIVE}/driver_override; ls /var/lib/fief/pci");
    assert_eq!(in_host(&script).ok(), "(null)");
}

#[test]
fn what_the_host_uses_is_not_taken_from_it() {
    let disk = disk(HOST_DRIVE);
    in_host(&format!(
        "umount /mnt 2> /dev/null; mkfs.ext4 -q -F {disk} && mount {disk} /mnt && echo kept > /mnt/file"
    ))
    .ok();
    let bind = format!("gpu bind {HOST_DRIVE}");
    refused(&bind, &[HOST_DRIVE, "mounted at /mnt", "umount /mnt"]);
    // Nor with another that could be.
    refused(&format!("{bind} {SPARE_DRIVE}"), &["mounted at /mnt"]);
    assert_eq!(driver(SPARE_DRIVE), "nvme");
    // Mounted where this namespace does not see it.
    let script = format!(
        "umount /mnt; unshare -m sh -c 'mount {disk} /mnt && touch /run/mounted && exec sleep 600' & \
         while ! test -e /run/mounted; do sleep 0.1; done; fief {bind}; code=$?; kill $!; wait; rm /run/mounted; exit $code"
    );
    let said = in_host(&script).fails(125);
    assert!(said.contains("claimed"), "{said}");
    assert_eq!(driver(HOST_DRIVE), "nvme");
    assert_eq!(
        in_host(&format!(
            "mount {disk} /mnt && cat /mnt/file && umount /mnt"
        ))
        .ok(),
        "kept"
    );
    refused(&format!("gpu bind {BRIDGE}"), &["it is a bridge"]);
    // The disk beneath the host's root, and the line to this side.
    let all = super::super::json(&run("gpu list --all --json").ok());
    let mut virtio = 0;
    for entry in all.as_array().unwrap() {
        let address = entry["address"].as_str().unwrap();
        let holds = match entry["device"].as_str().unwrap() {
            "1001" => "the host uses its disk vd",
            "1003" => "it is open in",
            _ => continue,
        };
        refused(&format!("gpu bind {address}"), &[address, holds]);
        virtio += 1;
    }
    assert_eq!(virtio, 4, "{all}");
}

#[test]
fn half_a_group_is_refused_and_its_other_half_is_named() {
    let [edu, serial] = SHARED;
    let both = format!("{edu} {serial}");
    assert_eq!(driver(serial), "serial");
    refused(
        &format!("gpu bind {edu}"),
        &[serial, "driver serial", &format!("`fief gpu bind {both}`")],
    );
    assert_eq!(driver(edu), "none");
    run(&format!("gpu bind {both}")).ok();
    for address in SHARED {
        assert_eq!(listed(address)["passable"], "ready");
    }
    run(&format!("gpu unbind {both}")).ok();
    assert_eq!(SHARED.map(driver), ["none", "serial"]);

    // Functions of one device need not be named.
    let [display, sound] = PAIR;
    let bound = run(&format!("gpu bind {sound}")).ok();
    assert_eq!(
        bound,
        format!("{display}: no driver -> vfio-pci\n{sound}: no driver -> vfio-pci")
    );
    assert_eq!(listed(display)["passable"], "ready");
    run(&format!("gpu unbind {display}")).ok();
    assert_eq!(PAIR.map(driver), ["none", "none"]);
}

#[test]
fn wrong_addresses_and_users_change_nothing() {
    for (line, words) in [
        ("gpu bind 1:0", ["'1:0'", "01:00.0"]),
        ("gpu unbind 0000:00:20.0", ["0000:00:20.0", "01:00.0"]),
        ("gpu bind ff:00.0", ["0000:ff:00.0", "--all"]),
        ("gpu bind", ["ADDRESS", "--help"]),
    ] {
        refused(line, &words);
    }
    // Nothing of several when one is wrong.
    refused(&format!("gpu bind {SERIAL} ff:00.0"), &["0000:ff:00.0"]);
    assert_eq!(driver(SERIAL), "serial");
    let user =
        "setpriv --reuid 65534 --regid 65534 --clear-groups fief --state-dir /tmp/nobody gpu";
    for command in ["bind", "unbind"] {
        let said = in_host(&format!("{user} {command} {SERIAL}")).fails(125);
        assert!(said.contains("root") && said.contains("sudo"), "{said}");
    }
    assert_eq!(driver(SERIAL), "serial");
    // Looking is free.
    let list = in_host(&format!("{user} list")).ok();
    assert!(list.contains(SERIAL), "{list}");
}

#[test]
fn a_virtual_function_is_passed_alone_and_keeps_its_physical_one() {
    let file = |name: &str| format!("/sys/bus/pci/devices/{MANY}/{name}");
    // Virtual functions take no driver of the host's, which could not use them.
    in_host(&format!(
        "echo 0 > {}; echo 2 > {}",
        file("sriov_drivers_autoprobe"),
        file("sriov_numvfs")
    ))
    .ok();
    let [one, other] = ["0000:00:1a.1", "0000:00:1a.2"];
    assert_eq!(listed(one)["virtual_of"], MANY);
    let bound = run(&format!("gpu bind {one}")).ok();
    assert_eq!(bound, format!("{one}: no driver -> vfio-pci"));
    assert_eq!([one, other, MANY].map(driver), ["vfio-pci", "none", "nvme"]);
    assert_eq!(listed(one)["passable"], "ready");
    let numvfs = file("sriov_numvfs");
    refused(
        &format!("gpu bind {MANY}"),
        &["2 virtual functions", &format!("echo 0 > {numvfs}")],
    );
    assert_eq!(driver(MANY), "nvme");
    run(&format!("gpu unbind {one}")).ok();
    in_host(&format!("echo 0 > {numvfs}")).ok();
    run(&format!("gpu bind {MANY}")).ok();
    run(&format!("gpu unbind {MANY}")).ok();
    assert_eq!(driver(MANY), "nvme");
}

/// Whether the kernel would give a machine the function's IOMMU group: VFIO_GROUP_GET_STATUS (linux/vfio.h), whose first flag
/// says that the group is viable.
#[track_caller]
fn is_viable(address: &str) -> bool {
    let node = format!("/dev/vfio/{}", listed(address)["group"]);
    let script = format!(
        "perl -e 'open(my $group, \"+<\", \"{node}\") or die $!; my $status = pack(\"LL\", 8, 0); \
         ioctl($group, 0x3b67, $status) or die $!; print((unpack(\"LL\", $status))[1] & 1)'"
    );
    in_host(&script).ok() == "1"
}

#[test]
fn what_is_ready_is_what_the_kernel_would_give() {
    let by_hand = |address: &str, driver: &str| {
        let directory = format!("/sys/bus/pci/devices/{address}");
        in_host(&format!(
            "modprobe vfio-pci; echo {driver} > {directory}/driver_override; \
             if test -e {directory}/driver; then echo {address} > {directory}/driver/unbind; fi; \
             echo {address} > /sys/bus/pci/drivers_probe"
        ))
        .ok();
    };
    let ready = |address: &str| listed(address)["passable"] == "ready";
    // Beside one that a driver of the host has.
    let [edu, serial] = SHARED;
    by_hand(edu, "vfio-pci");
    assert!(!is_viable(edu) && !ready(edu));
    let told = run(&format!("gpu bind {edu}"));
    assert!(told.err.contains(serial), "{told:?}");
    told.ok();
    run(&format!("gpu bind {serial}")).ok();
    assert!(is_viable(edu) && ready(edu));
    // Beside one that nobody has.
    let [display, sound] = PAIR;
    by_hand(sound, "vfio-pci");
    assert_eq!(driver(display), "none");
    assert!(is_viable(sound) && ready(sound));
    // What fief did not bind, it gives back, too.
    run(&format!("gpu unbind {edu} {serial} {sound}")).ok();
    assert_eq!(SHARED.map(driver), ["none", "serial"]);
    assert_eq!(driver(sound), "none");
}
