//! Sending and watching frames.

use std::net::Ipv4Addr;

use crate::background::ready;
use crate::link::Link;
use crate::options::{Options, number};
use crate::{Failure, Result, addresses, frames};

/// Frames sent, unless said otherwise: one may be lost.
const SENT: u64 = 3;

fn send(link: &Link, sent: &[Vec<u8>], options: &Options) -> Result<()> {
    for _ in 0..options.count.unwrap_or(SENT) {
        for frame in sent {
            link.send(frame)?;
        }
    }
    Ok(())
}

/// Prints what `find` makes of frames, until there were enough or the time is up.
fn watch(
    interface: &str,
    options: &Options,
    what: &str,
    find: impl Fn(&[u8]) -> Option<String>,
) -> Result<()> {
    let link = Link::open(interface)?;
    ready();
    let (mut seen, mut frame) = (0, Vec::new());
    let deadline = options.deadline();
    while link.next(deadline, &mut frame)?.is_some() {
        if let Some(found) = find(&frame) {
            println!("{found}");
            seen += 1;
            if seen >= options.count.unwrap_or(1) {
                return Ok(());
            }
        }
    }
    if seen > 0 {
        Ok(())
    } else {
        Err(Failure::Refused(format!("{what} came on {interface}")))
    }
}

pub fn arp_claim(
    interface: &str,
    address: &str,
    mac: Option<&str>,
    options: &Options,
) -> Result<()> {
    let link = Link::open(interface)?;
    let address: Ipv4Addr = number(address)?;
    let own = link.mac()?;
    let mac = mac.map_or(Ok(own), addresses::mac)?;
    let both = [false, true].map(|reply| frames::arp_claim(own, mac, address, reply));
    send(&link, &both, options)
}

pub fn arp_watch(interface: &str, options: &Options) -> Result<()> {
    watch(interface, options, "no ARP", |frame| {
        let (mac, address) = frames::arp_claimed(frame)?;
        Some(format!("{address} is at {}", addresses::show(&mac)))
    })
}

pub fn raw_send(
    interface: &str,
    source: &str,
    target: &str,
    mark: &str,
    options: &Options,
) -> Result<()> {
    let frame = frames::marked(addresses::mac(source)?, addresses::mac(target)?, mark);
    send(&Link::open(interface)?, &[frame], options)
}

pub fn raw_watch(interface: &str, mark: &str, options: &Options) -> Result<()> {
    watch(interface, options, "no such frame", |frame| {
        frames::has_mark(frame, mark).then(|| frames::describe(frame))
    })
}

pub fn ra_send(interface: &str, options: &Options) -> Result<()> {
    let link = Link::open(interface)?;
    let frame = frames::router_advertisement(link.mac()?);
    send(&link, &[frame], options)
}

pub fn ra_watch(interface: &str, options: &Options) -> Result<()> {
    watch(interface, options, "no router advertisement", |frame| {
        let (router, lifetime) = frames::advertised(frame)?;
        Some(format!("{router} for {lifetime} s"))
    })
}
