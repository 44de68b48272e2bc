//! Giving and taking grants: the file, the rules, the log.

use std::net::IpAddr;
use std::path::Path;

use super::error::{NetworkError, Result};
use super::grants::{self, Change, Grant};
use super::record::Record;
use super::rules::{self, Element};
use super::{is_made, lock, records, root_of};
use crate::spec::TenantName;
use crate::store::{Store, Tenant};

/// Permits `grant.to` to reach the port. Given twice, it is given once.
///
/// # Errors
/// A tenant is unknown, has no network, or is the other; nothing changed then.
pub fn grant(store: &Store, grant: &Grant) -> Result<()> {
    if grant.tenant == grant.to {
        return Err(NetworkError::Oneself(grant.to.to_string()));
    }
    let _lock = lock()?;
    let root = store.root();
    for name in [&grant.tenant, &grant.to] {
        read(root, name)?.ok_or_else(|| NetworkError::NoNetwork(name.to_string()))?;
    }
    let mut all = grants::read(root)?;
    if !all.contains(grant) {
        all.push(grant.clone());
        grants::log(root, Change::Granted, grant)?;
        grants::write(root, &mut all)?;
    }
    renew(root)
}

/// Takes a grant back: connections that it allowed end.
///
/// # Errors
/// [`NetworkError::NoGrant`].
pub fn revoke(store: &Store, grant: &Grant) -> Result<()> {
    let _lock = lock()?;
    let root = store.root();
    let mut all = grants::read(root)?;
    if !all.contains(grant) {
        return Err(NetworkError::NoGrant(grant.to_string()));
    }
    close(root, std::slice::from_ref(grant))?;
    all.retain(|other| other != grant);
    grants::log(root, Change::Revoked, grant)?;
    grants::write(root, &mut all)
}

/// Removes the grants of a tenant that is about to be removed; those that could reach it.
///
/// # Errors
/// No permission, or the grants are damaged.
pub fn forget_grants(tenant: &Tenant) -> Result<Vec<TenantName>> {
    let (root, name) = (&root_of(tenant.directory()), &tenant.name);
    if !grants::read(root)?.iter().any(|grant| grant.concerns(name)) {
        return Ok(Vec::new());
    }
    let _lock = lock()?;
    let (gone, mut kept): (Vec<_>, Vec<_>) = grants::read(root)?
        .into_iter()
        .partition(|grant| grant.concerns(name));
    close(root, &gone)?;
    for grant in &gone {
        grants::log(root, Change::Removed, grant)?;
    }
    grants::write(root, &mut kept)?;
    let could = gone.into_iter().filter(|grant| grant.tenant == *name);
    Ok(could.map(|grant| grant.to).collect())
}

/// Sets the rules and all elements of the state directory's tenants that are there: after a restart of the machine, and
/// where somebody else removed them (`nft flush ruleset`).
pub fn renew(root: &Path) -> Result<()> {
    let mut elements = Vec::new();
    for (_, record) in records(root)?
        .into_iter()
        .filter(|(_, record)| is_made(record))
    {
        elements.extend(rules::of(&record));
    }
    let ways = grants::read(root)?;
    elements.extend(ways.iter().filter_map(|grant| both(root, grant)).flatten());
    rules::add(&elements)
}

/// Tenants that `tenant` may reach, with their addresses.
///
/// # Errors
/// The grants are damaged.
pub fn granted_to(tenant: &Tenant) -> Result<Vec<(IpAddr, TenantName)>> {
    let root = &root_of(tenant.directory());
    let mut names = Vec::new();
    for grant in grants::read(root)?
        .into_iter()
        .filter(|grant| grant.to == tenant.name)
    {
        if names.iter().any(|(_, known)| *known == grant.tenant) {
            continue;
        }
        let Some(record) = read(root, &grant.tenant)? else {
            continue;
        };
        names.push((record.address.into(), grant.tenant.clone()));
        if let Some(v6) = record.v6 {
            names.push((v6.address.into(), grant.tenant));
        }
    }
    Ok(names)
}

fn close(root: &Path, grants: &[Grant]) -> Result<()> {
    let elements: Vec<Element> = grants
        .iter()
        .filter_map(|grant| both(root, grant))
        .flatten()
        .collect();
    if elements.is_empty() {
        return Ok(());
    }
    rules::remove(&elements)
}

/// The elements of a grant whose ends both are in the kernel: an address alone may be somebody else's by now.
fn both(root: &Path, grant: &Grant) -> Option<Vec<Element>> {
    let here = |name| read(root, name).ok().flatten().filter(is_made);
    let (of, to) = (here(&grant.tenant)?, here(&grant.to)?);
    Some(rules::way(&to, &of, grant.protocol, grant.port))
}

fn read(root: &Path, name: &TenantName) -> Result<Option<Record>> {
    Record::read(&root.join("tenants").join(name.as_str()))
}
