//! `fief-probe`: one static program that tries whether something gets through a network, for the tests. It runs in tenants,
//! in the emulated host and in namespaces of it; docs/testing.md says how tests use it.

mod addresses;
mod background;
mod frames;
mod link;
mod offload;
mod options;
mod ping;
mod sockets;
mod stream;
mod watch;

use std::process::ExitCode;

use options::{Options, need, number};

const HELP: &str = "\
fief-probe: tries whether something gets through a network

Serving (first line of output: `ready`, once it listens):
  tcp-serve PORT                 take connections and give back what they send
  udp-serve PORT                 give datagrams back
  receive PORT                   take one `send`, compare all of it, print what came
Trying, from a client's side:
  tcp ADDR PORT                  connect, say a word, wait for an answer   [--connect-only]
  udp ADDR PORT                  send a datagram until one comes back
  ping ADDR                      ICMP or ICMPv6 echo; fe80::1%eth0 has a scope
  broadcast IF PORT              a UDP broadcast on IF until someone answers
  send ADDR PORT BYTES           a pseudo-random stream to `receive`, and its verdict   [--seed N]
  flood ADDR PORT SECONDS        datagrams as fast as they go; prints how many
On the link, as root:
  arp-claim IF IP [MAC]          say by ARP that IP is at MAC [IF's own]
  arp-watch IF                   print claims that others make
  raw-send IF SRCMAC DSTMAC MARK a frame of the experimental type 0x88b5 with MARK in it
  raw-watch IF MARK              print frames of others with MARK in them
  ra-send IF                     an IPv6 router advertisement
  ra-watch IF                    print router advertisements of others
  gso IF on|off                  switch segmentation offloads (TSO, GSO) and GRO

Options:
  --timeout SECONDS   how long to try or to watch [3; what serves: for ever]
  --count N           how many frames to send [3], or after how many to stop watching [1]
  --bind ADDR         serve on this address only, or be a client from it
  --sha256            send and receive: print the SHA-256 of the bytes too
  --background        go on in the background once `ready`; what is printed goes to --log
  --log FILE          with --background

Exit code: 0 it worked (watching: something was seen), 1 it was refused or nothing came in time, 2 misuse.";

/// Why a probe did not work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// What was tried was refused, or nothing came: the answer of a probe, code 1.
    #[error("{0}")]
    Refused(String),
    /// The probe could not be made at all, code 2.
    #[error("{0}; `fief-probe --help` tells more")]
    Misuse(String),
}

type Result<T> = std::result::Result<T, Failure>;

/// Names what failed; refused by whom does not matter to a probe.
fn refused<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::Refused(format!("{what}: {error}"))
}

/// For what a test must not take for a refusal: no such interface, no permission.
fn misuse<E: std::fmt::Display>(what: &str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::Misuse(format!("{what}: {error}"))
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.is_empty() || words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match Options::parse(&words).and_then(|(words, options)| background::run(&words, &options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("fief-probe: {failure}");
            ExitCode::from(match failure {
                Failure::Refused(_) => 1,
                Failure::Misuse(_) => 2,
            })
        }
    }
}

/// Runs one probe.
fn probe(words: &[&str], options: &Options) -> Result<()> {
    match *words {
        ["tcp-serve", port] => sockets::tcp_serve(number(port)?, options),
        ["udp-serve", port] => sockets::udp_serve(number(port)?, options),
        ["tcp", address, port] => sockets::tcp(addresses::parse(address, number(port)?)?, options),
        ["udp", address, port] => sockets::udp(addresses::parse(address, number(port)?)?, options),
        ["broadcast", interface, port] => sockets::broadcast(interface, number(port)?, options),
        ["flood", address, port, seconds] => sockets::flood(
            addresses::parse(address, number(port)?)?,
            number(seconds)?,
            options,
        ),
        ["send", address, port, bytes] => stream::send(
            addresses::parse(address, number(port)?)?,
            number(bytes)?,
            options,
        ),
        ["receive", port] => stream::receive(number(port)?, options),
        ["ping", address] => ping::ping(addresses::parse(address, 0)?, options),
        ["arp-claim", interface, address] => watch::arp_claim(interface, address, None, options),
        ["arp-claim", interface, address, mac] => {
            watch::arp_claim(interface, address, Some(mac), options)
        }
        ["arp-watch", interface] => watch::arp_watch(interface, options),
        ["raw-send", interface, source, target, mark] => {
            watch::raw_send(interface, source, target, mark, options)
        }
        ["raw-watch", interface, mark] => watch::raw_watch(interface, mark, options),
        ["ra-send", interface] => watch::ra_send(interface, options),
        ["ra-watch", interface] => watch::ra_watch(interface, options),
        ["gso", interface, "on"] => offload::set(interface, true),
        ["gso", interface, "off"] => offload::set(interface, false),
        [] => need("a command"),
        [command, ..] => Err(Failure::Misuse(format!(
            "'{command}' is no command with these arguments"
        ))),
    }
}
