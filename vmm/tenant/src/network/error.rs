//! What can go wrong with tenants' networks.

use std::io;
use std::path::PathBuf;

use super::pool::Pool;
use super::publish::Publish;
use crate::store::FileError;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(
        "only root may make a tenant's network (CAP_NET_ADMIN, CAP_SYS_ADMIN); run fief as root, or make the tenant \
         with --net none"
    )]
    Permission,
    #[error(
        "the program nft is missing, which keeps tenants' networks apart; install it with `apt-get install nftables`, \
         or make the tenant with --net none"
    )]
    NoNft,
    /// What nft said.
    #[error("nft refuses fief's rules: {0}; `fief doctor` tells what the kernel lacks")]
    Rules(String),
    #[error("cannot {what}: {source}; `fief doctor` tells what this machine lacks")]
    Kernel { what: String, source: io::Error },
    #[error(
        "all addresses of the pool {0} are taken; remove a tenant, or name a larger pool in {1}"
    )]
    Exhausted(Pool, PathBuf),
    #[error(
        "the pool of tenants' addresses {pool} overlaps with {network}, which this machine has a route to; name another \
         pool in {file}, as {{\"pool\": \"10.98.0.0/16\"}}"
    )]
    Overlap {
        pool: Pool,
        network: String,
        file: PathBuf,
    },
    #[error("the port of --publish {0} is in use on this machine; choose another")]
    PortInUse(Publish),
    #[error("the port of --publish {port} is published by tenant '{tenant}'; choose another")]
    PortTaken { port: Publish, tenant: String },
    #[error("cannot publish {port}: {source}; give an address of this machine")]
    Port { port: Publish, source: io::Error },
    #[error(
        "there is no network for tenant '{0}' (--net none); permission to reach it has no meaning"
    )]
    NoNetwork(String),
    #[error("tenant '{0}' needs no permission to reach itself; name another one with --to")]
    Oneself(String),
    #[error("there is no such grant: {0}; `fief grants` lists those there are")]
    NoGrant(String),
    #[error(transparent)]
    File(#[from] FileError),
}

pub type Result<T> = std::result::Result<T, NetworkError>;

/// For `map_err`: what was tried.
pub fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Kernel {
        what: what.into(),
        source,
    }
}
