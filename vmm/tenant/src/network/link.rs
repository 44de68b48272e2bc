//! A tenant's link: a veth pair from the host into the tenant's namespace, and there frames from its end to the tap and
//! back.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
    TcActionOption, TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcHandle,
    TcMessage, TcMirror, TcMirrorActionType, TcOption,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::if_nametoindex;

use super::error::{Result, failed};
use super::netlink::Netlink;
use super::record::{LINK_PREFIX, Record};
use crate::spec::Bytes;

/// The end of the veth pair inside the namespace.
const UP: &str = "up0";
/// What a container has in the place of a tap, and the name of its other end, in the container.
pub const INNER: &str = "ct0";
const INTERFACE: &str = "eth0";
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// What passes between tap and host: anything else ends in the namespace, where nothing listens.
/// (Linux, include/uapi/linux/if_ether.h: ETH_P_IP, ETH_P_ARP, ETH_P_IPV6.)
const FROM_TENANT: [u16; 3] = [0x0800, 0x0806, 0x86dd];
const TO_TENANT: [u16; 1] = [ETH_P_ALL];
const ETH_P_ALL: u16 = 0x0003;
/// An ingress queue discipline has this handle, and its filters have it as parent (tc(8)).
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};

/// Whether the host's end is there.
pub fn exists(name: &str) -> bool {
    if_nametoindex(name).is_ok()
}

/// Makes the pair, the host's end without anything yet.
///
/// # Errors
/// The kernel's own.
pub fn make(record: &Record, namespace: &File) -> Result<()> {
    let pair = veth(&record.link, UP, namespace, record.mtu, None);
    Netlink::open()
        .and_then(|kernel| kernel.ask(pair, NEW))
        .map_err(failed(format!("make the link {} (veth)", record.link)))
}

/// Makes the pair between the tenant's namespace, which this thread is in, and its container's.
///
/// # Errors
/// The kernel's own.
pub fn make_inner(record: &Record, container: &File) -> Result<()> {
    // That of a run before may not be gone yet: a namespace is cleaned up some time after its last process.
    remove(INNER)?;
    let mac = record.mac().0.to_vec();
    let pair = veth(INNER, INTERFACE, container, record.mtu, Some(mac));
    Netlink::open()
        .and_then(|kernel| kernel.ask(pair, NEW))
        .map_err(failed("make the container's link (veth)"))
}

/// A pair: `name` here, `peer` in `namespace`, which may be given a MAC.
fn veth(
    name: &str,
    peer: &str,
    namespace: &File,
    mtu: u32,
    mac: Option<Vec<u8>>,
) -> RouteNetlinkMessage {
    let link = |name: &str| {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
        ];
        message
    };
    let mut there = link(peer);
    let place = LinkAttribute::NetNsFd(namespace.as_raw_fd());
    there.attributes.push(place);
    there.attributes.extend(mac.map(LinkAttribute::Address));
    let mut here = link(name);
    here.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(there))),
    ]));
    RouteNetlinkMessage::NewLink(here)
}

/// Connects what is at the tenant's end, its tap or its container's pair, with the link, in the namespace.
///
/// # Errors
/// The kernel lacks veth, tc or its actions.
pub fn connect(inner: &str, mtu: u32) -> Result<()> {
    let kernel = Netlink::open().map_err(failed("speak to the kernel"))?;
    let up = index(UP)?;
    let tap = index(inner)?;
    // What a container's run before left there. That leads to a link that is gone since.
    forget(&kernel, ingress(up)).map_err(failed("take back traffic control (sch_ingress)"))?;
    forget(&kernel, root(up)).map_err(failed("take back the network's rate (sch_tbf)"))?;
    for (at, from) in [up, tap].into_iter().enumerate() {
        let (to, protocols) = match at {
            0 => (tap, TO_TENANT.as_slice()),
            _ => (up, FROM_TENANT.as_slice()),
        };
        kernel
            .ask(RouteNetlinkMessage::NewQueueDiscipline(ingress(from)), NEW)
            .map_err(failed("set up traffic control (sch_ingress)"))?;
        for (order, &protocol) in (1..).zip(protocols) {
            kernel
                .ask(redirect(from, to, protocol, order), NEW)
                .map_err(failed("redirect frames (cls_matchall, act_mirred)"))?;
        }
    }
    for link in [up, tap] {
        switch_on(&kernel, link, Some(mtu)).map_err(failed("switch the tenant's link on"))?;
    }
    Ok(())
}

