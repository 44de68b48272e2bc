//! Tenants' networks on the host: made with a tenant, removed with it, untouched by its starts and stops.
//!
//! A tenant has a network namespace of its own and in it a tap for its monitor and one end of a link ([`link`]); the
//! other end is in the host's namespace, has the gateway's address, and a route for one address leads there ([`pool`]).
//! What may pass is decided by one static set of rules ([`rules`]). `docs/networking.md` shows the way of a packet.
//!
//! Whoever changes anything holds one lock of the machine: other state directories share the kernel. What is about to
//! be made is written down first ([`record`]), so that a killed fief leaves nothing that the next does not find.

mod error;
mod filter;
pub mod grants;
mod link;
pub mod namespace;
mod netlink;
mod permission;
mod pool;
mod protocol;
mod publish;
mod record;
pub mod resolver;
mod rules;
mod sysctl;
mod tap;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use netlink_packet_route::AddressFamily;
use nix::unistd::geteuid;

pub use error::{NetworkError, Result};
pub use grants::Grant;
pub use permission::{forget_grants, grant, granted_to, revoke};
pub use protocol::Protocol;
pub use publish::{Publish, PublishError};
pub use record::{Record, V6};
pub use tap::TAP;

use crate::process::{NET_ADMIN, SYS_ADMIN, has_capability};
use crate::spec::{Bytes, Isolation, Net, Spec};
use crate::store::{Held, failed as file_failed};
use error::failed;
use pool::Pool;
use sysctl::Family;

/// The least that IPv6 works with (RFC 8200, 5), and what a link of this machine has unless its way out takes less.
const MTU: std::ops::RangeInclusive<u32> = 1280..=1500;

/// Makes sure that this process can make networks here.
///
/// # Errors
/// [`NetworkError::Permission`], [`NetworkError::NoNft`].
pub fn require() -> Result<()> {
    if !may_administer() {
        return Err(NetworkError::Permission);
    }
    if rules::is_available() {
        Ok(())
    } else {
        Err(NetworkError::NoNft)
    }
}

/// Whether this process has what making networks takes.
fn may_administer() -> bool {
    has_capability(NET_ADMIN) && has_capability(SYS_ADMIN)
}

/// Held by whoever changes networks of this machine.
fn lock() -> Result<Held> {
    if !may_administer() {
        return Err(NetworkError::Permission);
    }
    Ok(Held::take_machines("network.lock")?)
}

/// To be held while the directory of a tenant with a network is renamed: whoever lists the networks meanwhile, with the
/// lock, could miss it under both names, and take its network for nobody's. Nothing for a tenant without one, and for who
/// may change no networks.
///
/// # Errors
/// The lock cannot be taken.
pub fn hold_still(directory: &Path) -> Result<Option<Held>> {
    if matches!(Record::read(directory), Ok(None)) || !may_administer() {
        return Ok(None);
    }
    lock().map(Some)
}

/// The network of the tenant in `directory`, if it has one: what its monitor is to use. One that was made with it is
/// only looked at, and its rules set again if somebody removed them; it is made again when the machine has restarted since,
/// or the tenant was made before there were networks.
///
/// # Errors
/// See [`NetworkError`].
pub fn ensure(directory: &Path, spec: &Spec) -> Result<Option<Record>> {
    if spec.net == Net::None {
        return Ok(None);
    }
    match Record::read(directory)? {
        Some(record)
            if is_made(&record)
                && record.publish == spec.publish
                && record.isolation == spec.isolation =>
        {
            if is_bare(&record) {
                mend(directory)?;
            }
            Ok(Some(record))
        }
        _ => make(directory, spec),
    }
}

/// Sets the rules again, with all that concerns the tenants of the state directory, if those of the tenant in `directory`
/// are gone: `nft flush ruleset` removes everybody's.
fn mend(directory: &Path) -> Result<()> {
    let _lock = lock()?;
    // Somebody may have been quicker, or have removed the tenant.
    match Record::read(directory)? {
        Some(record) if is_bare(&record) => permission::renew(&root_of(directory)),
        _ => Ok(()),
    }
}

/// Whether the network is there without its rules. Who may not ask the kernel, or has one without a packet filter, hears so
/// where the rules are set.
fn is_bare(record: &Record) -> bool {
    is_made(record) && !filter::has_sender(record).unwrap_or(false)
}

