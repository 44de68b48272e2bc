//! Starting, stopping, being there.

use crate::error::Result;
use crate::subject::Subject;

pub fn start(subject: &dyn Subject) -> Result<Vec<f64>> {
    let spent = subject.start()?;
    subject.stop()?;
    Ok(vec![spent.cpu, spent.time])
}

pub fn stop(subject: &dyn Subject) -> Result<Vec<f64>> {
    subject.start()?;
    let spent = subject.stop()?;
    Ok(vec![spent.cpu, spent.time])
}

pub fn memory(subject: &dyn Subject) -> Result<Vec<f64>> {
    Ok(vec![subject.memory()? as f64])
}