/// Lets frames leave by each end in a container's namespace at this rate, in bytes a second: those of the tenant by [`UP`], those
/// for it by [`INNER`]. Without a rate, nothing holds them up. This thread is in the namespace.
///
/// # Errors
/// The kernel lacks sch_tbf, or the container is not there.
pub fn limit(mtu: u32, rate: Option<Bytes>) -> Result<()> {
    let kernel = Netlink::open().map_err(failed("speak to the kernel"))?;
    for link in [UP, INNER] {
        let mut message = root(index(link)?);
        let done = match rate {
            Some(rate) => {
                message.attributes = token_bucket(rate.0, mtu);
                let replace = NLM_F_CREATE | NLM_F_REPLACE;
                kernel.ask(RouteNetlinkMessage::NewQueueDiscipline(message), replace)
            }
            None => forget(&kernel, message),
        };
        // It was found above: what is missing is the discipline (Linux, net/sched/sch_api.c, qdisc_create).
        let done = done.map_err(|error| match error.raw_os_error() {
            Some(nix::libc::ENOENT) => io::Error::other("this kernel has no sch_tbf"),
            _ => error,
        });
        done.map_err(failed(format!("limit what leaves by {link}")))?;
    }
    Ok(())
}

/// Gives the host's end its addresses and the way to the tenant, and switches it on.
///
/// # Errors
/// The kernel's own.
pub fn address(record: &Record) -> Result<()> {
    let mut pairs = vec![(
        IpAddr::V4(record.pool.gateway()),
        IpAddr::V4(record.address),
    )];
    if let Some(v6) = record.v6 {
        pairs.push((IpAddr::V6(v6.gateway), IpAddr::V6(v6.address)));
    }
    let host = index(&record.link)?;
    let done = || -> io::Result<()> {
        let kernel = Netlink::open()?;
        for (gateway, _) in &pairs {
            kernel.ask(address_message(host, *gateway), NEW)?;
        }
        switch_on(&kernel, host, None)?;
        for (gateway, tenant) in pairs {
            kernel.ask(neighbour_message(host, tenant, record), NEW)?;
            kernel.ask(route_message(host, tenant, gateway), NEW)?;
        }
        Ok(())
    };
    done().map_err(failed(format!("set up the link {}", record.link)))
}

/// Removes the pair; nothing there is fine.
///
/// # Errors
/// No permission.
pub fn remove(name: &str) -> Result<()> {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    let removed =
        Netlink::open().and_then(|kernel| kernel.ask(RouteNetlinkMessage::DelLink(message), 0));
    match removed {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
        other => other.map_err(failed(format!("remove the link {name}"))),
    }
}

/// A way that the machine knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub network: IpAddr,
    pub prefix: u8,
    /// Index of the link it leads over.
    pub link: Option<u32>,
    /// To one receiver, rather than to many or to none.
    pub unicast: bool,
}

impl Route {
    pub fn is_default(&self) -> bool {
        self.prefix == 0 && self.unicast
    }

    /// Whether it leads to a tenant.
    pub fn is_tenants(&self) -> bool {
        self.link_name()
            .is_some_and(|name| name.starts_with(LINK_PREFIX))
    }

    pub fn link_name(&self) -> Option<String> {
        let name = nix::net::if_::if_indextoname(self.link?).ok()?;
        name.into_string().ok()
    }
}

