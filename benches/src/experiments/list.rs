//! What there is to find out.

use super::repeated::Repeated::{Call, Once, Script};
use super::{Bound, Experiment, Figure, Hog, Repeated, Work};
use crate::probe::Work as Op;
use crate::report::Unit;
use crate::subject::Network;

const CPU: Figure = Figure {
    name: "cpu",
    title: "processor time",
    unit: Unit::Time,
};
const TIME: Figure = Figure {
    name: "time",
    title: "time",
    unit: Unit::Time,
};
/// Exits of the virtual machine, for each operation.
pub const EXITS: Figure = Figure {
    name: "exits",
    title: "VM exits",
    unit: Unit::Number,
};
const MEMORY: Figure = Figure {
    name: "memory",
    title: "memory",
    unit: Unit::Bytes,
};
/// The host's available memory that a tenant took, by their number.
const DENSITY: Figure = Figure {
    name: "density",
    title: "host memory for each",
    unit: Unit::Bytes,
};

const LOST: Figure = Figure {
    name: "lost",
    title: "throughput lost",
    unit: Unit::Percent,
};
const HURT: Figure = Figure {
    name: "hurt",
    title: "is hurt",
    unit: Unit::Answer,
};
/// The control: whoever takes all that it can have has no more itself.
const ITSELF: Figure = Figure {
    name: "itself",
    title: "the neighbour itself is",
    unit: Unit::Answer,
};

/// How many are started at once.
const CROWD: usize = 10;

/// What is done to a subject from outside.
const fn outside(
    name: &'static str,
    title: &'static str,
    figures: &'static [Figure],
    work: Work,
) -> Experiment {
    Experiment {
        name,
        title,
        figures,
        needs_running: false,
        network: Network::None,
        harms: false,
        crashes_kernel: false,
        prepare: "",
        work,
    }
}

/// What is repeated in it; `count` times where instructions are counted.
const fn inside(
    name: &'static str,
    title: &'static str,
    prepare: &'static str,
    repeated: Repeated,
    count: u64,
) -> Experiment {
    Experiment {
        name,
        title,
        figures: &[CPU, TIME, EXITS],
        needs_running: true,
        network: Network::None,
        harms: false,
        crashes_kernel: false,
        prepare,
        work: Work::Repeated(repeated, count),
    }
}

/// What a subject loses beside a neighbour.
const fn beside(
    name: &'static str,
    title: &'static str,
    prepare: &'static str,
    hog: &'static str,
    work: Repeated,
    count: u64,
) -> Experiment {
    Experiment {
        name,
        title,
        figures: &[LOST],
        needs_running: true,
        network: Network::None,
        harms: true,
        crashes_kernel: false,
        prepare,
        work: Work::Lost(Hog(hog), work, count),
    }
}

/// Whether a subject can no longer do something while a neighbour has all that is to be had.
const fn exhausted(
    name: &'static str,
    title: &'static str,
    hog: &'static str,
    attempt: &'static str,
) -> Experiment {
    Experiment {
        name,
        title,
        figures: &[HURT, ITSELF],
        needs_running: true,
        network: Network::None,
        harms: true,
        crashes_kernel: false,
        prepare: "",
        work: Work::Hurt(Hog(hog), None, attempt),
    }
}

/// The same, of what the kernel has plenty of: as on a smaller host, it has only so much meanwhile.
const fn exhausted_of(
    name: &'static str,
    title: &'static str,
    bound: Bound,
    hog: &'static str,
    attempt: &'static str,
) -> Experiment {
    Experiment {
        work: Work::Hurt(Hog(hog), Some(bound), attempt),
        ..exhausted(name, title, hog, attempt)
    }
}

/// The same with a network.
const fn connected(experiment: Experiment) -> Experiment {
    Experiment {
        network: Network::Outside,
        ..experiment
    }
}

/// The file that fio reads and writes. It is there before it is measured: a file's first blocks cost more.
const FILE: &str = "fio --output=/dev/null --name=x --filename=/var/tmp/x --size=32M --rw=write --bs=1M --end_fsync=1";

macro_rules! fio {
    ($flags:literal) => {
        Script(concat!(
            "fio --output=/dev/null --name=x --filename=/var/tmp/x --size=32M --ioengine=libaio --direct=1 --number_ios=COUNT ",
            "--norandommap --randrepeat=1 ",
            $flags
        ))
    };
}

/// A small C project, as a distribution's package has it: a library of several files and a program.
const PROJECT: &str = r#"mkdir -p /var/tmp/project && cd /var/tmp/project
for file in 1 2 3 4; do
    echo '#include <stdio.h>' > part$file.c
    for number in 1 2 3 4 5 6 7 8 9 10; do
        echo "int f${file}_$number(int n) { int s = 0; for (int i = 0; i < n; i++) { s += i * $number; if (s > 1000) s -= 999; printf(\"%d \", s); } return s; }"
    done >> part$file.c
