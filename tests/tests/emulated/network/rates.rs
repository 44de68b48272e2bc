//! `--net-rate`: what passes in the time that another tenant without a limit needs for so many bytes.

use super::*;
use crate::rates::SHAPING;

const RATE: &str = "16K";
/// What the tenant without a limit sends or takes.
const FREE: u64 = 16 << 20;
/// What the limited one begins: more than passes within its limit in an hour.
const LIMITED: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    In,
}

/// A stream between a tenant and the world that goes on in the background, its sender's last words in a file.
struct Stream<'a> {
    peer: &'a Peer,
    way: Way,
    log: String,
}

impl<'a> Stream<'a> {
    /// Into the tenant it goes by a published port of the same number.
    #[track_caller]
    fn begin(peer: &'a Peer, way: Way, port: u16, bytes: u64) -> Self {
        let receive =
            format!("receive {port} --timeout 1100 --background --log /tmp/receive-{port}");
        let send = |to: &str, log: &str| {
            format!(
                "rm -f {log}; (net-probe send {to} {port} {bytes} --timeout 1100; echo code $?) > {log} 2>&1 &"
            )
        };
        let log = format!("/tmp/send-{port}-{way:?}");
        match way {
            Way::Out => {
                outside_probe(&receive).ok();
                peer.sh(&send(OUTSIDE, &log));
            }
            Way::In => {
                peer.probe(&receive).ok();
                let script =
                    send(HOST, &log).replace("net-probe", "ip netns exec outside net-probe");
                in_host(&script).ok();
            }
        }
        Self { peer, way, log }
    }

    /// Waits until all has passed.
    #[track_caller]
    fn end(self) {
        let read = format!("cat {}", self.log);
        let said = waiting::until("the stream ends", || {
            let said = match self.way {
                Way::Out => self.peer.sh(&read),
                Way::In => in_host(&read).ok(),
            };
            said.contains("code ").then_some(said)
        });
        assert!(said.contains("code 0"), "{said}");
    }

    /// Bytes of the tenant that passed its limit so far.
    #[track_caller]
    fn passed(&self) -> u64 {
        let counter = |link: &str| format!("cat /sys/class/net/{link}/statistics/rx_bytes");
        let bytes = match self.way {
            Way::Out => in_host(&counter(&self.peer.link)).ok(),
            Way::In => self.peer.sh(&counter("eth0")),
        };
        bytes.parse().unwrap()
    }
}

/// While one tenant has [`FREE`] bytes pass, the limited one has only a little, but some. Its stream goes on.
#[track_caller]
fn is_limited<'a>(limited: &'a Peer, free: &Peer, way: Way, ports: [u16; 2]) -> Stream<'a> {
    let slow = Stream::begin(limited, way, ports[0], LIMITED);
    let before = slow.passed();
    Stream::begin(free, way, ports[1], FREE).end();
    let passed = slow.passed() - before;
    println!("{way:?}: {passed} bytes while {FREE} passed without a limit");
    assert!(passed < FREE / 8, "{way:?}: {passed}");
    waiting::until("something passes within the limit", || {
        (slow.passed() > before).then_some(())
    });
    slow
}

both!(a_rate_of_the_network_holds_both_ways_from_the_beginning_and_as_it_is_changed);
fn a_rate_of_the_network_holds_both_ways_from_the_beginning_and_as_it_is_changed(backend: Backend) {
    let _shaping = SHAPING.lock().unwrap_or_else(|lock| lock.into_inner());
    let limited = format!("-p 0.0.0.0:5302:5302 --net-rate {RATE}");
    let limited = Peer::start(backend, "net-limited", &limited);
    let free = Peer::start(backend, "net-free", "-p 0.0.0.0:5312:5312");
    let out = is_limited(&limited, &free, Way::Out, [5301, 5311]);
    // Without the limit all that was begun passes, which it would not in the time that a test waits.
    run("set net-limited --net-rate 0").ok();
    out.end();
    run(&format!("set net-limited --net-rate {RATE}")).ok();
    let into = is_limited(&limited, &free, Way::In, [5302, 5312]);
    run("set net-limited --net-rate 0").ok();
    into.end();
    run(&format!("set net-limited --net-rate {RATE}")).ok();
    let out = is_limited(&limited, &free, Way::Out, [5303, 5313]);
    run("set net-limited --net-rate 0").ok();
    out.end();
}