/// All routes of a family, of every table.
///
/// # Errors
/// The kernel's own.
pub fn routes(family: AddressFamily) -> Result<Vec<Route>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    let listed = Netlink::open()
        .and_then(|kernel| kernel.list(RouteNetlinkMessage::GetRoute(message)))
        .map_err(failed("list the routes of this machine"))?;
    let any = match family {
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    Ok(listed
        .into_iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        })
        .map(|route| read_route(&route, any))
        .collect())
}

fn read_route(message: &RouteMessage, any: IpAddr) -> Route {
    let mut route = Route {
        network: any,
        prefix: message.header.destination_prefix_length,
        link: None,
        unicast: message.header.kind == RouteType::Unicast,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.network = IpAddr::V4(*address);
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                route.network = IpAddr::V6(*address);
            }
            RouteAttribute::Oif(link) => route.link = Some(*link),
            _ => {}
        }
    }
    route
}

fn index(name: &str) -> Result<u32> {
    if_nametoindex(name).map_err(|errno| failed(format!("find the link {name}"))(errno.into()))
}

fn switch_on(kernel: &Netlink, link: u32, mtu: Option<u32>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = link;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.extend(mtu.map(LinkAttribute::Mtu));
    kernel.ask(RouteNetlinkMessage::SetLink(message), 0)
}

fn family(address: IpAddr) -> (AddressFamily, u8) {
    match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    }
}

fn address_message(link: u32, address: IpAddr) -> RouteNetlinkMessage {
    let mut message = AddressMessage::default();
    (message.header.family, message.header.prefix_len) = family(address);
    message.header.index = link;
    // Nobody else is on the link who could have it. An IPv6 address that the kernel is yet to look for elsewhere is none that
    // the route, which comes next, may name as its source (Linux, net/ipv6/route.c: EINVAL); when it has looked is chance.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    RouteNetlinkMessage::NewAddress(message)
}

/// The tenant's MAC, for good: it is never asked for, so nobody can answer wrongly.
fn neighbour_message(link: u32, tenant: IpAddr, record: &Record) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(tenant).0;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match tenant {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }),
        NeighbourAttribute::LinkLayerAddress(record.mac().0.to_vec()),
    ];
    RouteNetlinkMessage::NewNeighbour(message)
}

fn route_message(link: u32, tenant: IpAddr, gateway: IpAddr) -> RouteNetlinkMessage {
    let address = |address| match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    };
    let mut message = RouteMessage::default();
    (
        message.header.address_family,
        message.header.destination_prefix_length,
    ) = family(tenant);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(address(tenant)),
        RouteAttribute::PrefSource(address(gateway)),
        RouteAttribute::Oif(link),
    ];
    RouteNetlinkMessage::NewRoute(message)
}

/// A queue discipline that lets `rate` bytes a second pass, and those of one second at once, as a monitor does. But a frame
/// that is larger than a full bucket would never pass: there is room for the largest. (Linux, net/sched/sch_tbf.c and
/// include/uapi/linux/pkt_sched.h, struct tc_tbf_qopt.)
fn token_bucket(rate: u64, mtu: u32) -> Vec<TcAttribute> {
    /// Options: parameters, rate and size of the bucket in bytes.
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_RATE64: u16 = 4;
    const TCA_TBF_BURST: u16 = 6;
    const TC_LINKLAYER_ETHERNET: u8 = 1;
    const ETHERNET_HEADER: u32 = 14;
    /// What may wait, in bytes: of a quarter of a second, at least two of the largest frames before they are segmented, and not
    /// so much that small ones take the host's memory.
    const QUEUE: std::ops::RangeInclusive<u32> = 128 << 10..=1 << 20;
    let short = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
    let burst = short(rate).max(mtu + ETHERNET_HEADER);
    let queue = short(rate / 4).clamp(*QUEUE.start(), *QUEUE.end());
    // struct tc_ratespec twice, of which the second, a peak's, is not in use; then limit, buffer and mtu, of which the last two
    // are for those who do not say the size in bytes.
    let mut parameters = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
    parameters.extend(short(rate).to_ne_bytes());
    parameters.extend([0; 12]);
    parameters.extend(queue.to_ne_bytes());
    parameters.extend([0; 8]);
    let options = [
        (TCA_TBF_PARMS, parameters),
        (TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()),
        (TCA_TBF_BURST, burst.to_ne_bytes().to_vec()),
    ];
    let options = options.map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)));
    vec![
        TcAttribute::Kind("tbf".to_owned()),
        TcAttribute::Options(options.to_vec()),
    ]
}

