use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
#[derive(Debug)]
pub struct Runtime {
    path: PathBuf,
}
#[derive(Debug, thiserror::Error)]
#[error("no runtime")]
pub struct RuntimeError;
pub fn find(name: Option<&str>) -> Result<Runtime, RuntimeError> {
    Ok(Runtime {
        path: name.unwrap_or("runc").into(),
    })
}
pub fn reason(text: &str) -> Option<String> {
    (!text.trim().is_empty()).then(|| text.trim().to_owned())
}
impl Runtime {
    pub fn name(&self) -> &str {
        "runc"
    }
    pub fn command(&self, state: &Path, log: &Path) -> Command {
        let mut c = Command::new(&self.path);
        c.arg("--root").arg(state).arg("--log").arg(log);
        c
    }
    pub fn settle_mounts(&self) -> io::Result<()> {
        Ok(())
    }
}