/// Mends the rules of the tenant in `directory` whenever somebody changed the packet filter, on a thread of its own, for as
/// long as this process lives.
///
/// Nothing else could keep tenants apart then: their packets go through this machine's own namespace, where only these
/// rules look at them.
pub fn guard(directory: &Path) {
    let directory = directory.to_owned();
    // Without a thread, or with rules that nft refuses, the next start tells.
    let _ = std::thread::Builder::new()
        .name("rules".to_owned())
        .spawn(move || {
            let Ok(changes) = filter::Changes::listen() else {
                return;
            };
            // First of all for what happened before this listened.
            loop {
                // Asked without the lock: rules change all the time, and are hardly ever gone.
                if matches!(Record::read(&directory), Ok(Some(record)) if is_bare(&record)) {
                    let _ = mend(&directory);
                }
                if changes.wait().is_err() {
                    return;
                }
            }
        });
}

/// How many tenants of a state directory have a network, and how many of these lack their rules; nothing if this user may
/// not ask the kernel.
pub fn count_bare(root: &Path) -> Option<(usize, usize)> {
    let made = records(root).ok().filter(|_| may_administer())?;
    let made: Vec<_> = made.into_iter().filter(|(_, one)| is_made(one)).collect();
    let bare = made.iter().filter(|(_, record)| is_bare(record));
    Some((made.len(), bare.count()))
}

/// Makes the network that the spec of the tenant in `directory` asks for.
///
/// # Errors
/// See [`NetworkError`]; nothing was made then.
pub fn make(directory: &Path, spec: &Spec) -> Result<Option<Record>> {
    if spec.net == Net::None {
        return Ok(None);
    }
    require()?;
    let _lock = lock()?;
    let before = Record::read(directory)?;
    if let Some(record) = &before {
        dismantle(record)?;
    }
    let root = root_of(directory);
    sweep(&root)?;
    require_ports(&root, directory, spec)?;
    let record = plan(&root, spec, before.as_ref())?;
    record.write(directory)?;
    let made = establish(&record).and_then(|()| permission::renew(&root));
    if let Err(error) = made {
        // Rules that were refused added nothing. What cannot be removed now is found by its record.
        let refused = matches!(error, NetworkError::Rules(_));
        let rules = if refused {
            Ok(())
        } else {
            rules::forget(&record)
        };
        if rules.and_then(|()| remove_link(&record)).is_ok() {
            Record::forget(directory)?;
        }
        return Err(told(error, &record));
    }
    Ok(Some(record))
}

/// Removes the network of the tenant in `directory`; none is fine.
///
/// # Errors
/// No permission. The record stays for the next try.
pub fn take_down(directory: &Path) -> Result<()> {
    if Record::read(directory)?.is_none() {
        return Ok(());
    }
    let _lock = lock()?;
    // Another fief may have been quicker, and the names be somebody's again.
    if let Some(record) = Record::read(directory)? {
        dismantle(&record)?;
        Record::forget(directory)?;
    }
    Ok(())
}

/// The tenant's network namespace, for its monitor to enter.
///
/// # Errors
/// It is not there.
pub fn open_namespace(record: &Record) -> std::io::Result<fs::File> {
    namespace::open(&record.namespace)
}

/// Gives a container its interface: one end of a pair in `inside`, the container's own network namespace. The other takes
/// the place that a virtual machine's tap has. It goes with the container.
///
/// # Errors
/// No permission, or the tenant's network is not there.
pub fn attach(record: &Record, inside: &fs::File) -> Result<()> {
    let entering = || failed(format!("enter the namespace {}", record.namespace));
    let outside = open_namespace(record).map_err(entering())?;
    namespace::within(&outside, || {
        link::make_inner(record, inside)?;
        link::connect(link::INNER, record.mtu)
    })
    .map_err(entering())?
}

/// Limits each direction of a container's network, which is attached, to this many bytes a second; or no more.
///
/// # Errors
/// No permission, the kernel cannot do it, or the container's interface is not there.
pub fn limit(record: &Record, rate: Option<Bytes>) -> Result<()> {
    let entering = || failed(format!("enter the namespace {}", record.namespace));
    let inside = open_namespace(record).map_err(entering())?;
    namespace::within(&inside, || link::limit(record.mtu, rate)).map_err(entering())?
}

