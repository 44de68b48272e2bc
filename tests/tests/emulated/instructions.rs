//! What a start costs, in instructions: an emulated host of its own whose clock counts them (`--icount`), so that the same
//! work takes the same time, within 0.3 %, whatever else this machine does.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fief_tests::{Said, feed, fief, state_directory};

/// Million instructions from the start of `fief-vmm` to the first line of the guest's init: Linux of the kernel `micro`,
/// an initramfs with busybox, 1 vCPU, 128 MiB. It was 43.9 when this was last lowered (docs/testing.md); 1.5 % are
/// for other versions of the host's kernel and of busybox.
const START_LIMIT: f64 = 44.5;

/// How many times as much as its runtime's own run of the same bundle, with namespaces of the runtime's making and without an
/// interface, `fief start` of a container may take: the runtime, and what it was when this was last lowered
/// (docs/containers.md, "Figures"), with 3 % for other versions, and a little more for crun: two runs of one tree took 1.28 and
/// 1.29 times as much.
const CONTAINER_LIMITS: [(&str, f64); 2] = [("crun", 1.30), ("runc", 1.23)];

static ALONE: Mutex<()> = Mutex::new(());

/// The machine that counts; stopped at the end of the test, whatever its end.
struct Counting(
    PathBuf,
    #[expect(dead_code, reason = "held")] MutexGuard<'static, ()>,
);

impl Counting {
    fn start() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let state = state_directory().join("icount");
        fs::create_dir_all(&state).unwrap();
        let images = state.join("images");
        if !images.exists() {
            // The rig's own store: what it has need not be made again.
            std::os::unix::fs::symlink(state_directory().join("images"), &images).unwrap();
        }
        let counting = Self(state, alone);
        counting
            .fief(&["host", "start", "--icount"], Vec::new())
            .ok();
        counting
    }

    fn fief(&self, arguments: &[&str], input: Vec<u8>) -> Said {
        let child = fief(arguments)
            .env("FIEF_STATE_DIR", &self.0)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        feed(child, input).into()
    }

    fn put(&self, path: &str, content: Vec<u8>) {
        let script = format!("cat > {path}");
        self.fief(&["host", "exec", "-i", "--", "sh", "-c", &script], content)
            .ok();
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.fief(&["host", "stop"], Vec::new());
    }
}

