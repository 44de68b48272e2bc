//! A PCI function that lives in another process, in a Linux guest: Linux's own PCI code, and accesses to the function's BARs
//! as a driver makes them.

use fief_tests::{binary, run, run_with};

use super::instructions::archive;
use super::put;

/// What the guest runs. It prints a word and a value each, and waits for a line where the host is to look at its counters.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
cd /sys/bus/pci/devices
find_it() { for device in *; do [ "$(cat $device/vendor)" != 0xf1ef ] || break; done; }
bar() { sed -n "$(($1 + 1))s/ .*//p" $device/resource; }
get() { devmem $(($(bar 0) + $1)) 32; }
put() { devmem $(($(bar 0) + $1)) 32 $2; }
dma() { put 0x10 0x9000000; put 0x18 0x100; put 0x1c 4096; put 0x20 $1; echo "$2 $(get 0x0c)"; }
find_it
echo 1 > $device/enable
echo "ID $(get 0)"
# PCI Express, so that Linux reads extended space: a serial number is there, and SR-IOV is not.
echo "EXTENDED $(od -An -tx1 -j 0x154 -N 8 $device/config | tr -d ' ') $(ls $device | grep -c sriov)"
devmem 0x9000000 32 0xfeedf00d
dma 1 STRANGER
printf '\006' | dd of=$device/config bs=1 seek=4 conv=notrunc 2> /dev/null
dma 1 FROM
echo "THERE $(devmem $(($(bar 2) + 0x100)) 32)"
devmem $(($(bar 2) + 0x100)) 32 0xcafe
dma 2 TO
echo "HERE $(devmem 0x9000000 32)"
for bar in 2 0; do
    at=$(bar $bar)
    echo BEFORE; read line
    for n in $(seq 100); do devmem $at 32; done > /dev/null
    echo AFTER$bar; read line
done
echo "MESSAGES $(get 0x50) $(get 0x54)"
echo "METHODS $(cat $device/reset_method)"
put 4 7; before=$(get 8); echo 1 > $device/reset
echo "RESET $(($(get 8) - before)) $(get 4)"
echo 1 > $device/remove
echo "GONE $(grep -c 0xf1ef */vendor | grep -c :1)"
echo 1 > /sys/bus/pci/rescan
find_it; echo 1 > $device/enable
echo "AGAIN $(get 0)"
put 0x30 1
echo "DEAD $(get 0) $(cat $device/vendor)"
echo "LOG $(dmesg | grep "pci $device" | grep -c -i -E 'fail|error|invalid|no space|bogus|bug')"
dmesg | grep -c -E 'BUG:|WARNING: CPU|Oops' | sed 's/^/OOPS /'
poweroff -f
"#;

/// What the host runs: the device, the monitor, and a look at KVM's counters when the guest asks for one.
const HOST: &str = r#"
    mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
    store=/var/lib/fief/images
    id=$(sed -n 's/.*"artifact": *"\([0-9a-f]*\)".*/\1/p' $store/refs/kernel/debian.json)
    directory=$(mktemp -d)
    cat > $directory/config <<END
    {
        "boot-source": {
            "kernel_image_path": "$store/artifacts/$id/vmlinux", "initrd_path": "/dev/shm/vfio-user-initramfs",
            "boot_args": "console=ttyS0 quiet mem=96M panic=-1"
        },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": 192 },
        "device-passthrough": [{ "id": "dev0", "socket": "$directory/device" }]
    }
END
    exec {device}< <(exec /dev/shm/fief-test-device --socket $directory/device)
    process=$!
    trap 'kill $process 2> /dev/null' EXIT
    read -r ready <&$device
    coproc MONITOR { exec fief-vmm --no-api --config-file $directory/config --event-path $directory/events 2>&1; }
    in=${MONITOR[1]} pid=$MONITOR_PID
    # Of this machine alone: tenants of other tests may run beside it.
    exits() { cat /sys/kernel/debug/kvm/$pid-*/mmio_exits; }
    while read -r line; do
        line=${line%$'\r'}
        case $line in
            BEFORE) before=$(exits); echo >&$in ;;
            AFTER*) echo "EXITS${line#AFTER} $(($(exits) - before))"; echo >&$in ;;
            *) echo "$line" ;;
        esac
    done <&${MONITOR[0]}
    wait $pid
    echo "CODE $?"
    cat $directory/events
    rm -r $directory /dev/shm/fief-test-device /dev/shm/vfio-user-initramfs
"#;

#[test]
fn linux_finds_uses_resets_and_survives_a_device_of_another_process() {
    // The kernel is there once a tenant has had it.
    run("run --rm --kernel debian --image busybox -- true").ok();
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let folders = ["bin/", "dev/", "proc/", "sys/"].map(|name| (name, &b""[..]));
    let files = [("bin/busybox", &busybox[..]), ("init", INIT.as_bytes())];
    let initramfs = archive(&[&folders[..], &files[..]].concat());
    let line = "host exec -i --";
    put(line, "/dev/shm/vfio-user-initramfs", initramfs);
    let device = std::fs::read(binary("fief-test-device")).unwrap();
    put(line, "/dev/shm/fief-test-device", device);
    let said = run_with("host exec -- bash -c", HOST).ok();
    for expected in [
        "ID 0x66656966",
        "EXTENDED efcdab8967452301 0",
        // Without bus mastering, then with it.
        "STRANGER 0x00000003",
        "FROM 0x00000001",
        "THERE 0xFEEDF00D",
        "TO 0x00000001",
        "HERE 0x0000CAFE",
        "MESSAGES 0x00000000 0x00000000",
        "METHODS flr pm",
        "RESET 1 0x00000000",
        "GONE 0",
        "AGAIN 0x66656966",
        // Its identity is kept by the monitor.
        "DEAD 0xFFFFFFFF 0xf1ef",
        "LOG 0",
        "OOPS 0",
        "CODE 0",
        r#"{"event":"device-gone","id":"dev0"}"#,
    ] {
        let found = said.lines().any(|line| line == expected);
        assert!(found, "{expected}: {said}");
    }
    // A hundred accesses of each BAR: memory costs no exit, registers one each. The guest's kernel has few others meanwhile.
    let exits = |bar: &str| -> u64 {
        let count = said.lines().find_map(|line| line.strip_prefix(bar));
        count.unwrap().trim().parse().unwrap()
    };
    let (memory, registers) = (exits("EXITS2"), exits("EXITS0"));
    assert!(
        memory < 50 && registers >= 100,
        "{memory} and {registers}: {said}"
    );
}