/// The state directory of the tenant in `directory`.
fn root_of(directory: &Path) -> PathBuf {
    let root = directory.parent().and_then(Path::parent);
    root.unwrap_or(directory).to_owned()
}

/// The networks of a state directory, also of tenants that are just made or removed, with the tenants' directories.
fn records(root: &Path) -> Result<Vec<(PathBuf, Record)>> {
    let tenants = root.join("tenants");
    let entries = fs::read_dir(&tenants).map_err(file_failed("read", &tenants))?;
    Ok(entries
        .flatten()
        // One that is damaged tells so where it is used; nobody else's network depends on it.
        .filter_map(|entry| Some((entry.path(), Record::read(&entry.path()).ok()??)))
        .collect())
}

fn is_made(record: &Record) -> bool {
    namespace::exists(&record.namespace) && link::exists(&record.link)
}

/// Removes what bears this state directory's names and is in nobody's record: its tenant's directory was removed by
/// other means than fief.
fn sweep(root: &Path) -> Result<()> {
    let prefix = record::namespace_prefix(root);
    let found = namespace::named(&prefix);
    if found.is_empty() {
        return Ok(());
    }
    let known = records(root)?;
    for name in found {
        if known.iter().any(|(_, record)| record.namespace == name) {
            continue;
        }
        if let Some(address) = record::address_of(root, &name) {
            dismantle(&describe(root, address, Pool::of(root)?, true))?;
        }
    }
    Ok(())
}

/// No two tenants, and no program of this machine, publish the same port.
fn require_ports(root: &Path, directory: &Path, spec: &Spec) -> Result<()> {
    if spec.publish.is_empty() {
        return Ok(());
    }
    for (other, record) in records(root)? {
        let published = record.publish.iter();
        if let Some(port) = published
            .filter(|_| other != directory)
            .find_map(|theirs| spec.publish.iter().find(|ours| ours.collides(theirs)))
        {
            let tenant = other.file_name().unwrap_or_default().to_string_lossy();
            return Err(NetworkError::PortTaken {
                port: *port,
                tenant: tenant.into_owned(),
            });
        }
    }
    spec.publish.iter().try_for_each(Publish::require_free)
}

/// Chooses an address, the one it had `before` if nobody has it by now, and all that follows from it.
fn plan(root: &Path, spec: &Spec, before: Option<&Record>) -> Result<Record> {
    let pool = Pool::of(root)?;
    let file = root.join(pool::SETTINGS);
    let routes = link::routes(AddressFamily::Inet)?;
    let (tenants, others): (Vec<_>, Vec<_>) =
        routes.into_iter().partition(|route| route.is_tenants());
    let v4 = |address: IpAddr| match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    };
    let overlapping = others
        .iter()
        .find(|route| route.prefix > 0 && pool.overlaps(v4(route.network), route.prefix));
    if let Some(route) = overlapping {
        return Err(NetworkError::Overlap {
            pool,
            network: format!("{}/{}", route.network, route.prefix),
            file,
        });
    }
    let mut taken: Vec<Ipv4Addr> = tenants.iter().map(|route| v4(route.network)).collect();
    let ours = before.map(|record| record.address);
    taken.extend(
        records(root)?
            .iter()
            .map(|(_, record)| record.address)
            .filter(|address| Some(*address) != ours),
    );
    let old = ours.filter(|address| pool.overlaps(*address, 32) && !taken.contains(address));
    let address = old.or_else(|| pool.choose(|address| taken.contains(&address)));
    let address = address.ok_or(NetworkError::Exhausted(pool, file))?;
    let mut record = describe(root, address, pool, has_ipv6()?);
    record.mtu = mtu(&others);
    record.publish.clone_from(&spec.publish);
    record.isolation = spec.isolation;
    Ok(record)
}

/// What follows from an address.
fn describe(root: &Path, address: Ipv4Addr, pool: Pool, v6: bool) -> Record {
    let (link, namespace) = record::names(root, address);
    let prefix = pool::local_prefix();
    Record {
        link,
        namespace,
        pool,
        address,
        v6: v6.then(|| V6 {
            address: pool::address6(prefix, address),
            gateway: pool::gateway6(prefix),
        }),
        mtu: *MTU.end(),
        publish: Vec::new(),
        isolation: Isolation::Vm,
    }
}