done
echo 'int f1_1(int), f2_2(int); int main(void) { return f1_1(1) + f2_2(0); }' > main.c
printf 'CFLAGS = -O1\nprogram: main.o part1.o part2.o part3.o part4.o\n\tcc -o $@ $^\n' > Makefile"#;

/// A package without an archive: an emulated host has no network to fetch one from.
const PACKAGE: &str = r"mkdir -p /var/tmp/package/DEBIAN /var/tmp/package/usr/share/measured
cd /var/tmp/package
printf '%s\n' 'Package: measured' 'Version: 1' 'Architecture: all' 'Maintainer: fief' 'Description: measured' > DEBIAN/control
for file in 1 2 3 4 5 6 7 8 9 10; do head -c 20000 /bin/bash > usr/share/measured/$file; done
dpkg-deb --root-owner-group --build . /var/tmp/measured.deb";

/// Different things that are counted.
const fn count(name: &'static str, title: &'static str) -> Figure {
    Figure {
        name,
        title,
        unit: Unit::Count,
    }
}

const LEAKS: &[Figure] = &[count("channels", "channels that tell of a neighbour")];

const SURFACE: &[Figure] = &[
    count("calls", "host system calls by the tenant"),
    count("calls-for", "host system calls by others for it"),
    count("allowed", "host system calls allowed"),
    count("functions", "host kernel functions by the tenant"),
    count("functions-for", "host kernel functions by others for it"),
];

