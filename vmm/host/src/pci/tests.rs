//! What is read of machines made of files.

pub(super) mod machine;

use std::fs;

use super::{BarKind, Kind, Obstacle, Passable, Pci, Places, Vfio};
use machine::{Machine, Made, address};

const GPU: &str = "0000:01:00.0";
const SOUND: &str = "0000:01:00.1";
const NVME: &str = "0000:02:00.0";

/// A GPU and its sound in one group, as most have it.
fn gpu(machine: &Machine) -> (Made<'_>, Made<'_>) {
    let gpu = machine.function(GPU, "10de:1eb8", 0x03_02_00).group(1);
    let sound = machine.function(SOUND, "10de:10f8", 0x04_03_00).group(1);
    (gpu, sound)
}

fn nvme(machine: &Machine) -> Made<'_> {
    machine
        .function(NVME, "144d:a80a", 0x01_08_02)
        .group(2)
        .driver("nvme")
}

#[test]
fn a_gpu_is_read_with_all_that_is_known_of_it() {
    let machine = Machine::new();
    machine.write(
        "pci.ids",
        "10de  NVIDIA Corporation\n\t1eb8  TU104GL [Tesla T4]\n",
    );
    machine.write("dev/vfio/1", "");
    let (gpu, _) = gpu(&machine);
    let gpu = gpu
        .driver("nvidia")
        .file("subsystem_vendor", "0x10de\n")
        .file("subsystem_device", "0x12a2\n")
        .file("reset_method", "flr bus\n")
        .file("boot_vga", "1\n")
        .file("numa_node", "-1\n")
        .file(
            "resource",
            "0xf6000000 0xf6ffffff 0x40200\n0xe000000000 0xe00fffffff 0x14220c\n",
        );
    gpu.header(0x80);
    let pci = machine.read();
    let function = pci.function(address(GPU)).unwrap();
    assert_eq!(function.kind, Kind::Gpu);
    assert_eq!(function.name(), "TU104GL [Tesla T4]");
    assert_eq!(function.vendor_name.as_deref(), Some("NVIDIA Corporation"));
    assert_eq!((function.vendor, function.device), (0x10de, 0x1eb8));
    assert_eq!(
        (function.subsystem_vendor, function.subsystem_device),
        (0x10de, 0x12a2)
    );
    assert_eq!((function.group, function.header_type), (Some(1), Some(0)));
    assert_eq!(function.driver.as_deref(), Some("nvidia"));
    assert_eq!(function.resets, ["flr", "bus"]);
    assert_eq!((function.boot_vga, function.numa_node), (true, None));
    let bars: Vec<_> = function
        .bars
        .iter()
        .map(|bar| (bar.kind, bar.size))
        .collect();
    assert_eq!(
        bars,
        [(BarKind::Mem32, 16 << 20), (BarKind::Mem64, 256 << 20)]
    );
    assert_eq!(function.vfio_group, Some(machine.path("dev/vfio/1")));
    assert_eq!(pci.mates(function).count(), 1);
    // Its vendor alone is known, and nothing.
    let sound = pci.function(address(SOUND)).unwrap();
    assert_eq!(sound.name(), "NVIDIA Corporation multimedia controller");
    fs::remove_file(machine.path("pci.ids")).unwrap();
    let pci = machine.read();
    let sound = pci.function(address(SOUND)).unwrap();
    assert_eq!(sound.name(), "10de:10f8 multimedia controller");
    let json = serde_json::to_value(sound).unwrap();
    assert_eq!(json["class"], "040300");
    assert_eq!(json["address"], SOUND);
}

