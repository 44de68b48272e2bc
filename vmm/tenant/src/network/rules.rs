//! The packet filter: `rules.nft`, and its sets' elements.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::error::{NetworkError, Result, failed};
use super::pool::local_prefix;
use super::protocol::Protocol;
use super::publish::Publish;
use super::record::Record;
use super::sysctl::{self, Family};
use crate::process::own_child;

/// All that does not depend on which tenants there are.
pub const RULES: &str = include_str!("rules.nft");
const NFT: &str = "nft";

/// One element of one set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Element {
    /// Table and set.
    set: &'static str,
    value: String,
}

impl Element {
    fn new(set: &'static str, value: String) -> Self {
        Self { set, value }
    }

    fn add(&self) -> String {
        format!("add element {} {{ {} }}\n", self.set, self.value)
    }

    /// Removes it whether it is there or not: nft knows no other way before 1.0.8.
    fn remove(&self) -> String {
        format!(
            "{}delete element {} {{ {} }}\n",
            self.add(),
            self.set,
            self.value
        )
    }
}

/// Who may send from the tenant's link.
pub fn senders(record: &Record) -> Vec<Element> {
    let (link, mac) = (&record.link, record.mac());
    let sender = |address: IpAddr| format!("\"{link}\" . {mac} . {address}");
    let v4 = sender(record.address.into());
    let mut elements = vec![
        Element::new("arp fief senders", v4.clone()),
        Element::new("inet fief senders4", v4),
    ];
    if let Some(v6) = record.v6 {
        // From its link-local address it asks for the gateway; that goes no further.
        for address in [v6.address, mac.link_local()] {
            elements.push(Element::new("inet fief senders6", sender(address.into())));
        }
    }
    elements
}

/// Where the tenant's published ports lead.
pub fn published(record: &Record) -> Vec<Element> {
    let each = |publish: &Publish| publication(publish, record);
    record.publish.iter().map(each).collect()
}

fn publication(publish: &Publish, record: &Record) -> Element {
    let key = format!("{} . {}", publish.protocol.number(), publish.port);
    let to = format!("{} . {}", record.address, publish.to);
    if publish.address.is_unspecified() {
        Element::new("inet fief published_everywhere", format!("{key} : {to}"))
    } else {
        let address = publish.address;
        Element::new("inet fief published", format!("{address} . {key} : {to}"))
    }
}

/// The addresses that are tenants', whether anyone has them or not.
pub fn pools(record: &Record) -> Vec<Element> {
    vec![
        Element::new("inet fief pools4", record.pool.to_string()),
        Element::new("inet fief pools6", format!("{}/64", local_prefix())),
    ]
}

/// All that concerns one tenant alone.
pub fn of(record: &Record) -> Vec<Element> {
    [pools(record), senders(record), published(record)].concat()
}

/// The way from one tenant to a port of another.
pub fn way(from: &Record, to: &Record, protocol: Protocol, port: u16) -> Vec<Element> {
    let value =
        |from: IpAddr, to: IpAddr| format!("{from} . {to} . {} . {port}", protocol.number());
    let v4 = value(from.address.into(), to.address.into());
    let mut elements = vec![Element::new("inet fief grants4", v4)];
    if let (Some(from), Some(to)) = (from.v6, to.v6) {
        let v6 = value(from.address.into(), to.address.into());
        elements.push(Element::new("inet fief grants6", v6));
    }
    elements
}

/// Sets the rules, which changes nothing where they are set, and adds elements: all of it or nothing.
pub fn add(elements: &[Element]) -> Result<()> {
    nft(&(rules() + &additions(elements)))
}

/// Each element once: nft 1.0.6 fails at an interval that one script adds twice.
fn additions(elements: &[Element]) -> String {
    let mut seen = HashSet::new();
    let new = elements.iter().filter(|element| seen.insert(*element));
    new.map(Element::add).collect()
}

/// The same, and removes elements.
pub fn remove(elements: &[Element]) -> Result<()> {
    let mut script = rules();
    elements
        .iter()
        .for_each(|element| script.push_str(&element.remove()));
    nft(&script)
}

/// Removes all that concerns a tenant, also what nobody wrote down.
pub fn forget(record: &Record) -> Result<()> {
    let mut script = rules();
    for element in senders(record) {
        script.push_str(&element.remove());
    }
    let mut addresses = vec![record.address.to_string()];
    addresses.extend(record.v6.map(|v6| v6.address.to_string()));
    script.push_str(&removal(&list()?, &addresses));
    nft(&script)
}

/// The rules, and that this machine forwards for tenants only where fief made it forward at all.
fn rules() -> String {
    let mut script = RULES.to_owned();
    for (family, name) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
        if sysctl::forwarding_is_ours(family) {
            let _ = writeln!(
                script,
                "add rule inet fief strangers meta nfproto {name} drop"
            );
        }
    }
    script
}

/// Statements that remove the ports and ways of which one end is one of these addresses. `listing` is nft's own.
fn removal(listing: &Value, addresses: &[String]) -> String {
    let mut script = String::new();
    let objects = listing["nftables"].as_array().into_iter().flatten();
    for object in objects {
        for kind in ["set", "map"] {
            let set = &object[kind];
            let Some(name @ ("published" | "published_everywhere" | "grants4" | "grants6")) =
                set["name"].as_str()
            else {
                continue;
            };
            for element in set["elem"].as_array().into_iter().flatten() {
                let words = words(element);
                if words
                    .split([' '])
                    .any(|word| addresses.iter().any(|a| a == word))
                {
                    let _ = writeln!(script, "delete element inet fief {name} {{ {words} }}");
                }
            }
        }
    }
    script
}

/// An element as nft's JSON has it (libnftables-json(5)) in nft's own words.
fn words(element: &Value) -> String {
    match element {
        Value::String(text) => text.clone(),
        Value::Array(pair) => join(pair, " : "),
        Value::Object(fields) => fields
            .get("concat")
            .and_then(Value::as_array)
            .map(|parts| join(parts, " . "))
            .unwrap_or_default(),
        other => other.to_string(),
    }
}

fn join(parts: &[Value], between: &str) -> String {
    parts.iter().map(words).collect::<Vec<_>>().join(between)
}

/// What is in the table, as JSON; nothing if it is not there.
fn list() -> Result<Value> {
    let _waits = own_child();
    let output = program()
        .args(["-j", "list", "table", "inet", "fief"])
        .output()
        .map_err(failed("run nft"))?;
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}

fn nft(script: &str) -> Result<()> {
    let _waits = own_child();
    let mut child = program()
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed("run nft"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends early says why.
        let _ = stdin.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed("run nft"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(NetworkError::Rules(said.into_owned()))
}

/// The nft that is there, also for those whose PATH lacks the tools of administrators.
fn program() -> Command {
    Command::new(fief_host::doctor::find_program(NFT).unwrap_or_else(|| NFT.into()))
}

/// Whether nft is there.
pub fn is_available() -> bool {
    fief_host::doctor::find_program(NFT).is_some()
}

/// Which of the published ports nft refused, because it is published already.
pub fn refused(record: &Record, said: &str) -> Option<Publish> {
    let taken = |publish: &&Publish| said.contains(&publication(publish, record).value);
    said.contains("File exists")
        .then(|| record.publish.iter().find(taken).copied())?
}

#[cfg(test)]
mod tests;
