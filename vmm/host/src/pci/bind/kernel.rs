//! What is asked of the kernel: a seam, so that tests can play it.

use std::io::Write;
use std::path::Path;
use std::process::Command;

/// A kernel that drivers are changed in.
pub trait Kernel {
    /// Writes to a file of sysfs, in one write(2).
    ///
    /// # Errors
    /// What the kernel said.
    fn write(&self, path: &Path, text: &str) -> std::io::Result<()>;

    /// Loads a module.
    ///
    /// # Errors
    /// Why it is not loaded, in words.
    fn load(&self, module: &str) -> Result<(), String>;
}

/// The kernel that runs.
#[derive(Debug, Clone, Copy)]
pub struct Running;

impl Kernel for Running {
    fn write(&self, path: &Path, text: &str) -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
        file.write_all(text.as_bytes())
    }

    fn load(&self, module: &str) -> Result<(), String> {
        let program = crate::doctor::find_program("modprobe")
            .ok_or("modprobe is not installed (package kmod)")?;
        let ran = Command::new(program)
            .args(["--", module])
            .output()
            .map_err(|error| format!("modprobe: {error}"))?;
        if ran.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ran.stderr).trim().to_owned();
        Err(if said.is_empty() {
            ran.status.to_string()
        } else {
            said
        })
    }
}