#[test]
fn files_that_say_nothing_sensible_harm_nothing() {
    let machine = Machine::new();
    let (gpu, _) = gpu(&machine);
    let gpu = gpu
        .file("resource", "0x0 0xffffffffffffffff 0x200\nx\n\0\n")
        .file("subsystem_vendor", "0x123456\n")
        .file("boot_vga", "yes\n")
        .file("numa_node", "99999999999\n")
        .file("sriov_numvfs", "-4\n")
        .file("config", "short");
    machine.write_bytes(&format!("{}/reset_method", gpu.own), b"\xff\xfe \xff");
    machine.link(
        &format!("{}/iommu_group", gpu.own),
        "sys/kernel/iommu_groups/first",
    );
    machine.link(&format!("{}/physfn", gpu.own), "sys/nowhere");
    // What is no function: another name, no vendor, a vendor that is no number.
    machine.write("sys/bus/pci/devices/README", "");
    machine.write("sys/bus/pci/devices/0000:09:00.0/class", "0x030000\n");
    let bad = machine.function("0000:09:01.0", "1234:1111", 0x03_00_00);
    bad.file("vendor", "\n");
    machine.write("proc/consoles", "\n\n  \n");
    machine.write("proc/net/route", "Iface\tDestination\neth0\n\n");
    machine.write("proc/net/ipv6_route", "\n0\n");
    machine.write("proc/self/mountinfo", "\n1 2\n1 2 3 4 5 -\n");

    let pci = machine.read();
    let all: Vec<_> = pci.functions().map(|one| one.address.to_string()).collect();
    assert_eq!(all, [GPU, SOUND]);
    let function = pci.function(address(GPU)).unwrap();
    assert_eq!(
        (function.subsystem_vendor, function.virtual_functions),
        (0, 0)
    );
    assert_eq!((function.boot_vga, function.numa_node), (false, None));
    assert_eq!((function.group, function.header_type), (None, None));
    assert_eq!((function.bars.len(), function.virtual_of), (0, None));
    assert_eq!(pci.obstacles(function), [Obstacle::NoIommu]);
}

#[test]
fn a_machine_without_pci_has_no_functions() {
    let directory = tempfile::tempdir().unwrap();
    let nothing = directory.path().join("nothing");
    let pci = Pci::read(&Places {
        sys: nothing.clone(),
        proc: nothing.clone(),
        dev: nothing.clone(),
        modules: nothing,
        ids: Vec::new(),
    });
    assert_eq!(pci.functions().count(), 0);
    assert!(!pci.has_iommu() && !pci.interrupts_are_safe());
    assert_eq!(pci.vfio(), Vfio::Missing);
    let error = pci.function(address("01:00.0")).unwrap_err().to_string();
    assert!(
        error.contains("0000:01:00.0") && error.contains("--all"),
        "{error}"
    );
}

#[test]
fn a_gpu_is_passable_with_its_sound_and_ready_when_both_are_bound() {
    let machine = Machine::new();
    let (gpu, sound) = gpu(&machine);
    let (gpu, sound) = (gpu.driver("nouveau"), sound.driver("snd_hda_intel"));
    assert_eq!(machine.passable(GPU), Passable::AfterBinding);
    assert_eq!(machine.obstacles(GPU), []);
    // Half of it is not enough.
    gpu.driver("vfio-pci");
    assert_eq!(machine.passable(GPU), Passable::AfterBinding);
    let told = machine.obstacle(GPU);
    for part in [
        SOUND,
        "snd_hda_intel",
        "fief gpu bind 0000:01:00.0 0000:01:00.1",
    ] {
        assert!(told.contains(part), "{told}");
    }
    sound.driver("vfio-pci");
    assert_eq!(machine.passable(GPU), Passable::Ready);
    assert_eq!(machine.passable(SOUND), Passable::Ready);
}

#[test]
fn a_driver_of_the_vendor_that_speaks_vfio_counts_as_bound() {
    let machine = Machine::new();
    let (gpu, _) = gpu(&machine);
    let gpu = gpu.driver("nvidia");
    machine.write(&format!("{}/vfio-dev/vfio3/dev", gpu.own), "511:3\n");
    let pci = machine.read();
    let function = pci.function(address(GPU)).unwrap();
    assert_eq!(function.vfio.as_deref(), Some("vfio3"));
    assert!(function.is_bound());
    assert_eq!(pci.passable(function), Passable::Ready);
}