pub static ALL: &[Experiment] = &[
    outside(
        "start",
        "start, until a first command can run",
        &[CPU, TIME, EXITS],
        Work::Start,
    ),
    outside(
        "start-cold",
        "the same with nothing in the host's caches",
        &[CPU, TIME, EXITS],
        Work::StartCold,
    ),
    outside("stop", "shut down", &[CPU, TIME], Work::Stop),
    outside(
        "crowd",
        "ten started at once: of each, and until the last one is there",
        &[CPU, TIME, DENSITY],
        Work::Crowd(CROWD),
    ),
    Experiment {
        needs_running: true,
        ..outside(
            "memory",
            "memory of an idle tenant",
            &[MEMORY],
            Work::Memory,
        )
    },
    inside(
        "getpid",
        "shortest system call",
        "",
        Call(Op::Getpid),
        20_000,
    ),
    inside("open", "open and close a file", "", Call(Op::Open), 5000),
    inside(
        "fork",
        "start a program and wait for it",
        "",
        Call(Op::Fork),
        50,
    ),
    inside("fault", "first touch of a page", "", Call(Op::Fault), 8192),
    inside("pipe", "a byte through a pipe", "", Call(Op::Pipe), 5000),
    inside(
        "switch",
        "a byte to a process and back, two switches",
        "",
        Call(Op::Switch),
        2000,
    ),
    inside(
        "sysbench-cpu",
        "sysbench: primes below 2000",
        "",
        Script("sysbench cpu --cpu-max-prime=2000 --time=0 --events=COUNT run > /dev/null"),
        100,
    ),
    inside(
        "sysbench-memory",
        "sysbench: a mebibyte written",
        "",
        Script(
            "sysbench memory --memory-block-size=1M --memory-total-size=COUNT'M' --time=0 run > /dev/null",
        ),
        50,
    ),
    inside(
        "fio-read-1",
        "4 KiB read at random, one at a time",
        FILE,
        fio!("--rw=randread --bs=4k --iodepth=1"),
        500,
    ),
    inside(
        "fio-read-32",
        "4 KiB read at random, 32 at a time",
        FILE,
        fio!("--rw=randread --bs=4k --iodepth=32"),
        1000,
    ),
    inside(
        "fio-write-1",
        "4 KiB written at random, one at a time",
        FILE,
        fio!("--rw=randwrite --bs=4k --iodepth=1"),
        500,
    ),
    inside(
        "fio-write-32",
        "4 KiB written at random, 32 at a time",
        FILE,
        fio!("--rw=randwrite --bs=4k --iodepth=32"),
        1000,
    ),
    inside(
        "fio-sequential",
        "128 KiB read, one after the other",
        FILE,
        fio!("--rw=read --bs=128k --iodepth=4"),
        // Three times as many are in the file.
        64,
    ),
    inside(
        "fio-fsync",
        "4 KiB written and made durable",
        FILE,
        fio!("--rw=write --bs=4k --fsync=1"),
        50,
    ),
    inside(
        "compile",
        "a small C project compiled",
        PROJECT,
        Once("make -sBC /var/tmp/project"),
        1,
    ),
    inside(
        "apt",
        "a package installed and removed by apt",
        PACKAGE,
        Once(
            "export DEBIAN_FRONTEND=noninteractive; apt-get install -qqy /var/tmp/measured.deb; apt-get remove -qqy measured",
        ),
        1,
    ),
    connected(inside(
        "net-send",
        "iperf3: a mebibyte sent over TCP",
        "",
        Script("iperf3 --client OUTSIDE --bytes COUNT'M' > /dev/null"),
        16,
    )),
    connected(inside(
        "net-receive",
        "iperf3: a mebibyte received over TCP",
        "",
        Script("iperf3 --client OUTSIDE --reverse --bytes COUNT'M' > /dev/null"),
        16,
    )),
    connected(inside(
        "ping",
        "an ICMP echo and its answer",
        "",
        Call(Op::Ping),
        300,
    )),
    connected(inside(
        "tcp",
        "a byte over TCP and back",
        "",
        Call(Op::Tcp),
        300,
    )),
    beside(
        "noisy-cpu",
        "beside a neighbour that computes: primes",
        "",
        "for one in 1 2 3 4; do while :; do :; done & done; echo; wait",
        Call(Op::Getpid),
        100_000,
    ),
    beside(
        "noisy-memory",
        "beside a neighbour that takes memory: fresh pages",
        "",
        "echo; while :; do PROBE exhaust memory; done",
        Call(Op::Fault),
        8192,
    ),
    beside(
        "noisy-disk",
        "beside a neighbour that writes: blocks made durable",
        FILE,
        "echo; while :; do dd if=/dev/zero of=/var/tmp/noise bs=1M count=64 conv=fsync; done",
        Script("dd if=/dev/zero of=/var/tmp/quiet bs=4k count=COUNT oflag=dsync"),
        50,
    ),
    beside(
        "noisy-dirty",
        "beside a neighbour whose writes wait in the cache: blocks written",
        FILE,
        "echo; while :; do dd if=/dev/zero of=/var/tmp/noise bs=1M count=256; done",
        Script("dd if=/dev/zero of=/var/tmp/quiet bs=64k count=COUNT"),
        100,
    ),
    beside(
        "noisy-forks",
        "beside a neighbour that starts processes: programs started",
        "",
        "echo; while :; do /bin/true & /bin/true & /bin/true; done",
        Call(Op::Fork),
        50,
    ),
    connected(beside(
        "noisy-send",
        "beside a neighbour that sends without end: bytes over TCP and back",
        "",
        "PROBE flood send",
        Call(Op::Tcp),
        300,
    )),
    connected(beside(
        "noisy-receive",
        "beside a neighbour that receives without end: bytes over TCP and back",
        "",
        "PROBE flood receive",
        Call(Op::Tcp),
        300,
    )),
    exhausted(
        "exhaust-inotify",
        "a neighbour has all inotify instances",
        "PROBE exhaust inotify",
        "PROBE exhaust --one inotify",
    ),
    exhausted_of(
        "exhaust-pids",
        "a neighbour has all processes",
        // A tenant may have 4096 itself.
        Bound::To("kernel/pid_max", 4900),
        "PROBE exhaust pids",
        "PROBE exhaust --one pids",
    ),
    exhausted_of(
        "exhaust-files",
        "a neighbour has all open files",
        Bound::To("fs/file-max", 20_000),
        "PROBE exhaust files",
        "PROBE exhaust --one files",
    ),
    exhausted_of(
        "exhaust-mounts",
        "a neighbour has mounted as much as it may",
        Bound::To("fs/mount-max", 4000),
        "PROBE exhaust mounts",
        "PROBE exhaust --one mounts; umount /var/tmp/exhaust",
    ),
    connected(exhausted_of(
        "exhaust-conntrack",
        "a neighbour has all connections that are tracked",
        // A tenant may have 4096 itself.
        Bound::Connections(4600),
        "PROBE exhaust conntrack",
        "PROBE exhaust --one conntrack",
    )),
    exhausted(
        "exhaust-keys",
        "a neighbour has all room for keys",
        "PROBE exhaust keys",
        // The kernel collects a dead process's keys a moment later.
        "PROBE exhaust --one keys || { sleep 1; PROBE exhaust --one keys; }",
    ),
    exhausted(
        "crash-fork-bomb",
        "a neighbour is a fork bomb",
        "echo; bomb() { bomb | bomb & }; bomb; sleep 1000",
        "PROBE probe fork 5",
    ),
    exhausted(
        "crash-memory",
        "a neighbour takes more memory than it may",
        "echo; while :; do PROBE exhaust memory; done",
        "PROBE probe fault 4096",
    ),
    exhausted(
        "crash-disk",
        "a neighbour's disk is full",
        "dd if=/dev/zero of=/var/tmp/full bs=1M; echo; sleep 1000",
        "echo works > /var/tmp/works; sync /var/tmp/works",
    ),
    Experiment {
        crashes_kernel: true,
        ..exhausted(
            "crash-kernel",
            "a neighbour crashes its kernel, where it has the right to",
            // Not every kernel has the key; every kernel can be told to end when memory does.
            "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger
             echo 2 > /proc/sys/vm/panic_on_oom && PROBE exhaust memory
             echo; sleep 1000",
            "PROBE probe fork 5",
        )
    },
    Experiment {
        needs_running: true,
        ..outside(
            "leaks",
            "what the kernel's files tell of a neighbour",
            LEAKS,
            Work::Leaks,
        )
    },
    Experiment {
        needs_running: true,
        ..outside(
            "surface",
            "what of the host's kernel a small work reaches: different calls and functions",
            SURFACE,
            Work::Surface,
        )
    },
];
