//! Tenants' networks. A namespace `outside` of the emulated host stands for the world: the host's way out leads there, and
//! it knows of no tenants.
//!
//! Rules that a test takes away come back whenever any fief makes or removes a tenant's network, as other tests do at the
//! same time. So a control takes them away and tries, again and again, until the probe gets through.

mod apart;
mod errors;
mod flushed;
mod grants;
mod leftovers;
mod rates;
mod traffic;
mod ways;

use std::fmt;
use std::sync::{LazyLock, Mutex, MutexGuard, OnceLock};

use fief_tests::{Said, binary, in_host, run, run_with, waiting};

use super::backend::Backend;
use super::{Tenant, json};

/// Addresses of the host towards the world, and of the world.
pub const HOST: &str = "203.0.113.1";
const OUTSIDE: &str = "203.0.113.9";
const HOST6: &str = "2001:db8:9::1";
const OUTSIDE6: &str = "2001:db8:9::9";
/// Where clouds keep credentials. Here, the world does.
const METADATA: &str = "169.254.169.254";

const WORLD: &str = "
ip netns list | grep -q '^outside' && exit
ip netns add outside
ip link add out0 type veth peer name in0 netns outside
ip addr add $HOST/24 dev out0; ip -6 addr add $HOST6/64 dev out0 nodad; ip link set out0 up
ip netns exec outside sh -ec '
    ip link set lo up; ip link set in0 up
    ip addr add $OUTSIDE/24 dev in0; ip -6 addr add $OUTSIDE6/64 dev in0 nodad
    ip addr add $METADATA/32 dev in0'
ip route add default via $OUTSIDE; ip -6 route add default via $OUTSIDE6
ip route add $METADATA/32 via $OUTSIDE
";

/// Makes sure once that the world is there, and the probe in the host.
pub fn world() {
    static WORLD_IS_THERE: OnceLock<()> = OnceLock::new();
    WORLD_IS_THERE.get_or_init(|| {
        let settings = format!(
            "HOST={HOST} OUTSIDE={OUTSIDE} HOST6={HOST6} OUTSIDE6={OUTSIDE6} METADATA={METADATA}"
        );
        in_host(&format!("set -e; export {settings}\n{WORLD}")).ok();
        end_probes();
        put("host exec -i --");
    });
}

/// Copies the probe to where `fief LINE` runs commands.
fn put(line: &str) {
    let probe = std::fs::read(binary("fief-probe")).unwrap();
    super::put(line, "/bin/net-probe", probe);
}

/// Runs a probe in the host's namespace.
fn host_probe(words: &str) -> Said {
    in_host(&format!("net-probe {words}"))
}

/// Runs a probe in the world.
fn outside_probe(words: &str) -> Said {
    in_host(&format!("ip netns exec outside net-probe {words}"))
}

/// A tenant with the probe in it.
struct Peer {
    tenant: Tenant,
    address: String,
    address6: String,
    mac: String,
    link: String,
    namespace: String,
    /// What it is joined to in that namespace.
    device: &'static str,
}

impl Peer {
    #[track_caller]
    fn start(backend: Backend, name: &str, options: &str) -> Self {
        world();
        let options = format!("--kernel micro --image busybox --memory 128M {options}");
        let tenant = backend.start(name, &options);
        put(&format!("exec -i {name} --"));
        Self::of(tenant)
    }

    #[track_caller]
    fn of(tenant: Tenant) -> Self {
        let all = json(&run(&format!("inspect {}", tenant.0)).ok());
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let network = &all["network"];
        Self {
            address: text(&network["address"]),
            address6: text(&network["v6"]["address"]),
            mac: text(&network["mac"]),
            link: text(&network["link"]),
            namespace: text(&network["namespace"]),
            device: if network["isolation"] == "container" {
                "ct0"
            } else {
                "tap0"
            },
            tenant,
        }
    }

    fn probe(&self, words: &str) -> Said {
        run(&format!("exec {} -- net-probe {words}", self.tenant.0))
    }

    /// The address of its own link, as Linux makes it of the MAC.
    fn link_local(&self) -> String {
        self.sh("ip -6 addr show dev eth0 scope link | sed -n 's/.*inet6 \\([^/]*\\).*/\\1/p'")
    }

    /// Runs a shell script as the tenant's root.
    #[track_caller]
    fn sh(&self, script: &str) -> String {
        self.tenant.sh(script).ok()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tenant.0)
    }
}

/// Two neighbours of one kind, for tests that leave them as they were.
struct Neighbours {
    alice: Peer,
    bob: Peer,
    /// Ports of the host that lead to alice's port 4000, where something answers: one on loopback, one at all addresses.
    on_loopback: u16,
    on_all: u16,
}

impl Neighbours {
    fn start(backend: Backend) -> Self {
        let [on_loopback, on_all] = backend.either([4001, 4002], [4003, 4004]);
        let [alice, bob] = backend.either(["net-alice", "net-bob"], ["net-ct-alice", "net-ct-bob"]);
        let published = format!("-p {on_loopback}:4000 -p 0.0.0.0:{on_all}:4000");
        let alice = Peer::start(backend, alice, &published);
        alice.probe("tcp-serve 4000 --background").ok();
        Self {
            alice,
            bob: Peer::start(backend, bob, ""),
            on_loopback,
            on_all,
        }
    }
}

/// The neighbours, and the turn of the test that has them.
struct Turn {
    both: &'static Neighbours,
    _alone: MutexGuard<'static, ()>,
}

impl std::ops::Deref for Turn {
    type Target = Neighbours;

    fn deref(&self) -> &Neighbours {
        self.both
    }
}

fn neighbours(backend: Backend) -> Turn {
    static ALONE: Mutex<()> = Mutex::new(());
    static MACHINES: LazyLock<Neighbours> = LazyLock::new(|| Neighbours::start(Backend::Machine));
    static CONTAINERS: LazyLock<Neighbours> =
        LazyLock::new(|| Neighbours::start(Backend::Container));
    // A test that failed leaves them to the next one.
    let alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let both = backend.either(&MACHINES, &CONTAINERS);
    end_probes();
    Turn {
        both,
        _alone: alone,
    }
}

/// Ends the probes of earlier tests in the host and in the world, whose ports the next one takes. Those in containers, which
/// the host sees, too, stay.
fn end_probes() {
    let script = "for pid in $(pidof net-probe); do
            test $(readlink /proc/$pid/ns/pid) != $(readlink /proc/self/ns/pid) || kill $pid
        done";
    let _ = in_host(script);
}

/// Tries until `change`, done in the host before each try, lets the probe through.
#[track_caller]
fn gets_through(change: &str, probe: impl Fn() -> Said) {
    waiting::until(&format!("a probe gets through after: {change}"), || {
        in_host(change).ok();
        match probe().code {
            Some(0) => Some(()),
            Some(1) => None,
            other => panic!("the probe cannot be made: {other:?}"),
        }
    });
}

/// The rules are as fief makes them: every command that changes a network sets them.
#[track_caller]
fn rules_are_back(both: &Neighbours) {
    let both = format!("{} --to {} --port 9", both.alice, both.bob);
    run(&format!("grant {both}")).ok();
    run(&format!("revoke {both}")).ok();
}