/// Whether this machine has a way out by IPv6.
fn has_ipv6() -> Result<bool> {
    if !sysctl::has_ipv6() {
        return Ok(false);
    }
    let routes = link::routes(AddressFamily::Inet6)?;
    Ok(routes
        .iter()
        .any(|route| route.is_default() && route.link_name().is_some_and(|name| name != "lo")))
}

/// What the way out of this machine takes at once, so that larger packets need not be refused first.
fn mtu(routes: &[link::Route]) -> u32 {
    let name = routes
        .iter()
        .filter(|route| route.is_default())
        .find_map(link::Route::link_name);
    let file = name.map(|name| format!("/sys/class/net/{name}/mtu"));
    let mtu = file.and_then(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
    mtu.unwrap_or(*MTU.end()).clamp(*MTU.start(), *MTU.end())
}

/// Makes all that the record describes. The rules come before anything can be sent; a way out comes last.
fn establish(record: &Record) -> Result<()> {
    let families = [Some(Family::V4), record.v6.map(|_| Family::V6)];
    let families: Vec<Family> = families.into_iter().flatten().collect();
    families
        .iter()
        .try_for_each(|f| sysctl::claim_forwarding(*f))?;
    let inside = namespace::make(&record.namespace)
        .map_err(failed(format!("make the namespace {}", record.namespace)))?;
    rules::add(&rules::of(record))?;
    let entering = || failed(format!("enter the namespace {}", record.namespace));
    namespace::within(&inside, || prepare(record)).map_err(entering())??;
    link::make(record, &inside)?;
    settle(record)?;
    if record.isolation == Isolation::Vm {
        namespace::within(&inside, || link::connect(TAP, record.mtu)).map_err(entering())??;
    }
    link::address(record)?;
    families.iter().try_for_each(|f| sysctl::forward(*f))
}

/// Makes the tap in the tenant's namespace, where nothing of the namespace itself is to speak on the tenant's link.
fn prepare(record: &Record) -> Result<()> {
    if sysctl::has_ipv6() {
        sysctl::set("ipv6/conf/all/disable_ipv6", "1")?;
        sysctl::set("ipv6/conf/default/disable_ipv6", "1")?;
    }
    match record.isolation {
        Isolation::Vm => tap::make(geteuid()).map_err(failed("make a tap device (/dev/net/tun)")),
        Isolation::Container => Ok(()),
    }
}

/// The host's end answers for the gateway's address alone, believes no redirect and no router.
fn settle(record: &Record) -> Result<()> {
    let link = &record.link;
    let v4 = |name: &str, value: &str| sysctl::set(&format!("ipv4/conf/{link}/{name}"), value);
    v4("arp_ignore", "1")?;
    v4("accept_redirects", "0")?;
    v4("send_redirects", "0")?;
    // Answers to a program of this machine that reached a port by a loopback address come back for that address.
    if record.publish.iter().any(|port| port.address.is_loopback()) {
        v4("route_localnet", "1")?;
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(());
    }
    let v6 = |name: &str, value: &str| sysctl::set(&format!("ipv6/conf/{link}/{name}"), value);
    if record.v6.is_none() {
        return v6("disable_ipv6", "1");
    }
    v6("disable_ipv6", "0")?;
    v6("accept_ra", "0")?;
    v6("accept_redirects", "0")?;
    v6("accept_dad", "0")?;
    // No address but the gateway's.
    v6("addr_gen_mode", "1")
}

/// Removes all that the record describes, as far as it is there.
fn dismantle(record: &Record) -> Result<()> {
    // The namespace is made first and goes last: without it and the link, there is nothing. After a restart, say.
    if !link::exists(&record.link) && !namespace::path(&record.namespace).exists() {
        return Ok(());
    }
    if !rules::is_available() {
        return Err(NetworkError::NoNft);
    }
    rules::forget(record)?;
    remove_link(record)
}

fn remove_link(record: &Record) -> Result<()> {
    link::remove(&record.link)?;
    namespace::remove(&record.namespace)
        .map_err(failed(format!("remove the namespace {}", record.namespace)))
}

/// Words for what nft or the kernel refused.
fn told(error: NetworkError, record: &Record) -> NetworkError {
    match error {
        NetworkError::Rules(said) => match rules::refused(record, &said) {
            Some(port) => NetworkError::PortTaken {
                port,
                tenant: "of another state directory".to_owned(),
            },
            None => NetworkError::Rules(said),
        },
        other => other,
    }
}
