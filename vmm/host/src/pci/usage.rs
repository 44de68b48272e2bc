//! What the host uses a function for: its console, disks, its way out, programs. Taking any of these away would break it.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::function::{Function, Kind};
use super::holders::{self, Holders};
use super::obstacle::Obstacle;
use super::places::{Places, entries, lines, name, text};

/// All uses of a function.
pub(super) fn of(function: &Function, places: &Places, holders: &Holders) -> Vec<Obstacle> {
    let mut all = Vec::new();
    all.extend(console(function, places));
    all.extend(serial(function, places));
    all.extend(disks(function, places));
    all.extend(route(function, places));
    let processes = holders.of(&holders::nodes(function, places));
    if !processes.is_empty() {
        all.push(Obstacle::Open { processes });
    }
    if function.virtual_functions > 0 {
        all.push(Obstacle::VirtualFunctions {
            address: function.address,
            count: function.virtual_functions,
        });
    }
    all
}

/// The virtual console of the kernel (Documentation/ABI/stable/sysfs-class-graphics and driver-api/console.rst): in VGA's text
/// mode on the firmware's display, or on the first frame buffer, which is a GPU driver's or the firmware's.
fn console(function: &Function, places: &Places) -> Option<Obstacle> {
    if function.kind != Kind::Gpu {
        return None;
    }
    let (console, kind) = places
        .class("vtconsole")
        .into_iter()
        .find_map(|(name, path)| {
            let bound = text(&path.join("bind")).as_deref() == Some("1");
            let kind = text(&path.join("name"))?;
            // The dummy is what is bound where there is no display.
            (bound && !kind.contains("dummy")).then_some((name, kind))
        })?;
    let on_it = if kind.contains("frame buffer") {
        shows_frame_buffer(function, places)
    } else {
        function.boot_vga
    };
    on_it.then_some(Obstacle::Console { console })
}

/// Whether the first frame buffer is on this function.
fn shows_frame_buffer(function: &Function, places: &Places) -> bool {
    let number = |name: &str| name.strip_prefix("fb")?.parse::<u32>().ok();
    let buffers = places.class("graphics").into_iter();
    let first = buffers
        .filter_map(|(name, path)| Some((number(&name)?, path)))
        .min();
    first.is_some_and(|(_, path)| {
        // The firmware's frame buffer is a platform device: it belongs to no function, and is on the firmware's display.
        let firmware = path.components().any(|part| part.as_os_str() == "platform");
        function.has(&path) || (firmware && function.boot_vga)
    })
}

/// Serial lines that the kernel writes its messages to.
fn serial(function: &Function, places: &Places) -> Vec<Obstacle> {
    let consoles = lines(&places.proc.join("consoles"));
    let consoles: Vec<&str> = consoles
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .collect();
    places
        .class("tty")
        .into_iter()
        .filter(|(line, path)| consoles.contains(&line.as_str()) && function.has(path))
        .map(|(line, _)| Obstacle::SerialConsole { line })
        .collect()
}

/// Disks and partitions that are mounted, swapped to, or part of something else.
fn disks(function: &Function, places: &Places) -> Vec<Obstacle> {
    let mounts = lines(&places.proc.join("self/mountinfo"));
    let swaps = lines(&places.proc.join("swaps"));
    let all = places.class("block");
    let mine = all.iter().filter(|(_, path)| function.has(path));
    let mut found = Vec::new();
    for (disk, _) in mine {
        let disk = multipath(disk).unwrap_or_else(|| disk.clone());
        let Some((_, path)) = all.iter().find(|(name, _)| *name == disk) else {
            continue;
        };
        // Partitions of what has several ways to it are not beneath the function, but always beneath their disk.
        let parts = all
            .iter()
            .filter(|(_, part)| part != path && part.starts_with(path));
        let parts = parts.map(|(name, path)| (name, path.as_path()));
        for (name, path) in parts.chain([(&disk, path.as_path())]) {
            if let Some((user, remedy)) = user(name, path, &mounts, &swaps, places) {
                found.push(Obstacle::Disk {
                    disk: name.clone(),
                    user,
                    remedy,
                });
            }
        }
    }
    let place = |obstacle: &Obstacle| match obstacle {
        Obstacle::Disk { disk, .. } => disk.clone(),
        _ => String::new(),
    };
    found.sort_by_key(place);
    found.dedup();
    found
}

/// The disk that a way to it belongs to: `nvme0c1n2` is a way of controller 1 to `nvme0n2` (drivers/nvme/host/multipath.c).
fn multipath(way: &str) -> Option<String> {
    let (subsystem, rest) = way.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let numbers = [subsystem, controller, namespace];
    numbers
        .iter()
        .all(|number| number.parse::<u32>().is_ok())
        .then(|| format!("nvme{subsystem}n{namespace}"))
}

