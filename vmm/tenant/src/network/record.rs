//! What a tenant's network is: `network.json` in the tenant's directory. Written before anything is made in the kernel and
//! removed after all of it is gone, it is what is cleaned up by.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::pool::{Mac, Pool};
use super::publish::Publish;
use crate::spec::Isolation;
use crate::store::{read_json, remove, write_json};

/// Every host end of a tenant's link begins with this, and nothing else does: the rules rely on it.
pub const LINK_PREFIX: &str = "fv";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The host's end of the tenant's link.
    pub link: String,
    /// Name of its network namespace.
    pub namespace: String,
    pub pool: Pool,
    pub address: Ipv4Addr,
    /// Address and gateway, where the machine has IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<V6>,
    pub mtu: u32,
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// What is at the tenant's end: a tap for a monitor, or a pair made at each start of a container.
    #[serde(default)]
    pub isolation: Isolation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct V6 {
    pub address: Ipv6Addr,
    pub gateway: Ipv6Addr,
}

impl Record {
    pub fn mac(&self) -> Mac {
        Mac::of(self.address)
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.pool.gateway()
    }

    /// The record in a tenant's directory.
    ///
    /// # Errors
    /// It is damaged.
    pub fn read(directory: &Path) -> Result<Option<Self>> {
        Ok(read_json(&file(directory))?)
    }

    pub fn write(&self, directory: &Path) -> Result<()> {
        Ok(write_json(&file(directory), self)?)
    }

    pub fn forget(directory: &Path) -> Result<()> {
        Ok(remove(&file(directory))?)
    }
}

fn file(directory: &Path) -> PathBuf {
    directory.join("network.json")
}

/// Names for the tenant of a state directory that has an address: no two on one machine are alike, as no address is given
/// twice. They fit into the kernel's 15 letters for a link.
pub fn names(root: &Path, address: Ipv4Addr) -> (String, String) {
    let state = state(root);
    let number = address.to_bits();
    (
        format!("{LINK_PREFIX}{state}{number:08x}"),
        format!("{}{number:08x}", namespace_prefix(root)),
    )
}

/// What the names of a state directory's namespaces begin with.
pub fn namespace_prefix(root: &Path) -> String {
    format!("fief-{}", state(root))
}

/// The address that a namespace of this state directory was named for.
pub fn address_of(root: &Path, namespace: &str) -> Option<Ipv4Addr> {
    let number = namespace.strip_prefix(&namespace_prefix(root))?;
    let number = u32::from_str_radix(number, 16).ok()?;
    let address = Ipv4Addr::from_bits(number);
    (names(root, address).1 == namespace).then_some(address)
}

/// Tells state directories apart, by where they are.
fn state(root: &Path) -> String {
    let path = root.canonicalize().unwrap_or_else(|_| root.to_owned());
    let digest = fief_images::store::hash_bytes(path.as_os_str().as_encoded_bytes());
    digest.get(..5).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_state_directories_and_tenants_apart() {
        let (one, two) = (Path::new("/a"), Path::new("/b"));
        let (low, high) = (
            Ipv4Addr::new(10, 99, 0, 2),
            Ipv4Addr::new(250, 99, 255, 254),
        );
        let all = [
            names(one, low),
            names(one, high),
            names(two, low),
            names(two, high),
        ];
        for (at, (link, namespace)) in all.iter().enumerate() {
            assert_eq!(link.len(), 15, "{link}");
            assert!(link.starts_with("fv") && namespace.starts_with("fief-"));
            assert!(!all[..at].iter().any(|(l, n)| l == link || n == namespace));
        }
        assert_eq!(address_of(one, &all[0].1), Some(low));
        assert_eq!(address_of(two, &all[0].1), None);
        assert_eq!(
            address_of(one, &format!("{}zz", namespace_prefix(one))),
            None
        );
    }
}