fn traffic(link: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = link.cast_signed();
    message
}

/// Removes a queue discipline with its filters; none is fine.
fn forget(kernel: &Netlink, message: TcMessage) -> io::Result<()> {
    match kernel.ask(RouteNetlinkMessage::DelQueueDiscipline(message), 0) {
        // There is none (Linux, net/sched/sch_api.c, tc_get_qdisc).
        Err(error)
            if [nix::libc::EINVAL, nix::libc::ENOENT]
                .contains(&error.raw_os_error().unwrap_or_default()) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// The place where frames that arrive on the link are looked at.
fn ingress(link: u32) -> TcMessage {
    let mut message = traffic(link);
    message.header.parent = TcHandle::INGRESS;
    message.header.handle = INGRESS;
    message.attributes = vec![TcAttribute::Kind("ingress".to_owned())];
    message
}

/// The place where frames that leave by the link wait.
fn root(link: u32) -> TcMessage {
    let mut message = traffic(link);
    message.header.parent = TcHandle::ROOT;
    message
}

/// Frames of `protocol` that arrive on `from` leave by `to`.
fn redirect(from: u32, to: u32, protocol: u16, order: u16) -> RouteNetlinkMessage {
    let mut mirror = TcMirror::default();
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    let mut message = traffic(from);
    message.header.parent = INGRESS;
    // Priority above, protocol in network order below (Linux, net/sched/cls_api.c, tc_new_tfilter).
    message.header.info = u32::from(order) << 16 | u32::from(protocol.to_be());
    message.attributes = vec![
        TcAttribute::Kind(TcFilterMatchAll::KIND.to_owned()),
        TcAttribute::Options(vec![TcOption::MatchAll(TcFilterMatchAllOption::Action(
            vec![action],
        ))]),
    ];
    RouteNetlinkMessage::NewTrafficFilter(message)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Nla;

    use super::*;

    /// What the kernel reads: the rate of the parameters, what may wait, the rate of 64 bits, and the bucket's size.
    fn read(rate: u64) -> (u32, u32, u64, u32) {
        let all = token_bucket(rate, 1500);
        let [TcAttribute::Kind(kind), TcAttribute::Options(options)] = &all[..] else {
            panic!("{all:?}");
        };
        assert_eq!(kind, "tbf");
        let values: Vec<(u16, Vec<u8>)> = options
            .iter()
            .map(|one| {
                let mut value = vec![0; one.value_len()];
                one.emit_value(&mut value);
                (one.kind(), value)
            })
            .collect();
        let [(1, parameters), (4, wide), (6, burst)] = &values[..] else {
            panic!("{values:?}");
        };
        // sizeof(struct tc_tbf_qopt)
        assert_eq!(parameters.len(), 36);
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        (
            word(&parameters[8..12]),
            word(&parameters[24..28]),
            u64::from_ne_bytes(wide[..].try_into().unwrap()),
            word(burst),
        )
    }

    #[test]
    fn a_bucket_holds_one_second_and_at_least_one_frame() {
        assert_eq!(read(1 << 20), (1 << 20, 256 << 10, 1 << 20, 1 << 20));
        assert_eq!(read(1), (1, 128 << 10, 1, 1514));
        let wide = 10_u64 << 30;
        assert_eq!(read(wide), (u32::MAX, 1 << 20, wide, u32::MAX));
    }
}