/// Who uses a disk or partition, and what to do about it.
fn user(
    disk: &str,
    path: &Path,
    mounts: &str,
    swaps: &str,
    places: &Places,
) -> Option<(String, String)> {
    let number = text(&path.join("dev")).unwrap_or_default();
    if let Some(point) = mounts
        .lines()
        .find_map(|line| mount_point(line, disk, &number))
    {
        let remedy = if point == "/" {
            "the host runs from it".to_owned()
        } else {
            format!("unmount it: `umount {point}`")
        };
        return Some((format!("mounted at {point}"), remedy));
    }
    let node = format!("/dev/{disk}");
    let swap = swaps
        .lines()
        .any(|line| line.split_ascii_whitespace().next() == Some(&node));
    if swap {
        return Some((
            "it swaps to it".to_owned(),
            format!("stop that: `swapoff {node}`"),
        ));
    }
    if let Some(holder) = entries(&path.join("holders"))
        .first()
        .and_then(|path| name(path))
    {
        return Some((
            format!("{holder} is made of it"),
            format!("take {holder} apart first (dmsetup, mdadm)"),
        ));
    }
    is_claimed(&places.dev.join(disk)).then(|| {
        (
            "the kernel has it claimed, for a mount of another namespace perhaps".to_owned(),
            "find who uses it with `lsblk` and `findmnt -N`, and unmount it there".to_owned(),
        )
    })
}

/// Where a line of mountinfo (proc_pid_mountinfo(5)) mounts this disk. Some file systems have a device number of their
/// own, so the source's name counts as well.
fn mount_point(line: &str, disk: &str, number: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let (device, point) = (words.nth(2)?, words.nth(1)?);
    let source = words.skip_while(|word| *word != "-").nth(2);
    let same = device == number || source.and_then(|path| path.strip_prefix("/dev/")) == Some(disk);
    same.then(|| point.to_owned())
}

/// Whether somebody has a block device for themselves: a file system, swap, dm, md, in whatever namespace. The kernel does
/// not let it be opened exclusively then (open(2), O_EXCL). Without the right to open it, nothing is known.
fn is_claimed(node: &Path) -> bool {
    let is_block = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|data| data.file_type().is_block_device())
    };
    let opened = Some(node.to_owned()).filter(is_block).map(|path| {
        OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_EXCL | nix::libc::O_NONBLOCK)
            .open(path)
    });
    opened.is_some_and(|opened| {
        opened.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY))
    })
}

/// An interface with a default route, also where that is by a bridge, bond or VLAN over it.
fn route(function: &Function, places: &Places) -> Option<Obstacle> {
    let routed = routed(places);
    places
        .class("net")
        .into_iter()
        .filter(|(_, path)| function.has(path))
        .find(|(interface, _)| {
            let above = above(interface, places);
            above.iter().any(|name| routed.contains(name))
        })
        .map(|(interface, _)| Obstacle::DefaultRoute { interface })
}

/// An interface and all that stand on it.
fn above(interface: &str, places: &Places) -> Vec<String> {
    let mut all = vec![interface.to_owned()];
    let mut next = 0;
    while let Some(name) = all.get(next).cloned() {
        next += 1;
        let directory = places.sys.join("class/net").join(name);
        for entry in entries(&directory) {
            let upper = self::name(&entry)
                .and_then(|name| Some(name.strip_prefix("upper_")?.to_owned()))
                .filter(|upper| !all.contains(upper));
            all.extend(upper);
        }
    }
    all
}

/// Interfaces of default routes, of IPv4 and IPv6 (proc_pid_net(5)).
fn routed(places: &Places) -> Vec<String> {
    let words =
        |line: &str| -> Vec<String> { line.split_ascii_whitespace().map(str::to_owned).collect() };
    let four = lines(&places.proc.join("net/route"));
    let four = four.lines().map(words).filter_map(|words| {
        let (destination, mask) = (words.get(1)?, words.get(7)?);
        let everywhere = destination == "00000000" && mask == "00000000";
        everywhere.then(|| words.first().cloned()).flatten()
    });
    let six = lines(&places.proc.join("net/ipv6_route"));
    let six = six.lines().map(words).filter_map(|words| {
        let length = words.get(1)?;
        let interface = words.last()?;
        // The kernel's own route to nowhere is at lo.
        (length == "00" && interface != "lo").then(|| interface.clone())
    });
    four.chain(six).collect()
}