#[test]
fn others_of_the_group_hinder_unless_they_are_bridges_or_have_no_driver() {
    let machine = Machine::new();
    nvme(&machine);
    let bridge = machine.function("0000:00:1c.0", "8086:a110", 0x06_04_00);
    let bridge = bridge.group(2).driver("pcieport");
    bridge.header(0x81);
    let other = machine.function("0000:03:00.0", "8086:10d3", 0x02_00_00);
    let other = other.group(2);
    assert_eq!(machine.obstacles(NVME), []);
    let other = other.driver("pci-stub");
    assert_eq!(machine.obstacles(NVME), []);
    other.driver("e1000e");
    let told = machine.obstacle(NVME);
    for part in ["0000:03:00.0 (", "driver e1000e", "group 2"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(!told.contains("1c.0"), "{told}");
    assert_eq!(machine.passable(NVME), Passable::AfterBinding);
    assert_eq!(machine.obstacles("0000:00:1c.0"), [Obstacle::Bridge]);
    assert_eq!(machine.passable("0000:00:1c.0"), Passable::No);
}

#[test]
fn without_iommu_interrupt_remapping_or_vfio_nothing_is_passed() {
    let machine = Machine::new();
    let (gpu, _) = gpu(&machine);
    machine.write(
        "proc/interrupts",
        "  0:  110  IO-APIC  2-edge  PCI-MSI IR\n",
    );
    let told = machine.obstacle(GPU);
    assert!(told.contains("allow_unsafe_interrupts"), "{told}");
    assert_eq!(machine.passable(GPU), Passable::No);
    let parameter = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    machine.write(parameter, "N\n");
    assert_eq!(machine.obstacles(GPU), [Obstacle::NoInterruptRemapping]);
    machine.write(parameter, "Y\n");
    assert_eq!(machine.obstacles(GPU), []);

    fs::remove_dir_all(machine.path("sys/bus/pci/drivers/vfio-pci")).unwrap();
    assert_eq!(machine.obstacles(GPU), [Obstacle::NoVfio]);
    // Another module's name ends the same, or begins so.
    let dep = "kernel/x/my-vfio-pci.ko.xz:\nkernel/x/vfio-pci-core.ko:\n";
    machine.write("lib/modules/6/modules.dep", dep);
    assert_eq!(machine.read().vfio(), Vfio::Missing);
    machine.write(
        "lib/modules/6/modules.dep",
        "kernel/x/vfio-pci.ko.xz: kernel/x/vfio.ko.xz\n",
    );
    assert_eq!(machine.read().vfio(), Vfio::Loadable);
    assert_eq!(machine.obstacles(GPU), []);

    // VFIO's mode without an IOMMU makes groups, too.
    machine.write("sys/kernel/iommu_groups/1/name", "vfio-noiommu\n");
    assert_eq!(machine.obstacles(GPU), [Obstacle::NoIommu]);
    fs::remove_file(machine.path(&format!("{}/iommu_group", gpu.own))).unwrap();
    assert_eq!(machine.obstacles(GPU), [Obstacle::NoIommu]);
}

#[test]
fn a_disk_that_the_host_uses_keeps_its_controller() {
    let machine = Machine::new();
    let controller = nvme(&machine);
    let disk = machine.beneath(&controller, "block", "nvme0n1");
    machine.write(&format!("{disk}/dev"), "259:0\n");
    let part = format!("{disk}/nvme0n1p2");
    machine.write(&format!("{part}/dev"), "259:2\n");
    machine.link("sys/class/block/nvme0n1p2", &part);
    assert_eq!(machine.obstacles(NVME), []);

    let mountinfo = "36 35 259:2 / /srv/data rw - ext4 /dev/root rw\n";
    machine.write("proc/self/mountinfo", mountinfo);
    let told = machine.obstacle(NVME);
    assert!(told.contains("nvme0n1p2: mounted at /srv/data"), "{told}");
    assert!(told.contains("umount /srv/data"), "{told}");
    assert_eq!(machine.passable(NVME), Passable::No);
    // btrfs has a device number of its own.
    let mountinfo = "36 35 0:44 / /srv rw,x shared:1 - btrfs /dev/nvme0n1 rw\n";
    machine.write("proc/self/mountinfo", mountinfo);
    assert!(machine.obstacle(NVME).contains("nvme0n1: mounted at /srv"));
    let others = "36 35 259:20 / /a rw - ext4 /dev/nvme0n1p22 rw\n";
    machine.write("proc/self/mountinfo", others);
    assert_eq!(machine.obstacles(NVME), []);

    machine.write(
        "proc/swaps",
        "Filename Type\n/dev/nvme0n1p2 partition 8 0 -2\n",
    );
    assert!(machine.obstacle(NVME).contains("swapoff /dev/nvme0n1p2"));
    machine.write("proc/swaps", "");
    machine.write(&format!("{part}/holders/dm-3/dev"), "253:3\n");
    assert!(machine.obstacle(NVME).contains("dm-3 is made of it"));
    fs::remove_dir_all(machine.path(&format!("{part}/holders"))).unwrap();
    // A tenant may have it whole.
    machine.write(&format!("{disk}/uevent"), "DEVNAME=nvme0n1\n");
    machine.link("sys/dev/block/259:0", &disk);
    machine.open(12, "fief-vmm", "/dev/nvme0n1");
    assert!(machine.obstacle(NVME).contains("fief-vmm (process 12)"));
}

#[test]
fn a_disk_that_has_several_ways_is_found_from_each() {
    let machine = Machine::new();
    let controller = nvme(&machine);
    machine.beneath(&controller, "block", "nvme0c1n2");
    let disk = "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n2";
    machine.write(&format!("{disk}/dev"), "259:7\n");
    machine.link("sys/class/block/nvme0n2", disk);
    machine.write(&format!("{disk}/nvme0n2p1/dev"), "259:8\n");
    machine.link("sys/class/block/nvme0n2p1", &format!("{disk}/nvme0n2p1"));
    machine.write(
        "proc/self/mountinfo",
        "36 35 259:8 / / rw - ext4 /dev/x rw\n",
    );
    assert!(machine.obstacle(NVME).contains("nvme0n2p1: mounted at /;"));
}

#[test]
fn the_console_keeps_its_display() {
    let machine = Machine::new();
    let (gpu, _) = gpu(&machine);
    machine.write("sys/devices/virtual/vtconsole/vtcon0/name", "(S) VGA+\n");
    machine.write("sys/devices/virtual/vtconsole/vtcon0/bind", "1\n");
    machine.link(
        "sys/class/vtconsole/vtcon0",
        "sys/devices/virtual/vtconsole/vtcon0",
    );
    // Text mode is on the firmware's display.
    assert_eq!(machine.obstacles(GPU), []);
    let gpu = gpu.file("boot_vga", "1\n");
    assert!(machine.obstacle(GPU).contains("vtcon0/bind"));
    assert_eq!(machine.obstacles(SOUND), []);
    machine.write(
        "sys/devices/virtual/vtconsole/vtcon0/name",
        "(S) dummy device\n",
    );
    assert_eq!(machine.obstacles(GPU), []);

    // A frame buffer is on its driver's function; the firmware's is on the firmware's display.
    machine.write(
        "sys/devices/virtual/vtconsole/vtcon0/name",
        "(M) frame buffer device\n",
    );
    assert_eq!(machine.obstacles(GPU), []);
    machine.link(
        "sys/class/graphics/fb0",
        "sys/devices/platform/efi-framebuffer.0/graphics/fb0",
    );
    assert_eq!(machine.obstacles(GPU).len(), 1);
    let gpu = gpu.file("boot_vga", "0\n");
    assert_eq!(machine.obstacles(GPU), []);
    machine.link(
        "sys/class/graphics/fb0",
        &format!("{}/graphics/fb0", gpu.own),
    );
    assert_eq!(machine.obstacles(GPU).len(), 1);
    // The second one shows nothing.
    fs::remove_file(machine.path("sys/class/graphics/fb0")).unwrap();
    machine.link(
        "sys/class/graphics/fb1",
        &format!("{}/graphics/fb1", gpu.own),
    );
    machine.link(
        "sys/class/graphics/fb0",
        "sys/devices/pci0000:00/0000:07:00.0/graphics/fb0",
    );
    assert_eq!(machine.obstacles(GPU), []);
}

#[test]
fn the_serial_console_keeps_its_line() {
    let machine = Machine::new();
    let card = machine.function(NVME, "1b36:0002", 0x07_00_02).group(2);
    machine.beneath(&card, "tty", "ttyS4");
    machine.write("proc/consoles", "ttyS0   -W- (EC  p a)    4:64\n");
    assert_eq!(machine.obstacles(NVME), []);
    machine.write("proc/consoles", "ttyS4   -W- (EC  p a)    4:68\n");
    assert!(machine.obstacle(NVME).contains("console=ttyS4"));
}

#[test]
fn the_way_out_keeps_its_interface_also_beneath_a_bridge() {
    const IPV6: &str =
        "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe80 400 1 0 3";
    let machine = Machine::new();
    let card = machine.function(NVME, "8086:10d3", 0x02_00_00).group(2);
    let interface = machine.beneath(&card, "net", "eth1");
    let header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n";
    let route = |interface: &str, to: &str, mask: &str| {
        let text = format!("{header}{interface}\t{to}\t010A\t0003\t0\t0\t0\t{mask}\t0\t0\t0\n");
        machine.write("proc/net/route", &text);
    };
    route("eth1", "0000A8C0", "00FFFFFF");
    assert_eq!(machine.obstacles(NVME), []);
    route("eth0", "00000000", "00000000");
    assert_eq!(machine.obstacles(NVME), []);
    route("eth1", "00000000", "00000000");
    assert!(machine.obstacle(NVME).contains("interface eth1"));

    route("vlan7", "00000000", "00000000");
    assert_eq!(machine.obstacles(NVME), []);
    // A loop of links ends, too.
    machine.link(&format!("{interface}/upper_br0"), "sys/class/net/br0");
    machine.link("sys/class/net/br0/upper_vlan7", "sys/class/net/vlan7");
    machine.link("sys/class/net/vlan7/upper_br0", "sys/class/net/br0");
    assert!(machine.obstacle(NVME).contains("interface eth1"));

    machine.write("proc/net/route", "");
    machine.write("proc/net/ipv6_route", &format!("{IPV6} lo\n"));
    assert_eq!(machine.obstacles(NVME), []);
    machine.write("proc/net/ipv6_route", &format!("{IPV6} eth1\n"));
    assert!(machine.obstacle(NVME).contains("interface eth1"));
}

#[test]
fn programs_that_have_it_open_are_named() {
    let machine = Machine::new();
    let (gpu, _) = gpu(&machine);
    let gpu = gpu.driver("nouveau");
    let card = machine.beneath(&gpu, "drm", "card1");
    machine.write(&format!("{card}/uevent"), "MAJOR=226\nDEVNAME=dri/card1\n");
    machine.link("sys/dev/char/226:1", &card);
    machine.open(811, "Xorg", "/dev/dri/card0");
    machine.open(812, "other", "/home/dri/card1");
    assert_eq!(machine.obstacles(GPU), []);
    machine.open(813, "Xwayland", "/dev/dri/card1");
    let told = machine.obstacle(GPU);
    assert!(told.contains("Xwayland (process 813)"), "{told}");
    assert!(!told.contains("Xorg"), "{told}");
    assert_eq!(machine.passable(GPU), Passable::No);
}

#[test]
fn nvidias_own_driver_tells_its_node_elsewhere() {
    let machine = Machine::new();
    let (gpu, _) = gpu(&machine);
    gpu.driver("nvidia");
    machine.write(
        &format!("proc/driver/nvidia/gpus/{GPU}/information"),
        "Model: \t\t Tesla T4\nDevice Minor: \t 2\n",
    );
    machine.open(9, "python3", "/dev/nvidia0");
    assert_eq!(machine.obstacles(GPU), []);
    machine.open(10, "python3", "/dev/nvidia2");
    assert!(machine.obstacle(GPU).contains("python3 (process 10)"));
}

#[test]
fn a_machine_that_runs_with_it_is_named() {
    let machine = Machine::new();
    let (gpu, _) = gpu(&machine);
    gpu.driver("vfio-pci");
    machine.open(10, "fief-vmm", "/dev/vfio/12");
    assert_eq!(machine.passable(GPU), Passable::Ready);
    machine.open(11, "fief-vmm", "/dev/vfio/1");
    assert!(machine.obstacle(GPU).contains("fief-vmm (process 11)"));
}

#[test]
fn virtual_functions_are_devices_of_their_own() {
    let machine = Machine::new();
    let own = machine.function(NVME, "144d:a80a", 0x01_08_02);
    let own = own.group(2).driver("nvme").file("sriov_numvfs", "2\n");
    let part = machine.function("0000:02:00.1", "144d:a80a", 0x01_08_02);
    let part = part.group(3);
    machine.link(&format!("{}/physfn", part.own), &own.own);
    let pci = machine.read();
    let function = pci.function(address("02:00.1")).unwrap();
    assert_eq!(function.virtual_of, Some(address(NVME)));
    assert_eq!(pci.obstacles(function), []);
    // Not bound together, though a device in the numbering: their groups differ.
    assert_eq!(pci.device(function).count(), 1);
    let told = machine.obstacle(NVME);
    assert!(
        told.contains("2 virtual functions") && told.contains(NVME),
        "{told}"
    );
}

#[test]
fn several_reasons_are_all_told() {
    let machine = Machine::new();
    let (gpu, _) = gpu(&machine);
    gpu.file("sriov_numvfs", "1\n");
    machine.write("proc/interrupts", "");
    let net = machine.function("0000:03:00.0", "8086:10d3", 0x02_00_00);
    net.group(1).driver("e1000e");
    let all = machine.obstacles(GPU);
    assert_eq!(all.len(), 3, "{all:?}");
    assert!(matches!(all[0], Obstacle::NoInterruptRemapping));
    assert!(matches!(
        all[1],
        Obstacle::VirtualFunctions { count: 1, .. }
    ));
    assert!(matches!(all[2], Obstacle::GroupShared { group: 1, .. }));
    assert_eq!(machine.passable(GPU), Passable::No);
    let json = serde_json::to_value(&all).unwrap();
    assert_eq!(json[2]["kind"], "group-shared");
    assert_eq!(json[2]["mates"][0]["driver"], "e1000e");
}
