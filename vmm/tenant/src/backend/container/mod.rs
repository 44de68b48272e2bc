//! Containers: tenants that share the host's kernel, run by an installed OCI runtime.

pub mod bundle;
pub mod ids;
pub mod runtime;
pub mod seccomp;
