//! Whom subjects talk to: a network of its own on this machine, to which packets are forwarded as to a neighbour on the LAN.

use std::io::{BufRead, BufReader};
use std::process::Command;

use super::{PROBE, Plain};
use crate::error::{Error, Result};
use crate::machine::{Begun, begin, said};
use crate::runner::Order;

/// The network namespace, and the group of those who answer in it.
const NAME: &str = "fief-bench-outside";
/// The host's end of the link, and the other.
const HOST_END: &str = "fief-bench0";
const OUTER_END: &str = "fief-bench1";
/// The host's address on it; the other's is [`crate::net::OUTSIDE`].
const HOST: &str = "198.18.0.1";
/// Has this machine track connections, as one with a firewall does: else the plain host's would be cheaper only because fief has
/// made no network yet.
const TRACK: &str = "add table inet fief_bench; add chain inet fief_bench out { type filter hook output priority 0; }; \
                     add rule inet fief_bench out ct state invalid counter";

/// The network, and those who answer in it. They have the image's files, and a group of their own: nobody is charged for them.
#[derive(Debug)]
pub struct Outside {
    files: Plain,
    serving: Vec<Begun>,
}

impl Outside {
    /// # Errors
    /// This machine makes no networks.
    pub fn make(order: &Order) -> Result<Self> {
        let files = Plain::named(NAME, order)?;
        // Of one that was killed.
        remove();
        let mut made = Self {
            files,
            serving: Vec::new(),
        };
        let outer = format!("{}/30", crate::net::OUTSIDE);
        let host = format!("{HOST}/30");
        let steps = [
            format!("netns add {NAME}"),
            format!("link add {HOST_END} type veth peer name {OUTER_END} netns {NAME}"),
            format!("address add {host} dev {HOST_END}"),
            format!("link set {HOST_END} up"),
            format!("-n {NAME} address add {outer} dev {OUTER_END}"),
            format!("-n {NAME} link set lo up"),
            format!("-n {NAME} link set {OUTER_END} up"),
            format!("-n {NAME} route add default via {HOST}"),
        ];
        for step in steps {
            said(Command::new("ip").args(step.split(' ')))?;
        }
        said(Command::new("nft").arg(TRACK))?;
        let mut probe = made.begin(&[PROBE, "serve"])?;
        let mut ready = String::new();
        if let Some(said) = probe.stdout.take() {
            let _ = BufReader::new(said).read_line(&mut ready);
        }
        made.serving.push(probe);
        if ready.is_empty() {
            return Err(Error::Other(
                "nobody answers on the network of the measurement; are its ports taken?".to_owned(),
            ));
        }
        // An image may have none: then what needs it fails, and says so.
        let iperf = made.begin(&["sh", "-c", "exec iperf3 --server > /dev/null"])?;
        made.serving.push(iperf);
        Ok(made)
    }

    fn begin(&self, words: &[&str]) -> Result<Begun> {
        begin(&mut self.files.command(Some(NAME), words))
    }
}

/// The network is gone afterwards, if there was one.
fn remove() {
    let _ = said(Command::new("ip").args(["netns", "del", NAME]));
    // The other end goes with its namespace only when nobody holds that any more.
    let _ = said(Command::new("ip").args(["link", "del", HOST_END]));
    let _ = said(Command::new("nft").args(["delete", "table", "inet", "fief_bench"]));
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.serving.clear();
        remove();
    }
}
