//! fief, shims and monitors are killed at random moments while tenants are made, started, stopped and removed; after each
//! of them one command brings all back to order.

use fief_tests::{Said, in_host, run};

const ROUNDS: u32 = 200;
/// The moments are random, and the same in every run; `FIEF_SOAK_SEED` gives others.
const SEED: u64 = 0x5eed_f1ef;
/// Longest wait before something is killed, in milliseconds: a start takes about as long in the emulated host.
const LONGEST: u64 = 2500;
const NAMES: [&str; 3] = ["kill-a", "kill-b", "kill-c"];

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        let index = self.below(list.len() as u64);
        list[usize::try_from(index).unwrap()]
    }
}

/// One command, with something killed in the midst of it. What that command says is its own affair.
fn disturb(random: &mut Random) -> String {
    let name = random.of(&NAMES);
    let flags = "--kernel micro --image busybox --memory 64M";
    let command = random.of(&[
        "create NAME FLAGS",
        "run -d --name NAME FLAGS",
        "run -d --name NAME FLAGS --restart always",
        "run --rm --name NAME FLAGS -- true",
        "start NAME",
        "restart -t 1 NAME",
        "stop NAME",
        "rm NAME",
        "rm -f NAME",
    ]);
    let command = command.replace("NAME", name).replace("FLAGS", flags);
    let moment = random.below(LONGEST);
    let moment = format!("{}.{:03}", moment / 1000, moment % 1000);
    let victim = random.of(&["fief", "shim_pid", "monitor"]);
    let kill = match victim {
        "fief" => "kill -9 $fief".to_owned(),
        "shim_pid" => {
            format!("pid=$(sed -n 's/.*\"shim_pid\": *\\([0-9]*\\).*/\\1/p' $state); {KILL}")
        }
        _ => format!("pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' $state); {KILL}"),
    };
    in_host(&format!(
        "state=/var/lib/fief/tenants/{name}/state.json
         fief {command} > /dev/null 2>&1 & fief=$!
         sleep {moment}
         {{ {kill}; }} 2>/dev/null
         wait $fief
         # A tenant that goes with its command does so in its own time. (One that was there before stays: its name was
         # taken.)
         if grep -q '\"remove\": *true' ${{state%/*}}/spec.json 2>/dev/null; then
             shim=$(sed -n 's/.*\"shim_pid\": *\\([0-9]*\\).*/\\1/p' $state) 2>/dev/null
         fi
         test -z \"$shim\" || tail --pid=$shim -f /dev/null
         exit 0"
    ))
    .ok();
    format!("fief {command}; after {moment} s, kill -9 {victim}")
}

const KILL: &str = "test -z \"$pid\" || kill -9 $pid";

/// What is not in order: nothing is.
fn disorder() -> Said {
    in_host(
        r#"
        # The one command.
        fief ps -a > /dev/null || echo "fief ps failed"
        cd /var/lib/fief/tenants
        running=0
        for entry in .[!.]* kill-*; do
            test -e "$entry" || continue
            case $entry in .*) echo "left over: $entry"; continue;; esac
            if test -e $entry/state.json; then
                running=$((running + 1))
                continue
            fi
            for file in run monitor.lock; do test ! -e $entry/$file || echo "left over: $entry/$file"; done
            for group in /sys/fs/cgroup/fief/$entry-*; do test ! -e $group || echo "left over: $group"; done
            test -s $entry/spec.json || echo "$entry has no spec"
            test -s $entry/disk.ext4 || echo "$entry has no disk"
        done
        monitors=$(pidof fief-vmm | wc -w)
        test $monitors -le $running || echo "$monitors monitors for $running tenants that run"
        networks=$(ls -d kill-*/network.json 2>/dev/null | wc -l)
        namespaces=$(ls /run/netns 2>/dev/null | grep -c ^fief-)
        links=$(ip -o link | grep -c ': fv')
        test $networks = $namespaces || echo "$namespaces namespaces for $networks networks"
        test $networks = $links || echo "$links links for $networks networks"
        "#,
    )
}

/// Everything that a tenant has in the emulated host.
fn everything() -> String {
    in_host(
        "ls -A /var/lib/fief/tenants | grep -v ^soak$; ls /sys/fs/cgroup/fief -d /sys/fs/cgroup/fief/*/ | grep -v /soak-
         ls /run/netns; ip -o link | sed 's/^[0-9]*: \\([^:]*\\).*/\\1/'; losetup -a; grep -c fief /proc/mounts
         nft list ruleset | grep -v counter; exit 0",
    )
    .ok()
}

#[test]
fn whatever_is_killed_one_command_brings_all_back_to_order() {
    let seed = std::env::var("FIEF_SOAK_SEED").ok();
    let seed = seed.and_then(|seed| seed.parse().ok()).unwrap_or(SEED);
    let mut random = Random(seed);
    // Makes the images present inside, and what fief makes once.
    run("run --rm --name kill-a --kernel micro --image busybox -- true").ok();
    let before = everything();
    for round in 0..ROUNDS {
        let done = disturb(&mut random);
        let found = disorder().ok();
        assert_eq!(found, "", "seed {seed}, round {round}: {done}");
    }
    for name in NAMES {
        run(&format!("rm -f {name}"));
    }
    assert_eq!(everything(), before, "seed {seed}");
    // All three can be made and live.
    for name in NAMES {
        run(&format!(
            "run -d --name {name} --kernel micro --image busybox --memory 64M"
        ))
        .ok();
        assert_eq!(run(&format!("exec {name} -- echo alive")).ok(), "alive");
        run(&format!("rm -f {name}")).ok();
    }
}
