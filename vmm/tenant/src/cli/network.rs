//! Flags about a tenant's network.

use std::net::IpAddr;

use fief_host::emulated::ports::Port;

use super::ports::port;
use crate::network::Publish;
use crate::spec::{Net, Spec};

/// See the module.
#[derive(Debug, clap::Args)]
pub struct NetArgs {
    /// Network: nat (the way out by address translation, apart from this machine and from neighbours), or none
    #[arg(long, value_enum, default_value_t = Net::Nat)]
    net: Net,
    /// Lead a port of this machine to one of the tenant; IP is 127.0.0.1 unless given, 0.0.0.0 for all
    #[arg(long, short = 'p', value_name = "[IP:]HOST:TENANT[/udp]")]
    publish: Vec<Publish>,
    /// Name server of the tenant [this machine's own]
    #[arg(long, value_name = "ADDR")]
    dns: Vec<IpAddr>,
}

impl NetArgs {
    /// Ports of this machine that are published.
    pub fn ports(&self) -> Vec<Port> {
        self.publish.iter().map(port).collect()
    }

    pub fn apply(&self, spec: &mut Spec) {
        spec.net = self.net;
        spec.publish.clone_from(&self.publish);
        spec.dns.clone_from(&self.dns);
    }
}
