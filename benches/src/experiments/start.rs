//! Starting, stopping, being there.

use std::fs;
use std::path::Path;

use crate::error::{Result, on};
use crate::subject::Subject;

/// Its machine has left the guest for KVM so often by then; after a stop it can tell no more.
pub fn start(subject: &dyn Subject) -> Result<Vec<f64>> {
    let spent = subject.start()?;
    let exits = subject.exits()?;
    subject.stop()?;
    Ok(vec![spent.cpu, spent.time, exits as f64])
}

pub fn start_cold(subject: &dyn Subject) -> Result<Vec<f64>> {
    nix::unistd::sync();
    // Pages, and what is known of files (Documentation/admin-guide/sysctl/vm.rst).
    let caches = Path::new("/proc/sys/vm/drop_caches");
    fs::write(caches, "3").map_err(on("write to", caches))?;
    start(subject)
}

pub fn stop(subject: &dyn Subject) -> Result<Vec<f64>> {
    subject.start()?;
    let spent = subject.stop()?;
    Ok(vec![spent.cpu, spent.time])
}

pub fn memory(subject: &dyn Subject) -> Result<Vec<f64>> {
    Ok(vec![subject.memory()? as f64])
}

pub fn crowd(subject: &dyn Subject, size: usize) -> Result<Vec<f64>> {
    let crowd = subject.crowd(size)?;
    let each = size as f64;
    Ok(vec![
        crowd.spent.cpu / each,
        crowd.spent.time,
        crowd.memory / each,
    ])
}