/// A cpio archive (newc) of directories, which end in `/`, and programs.
pub(super) fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, (name, content)) in entries.iter().chain([&("TRAILER!!!", &[][..])]).enumerate() {
        let mode = if name.ends_with('/') {
            0o040_755
        } else {
            0o100_755
        };
        let name = name.trim_end_matches('/');
        let fields = [
            number,
            mode,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        out.extend(b"070701");
        out.extend(
            fields
                .iter()
                .flat_map(|field| format!("{field:08X}").into_bytes()),
        );
        out.extend(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(*content);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// The kernel `micro` of the rig's store.
fn micro_kernel() -> Vec<u8> {
    let store = state_directory().join("images");
    let reference = fs::read(store.join("refs/kernel/micro.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_slice(&reference).unwrap();
    let artifact = reference["artifact"].as_str().unwrap();
    fs::read(store.join("artifacts").join(artifact).join("vmlinux")).unwrap()
}

#[test]
fn a_start_takes_no_more_instructions_than_it_did() {
    let counting = Counting::start();
    let busybox = fs::read("/bin/busybox").unwrap();
    let init = b"#!/bin/busybox sh\necho INIT-REACHED\n/bin/busybox reboot -f\n";
    let initramfs = archive(&[("bin/", b""), ("bin/busybox", &busybox), ("init", init)]);
    let machine = serde_json::json!({
        "boot-source": {
            "kernel_image_path": "/dev/shm/kernel", "initrd_path": "/dev/shm/initramfs",
            "boot_args": "console=ttyS0 quiet reboot=k panic=-1 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd",
        },
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
    });
    counting.put("/dev/shm/kernel", micro_kernel());
    counting.put("/dev/shm/initramfs", initramfs);
    counting.put("/dev/shm/machine", machine.to_string().into_bytes());
    // Files in RAM, and the clock read by the shell itself: what is counted is the monitor, KVM and the guest.
    let script = "for run in 1 2 3; do
            start=$EPOCHREALTIME
            fief-vmm --no-api --log-path /dev/null --config-file /dev/shm/machine 2>&1 | {
                read -r line
                end=$EPOCHREALTIME
                cat > /dev/null
                echo $line $((${end/./} - ${start/./}))
            }
        done";
    let said = counting.fief(&["host", "exec", "--", "bash", "-c", script], Vec::new());
    let said = said.ok();
    let counts: Vec<f64> = said
        .lines()
        .map(|line| {
            let (reached, count) = line.split_once(' ').unwrap_or((line, ""));
            assert_eq!(reached.trim(), "INIT-REACHED", "{said}");
            count.trim().parse::<f64>().unwrap() / 1e3
        })
        .collect();
    assert_eq!(counts.len(), 3, "{said}");
    // The first run finds caches cold.
    let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
    println!("million instructions from start to init: {counts:.1?}");
    assert!(
        least <= START_LIMIT,
        "{counts:.1?} million instructions, more than {START_LIMIT}: what made the start dearer?"
    );
    assert!(
        least > START_LIMIT / 4.0,
        "{counts:.1?} million instructions are too few to be true"
    );
}

/// Prints, for each runtime and three runs, how much processor time in microseconds its own run of a container's bundle takes,
/// and how much `fief start` of the container: with the shell's fork, all children, and what is in the container's groups.
const STARTS: &str = r#"
# All files in RAM, fief's as the bare bundle's.
cp -a /var/lib/fief /dev/shm/state
export FIEF_STATE_DIR=/dev/shm/state
groups=/sys/fs/cgroup
mkdir -p $groups/measure
echo $$ > $groups/measure/cgroup.procs
mkfifo /dev/shm/never
exec 9<> /dev/shm/never
# Of the groups together, when what starts has come to rest. By the shell alone: another process would be counted, too.
used() {
    read -rt 0.3 -u 9
    sum=0
    for group; do while read -r key value; do [ $key != usage_usec ] || sum=$((sum + value)); done < $group/cpu.stat; done
}
bundle=/dev/shm/bundle
mkdir -p $bundle/root/{proc,sys,dev,run}
chown -R 1900000000:1900000000 $bundle/root
# What its agent inherits from a shim: a socket to listen on, and a pipe that has a byte in it and does not end.
mkfifo /dev/shm/go
cat > /dev/shm/bare.pl << 'END'
use POSIX; use Socket;
my ($l, $r, $group);
socket($l, AF_UNIX, SOCK_STREAM, 0) and bind($l, pack_sockaddr_un("/dev/shm/bare.sock")) and listen($l, 8) or die $!;
sysopen($r, "/dev/shm/go", O_RDWR) and syswrite($r, "x") or die $!;
my @high = map { fcntl($_, F_DUPFD, 10) } $l, $r;
dup2($high[0], 3); dup2($high[1], 4);
open($group, ">", "/sys/fs/cgroup/measure/cgroup.procs") and syswrite($group, "$$") and close($group) or die $!;
exec @ARGV;
END
for runtime in crun runc; do
    fief start ic-$runtime > /dev/null
    perl -pe 's/"terminal":true/"terminal":false/; s/,"path":"\/proc\/\d+\/fd\/\d+"//g; s/"path":"[^"]*\/root"/"path":"root"/;
        s/"hostID":\d+/"hostID":1900000000/g; s/"cgroupsPath":"[^"]*"/"cgroupsPath":"\/measured\/tenant"/' \
        /dev/shm/state/tenants/ic-$runtime/run/config.json > $bundle/config.json
    fief kill ic-$runtime > /dev/null
    cd $bundle
    options="--root /dev/shm/runtime"
    [ $runtime = runc ] || options="$options --cgroup-manager cgroupfs"
    for run in 1 2 3; do
        used $groups/measure; before=$sum
        # The perl is not counted.
        (echo $BASHPID > $groups/cgroup.procs
         exec perl /dev/shm/bare.pl $runtime $options run --detach --preserve-fds 2 --bundle . bare < /dev/null > /dev/null)
        used $groups/measure $groups/measured/tenant; bare=$((sum - before))
        $runtime $options delete --force bare
        rm /dev/shm/bare.sock
        used $groups/measure; before=$sum
        fief start ic-$runtime > /dev/null
        used $groups/measure $groups/fief/ic-$runtime-*; whole=$((sum - before))
        fief kill ic-$runtime > /dev/null
        echo $runtime $bare $whole
    done
done
"#;

#[test]
fn a_containers_start_takes_little_more_than_its_runtimes_own() {
    let counting = Counting::start();
    for (runtime, _) in CONTAINER_LIMITS {
        let name = format!("ic-{runtime}");
        counting.fief(&["rm", "-f", &name], Vec::new());
        let line = format!(
            "create {name} --isolation container --image busybox --net none --runtime {runtime}"
        );
        let words: Vec<_> = line.split(' ').collect();
        counting.fief(&words, Vec::new()).ok();
    }
    let native = [
        "host",
        "exec",
        "--",
        "env",
        "FIEF_HOST=native",
        "bash",
        "-c",
        STARTS,
    ];
    let said = counting.fief(&native, Vec::new()).ok();
    for (runtime, limit) in CONTAINER_LIMITS {
        let runs: Vec<(f64, f64)> = said
            .lines()
            .filter_map(|line| line.strip_prefix(runtime)?.trim().split_once(' '))
            .map(|(bare, whole)| (bare.parse().unwrap(), whole.parse().unwrap()))
            .collect();
        assert_eq!(runs.len(), 3, "{said}");
        // The first run finds caches cold.
        let least =
            |part: fn(&(f64, f64)) -> f64| runs.iter().map(part).fold(f64::INFINITY, f64::min);
        let (bare, whole) = (least(|run| run.0), least(|run| run.1));
        println!(
            "{runtime}: {:.1} million instructions bare, {:.1} by fief",
            bare / 1e3,
            whole / 1e3
        );
        assert!(bare > 5000.0, "{runtime}: {bare} µs are too few to be true");
        assert!(
            whole / bare <= limit,
            "{runtime}: a start takes {:.2} times as much as the runtime's own, more than {limit}: what made it dearer?",
            whole / bare
        );
    }
}
