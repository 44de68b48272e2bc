//! Binding functions to vfio-pci, and giving them back to the driver that they had.
//!
//! A function is told to take no driver but vfio-pci (`driver_override`), unbound from the one that it has, and offered
//! to drivers anew (Documentation/ABI/testing/sysfs-bus-pci). What it had is kept in the state directory.

mod former;
mod kernel;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

use fief_api::PciAddress;

use super::function::Function;
use super::holders;
use super::obstacle::Obstacle;
use super::{NoFunction, Pci, Places, VFIO_PCI, Vfio};

use former::Former;
pub use kernel::{Kernel, Running};

/// Why functions could not be bound, or given back. What had been changed is as it was, unless the message says so.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(transparent)]
    NoFunction(#[from] NoFunction),
    /// It cannot be given to a tenant.
    #[error("{address} ({name}) stays with the host: {}", told(obstacles))]
    Refused {
        address: PciAddress,
        name: String,
        obstacles: Vec<Obstacle>,
    },
    /// A machine has it.
    #[error("{address} is open in {}; stop that first, as the kernel waits for it", processes.join(", "))]
    InUse {
        address: PciAddress,
        processes: Vec<String>,
    },
    /// The driver of VFIO's that it has is not the one that is bound here.
    #[error(
        "{address} has the driver {driver}, which speaks VFIO itself: there is nothing to give back; to take that driver from \
         it, use its vendor's tools"
    )]
    OwnDriver { address: PciAddress, driver: String },
    /// modprobe failed.
    #[error(
        "cannot load vfio-pci: {0}; see `dmesg`, and install the kernel's modules if they are missing"
    )]
    Load(String),
    /// A file of sysfs could not be written.
    #[error("cannot {what} of {address}: {source}; {}", advice(source))]
    Write {
        address: PciAddress,
        what: &'static str,
        source: io::Error,
    },
    /// All was written, to no avail.
    #[error(
        "{address} did not get the driver {wanted}, it has {has}; see `dmesg`, and whether it is claimed by vfio-pci.ids= on the \
         kernel's command line or in /etc/modprobe.d"
    )]
    NotTaken {
        address: PciAddress,
        wanted: String,
        has: String,
    },
    /// Two at once would take functions from each other.
    #[error("another command is changing drivers of devices; run this again when it has ended")]
    Busy,
    /// The state directory cannot be locked.
    #[error("cannot lock {path}: {source}; is the state directory writable?")]
    Lock { path: String, source: io::Error },
    /// The state directory could not be used.
    #[error(
        "cannot keep which driver {address} had in {path}: {source}; is the state directory writable?"
    )]
    State {
        address: PciAddress,
        path: String,
        source: io::Error,
    },
}

fn told(obstacles: &[Obstacle]) -> String {
    let all: Vec<_> = obstacles.iter().map(ToString::to_string).collect();
    all.join("; and ")
}

fn advice(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied {
        "run it as root"
    } else {
        "see `dmesg` for what the kernel says"
    }
}

/// What became of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub address: PciAddress,
    /// The driver that it had; none if it had none.
    pub from: Option<String>,
    /// The driver that it has. The same as `from`: there was nothing to do.
    pub to: Option<String>,
}

/// Binds functions, and those of their devices, to vfio-pci. Those that a driver of VFIO's has stay as they are.
///
/// # Errors
/// See [`BindError`]; then all have the drivers that they had.
pub fn bind(
    kernel: &dyn Kernel,
    places: &Places,
    state: &Path,
    addresses: &[PciAddress],
) -> Result<Vec<Change>, BindError> {
    let _alone = former::lock(state)?;
    let pci = Pci::read(places);
    let all = with_devices(&pci, addresses)?;
    for function in &all {
        refuse(&pci, function, &all)?;
    }
    if pci.vfio() != Vfio::Loaded && all.iter().any(|function| !function.is_bound()) {
        kernel.load(VFIO_PCI).map_err(BindError::Load)?;
    }
    let mut changes = Vec::new();
    for function in &all {
        match bind_one(kernel, places, state, function) {
            Ok(change) => changes.push(change),
            Err(error) => {
                // The first error is the one to tell.
                for done in changes
                    .iter()
                    .rev()
                    .filter(|change| change.from != change.to)
                {
                    let _ = give_back(kernel, places, state, done.address);
                }
                return Err(error);
            }
        }
    }
    Ok(changes)
}

/// The functions at these addresses and what is bound with each, in order, each once.
fn with_devices<'a>(
    pci: &'a Pci,
    addresses: &[PciAddress],
) -> Result<Vec<&'a Function>, NoFunction> {
    let mut all = Vec::new();
    for &address in addresses {
        all.extend(pci.device(pci.function(address)?));
    }
    all.sort_by_key(|function| function.address);
    all.dedup_by_key(|function| function.address);
    Ok(all)
}

/// What is in the way, but for members of its group that are bound together with it.
fn refuse(pci: &Pci, function: &Function, together: &[&Function]) -> Result<(), BindError> {
    if function.is_bound() {
        return Ok(());
    }
    let mut obstacles = pci.obstacles(function);
    obstacles.retain(|obstacle| match obstacle {
        Obstacle::GroupShared { mates, .. } => mates
            .iter()
            .any(|mate| together.iter().all(|one| one.address != mate.address)),
        _ => true,
    });
    if obstacles.is_empty() {
        return Ok(());
    }
    Err(BindError::Refused {
        address: function.address,
        name: function.name(),
        obstacles,
    })
}

fn bind_one(
    kernel: &dyn Kernel,
    places: &Places,
    state: &Path,
    function: &Function,
) -> Result<Change, BindError> {
    let address = function.address;
    let change = |to: &Option<String>| Change {
        address,
        from: function.driver.clone(),
        to: to.clone(),
    };
    if function.is_bound() {
        return Ok(change(&function.driver));
    }
    Former {
        driver: function.driver.clone(),
    }
    .write(state, address)?;
    match take(kernel, places, function) {
        Ok(()) => Ok(change(&Some(VFIO_PCI.to_owned()))),
        Err(error) => {
            let _ = give_back(kernel, places, state, address);
            Err(error)
        }
    }
}

fn take(kernel: &dyn Kernel, places: &Places, function: &Function) -> Result<(), BindError> {
    let address = function.address;
    let steps = Steps {
        kernel,
        places,
        address,
    };
    steps.set_override(VFIO_PCI)?;
    if function.driver.is_some() {
        steps.unbind()?;
    }
    steps.probe()?;
    steps.expect(Some(VFIO_PCI))
}

/// Gives functions, and those of their devices, back to the drivers that they had before [`bind`]. Those that are not
/// bound stay as they are.
///
/// # Errors
/// See [`BindError`].
pub fn unbind(
    kernel: &dyn Kernel,
    places: &Places,
    state: &Path,
    addresses: &[PciAddress],
) -> Result<Vec<Change>, BindError> {
    let _alone = former::lock(state)?;
    let pci = Pci::read(places);
    let all = with_devices(&pci, addresses)?;
    for function in &all {
        if let Some(driver) = &function.driver
            && function.is_bound()
            && driver != VFIO_PCI
        {
            return Err(BindError::OwnDriver {
                address: function.address,
                driver: driver.clone(),
            });
        }
        let processes = pci.holders().of(&holders::vfio(function));
        if function.is_bound() && !processes.is_empty() {
            return Err(BindError::InUse {
                address: function.address,
                processes,
            });
        }
    }
    let mut changes = Vec::new();
    for function in &all {
        let to = if function.is_bound() {
            give_back(kernel, places, state, function.address)?
        } else {
            function.driver.clone()
        };
        changes.push(Change {
            address: function.address,
            from: function.driver.clone(),
            to,
        });
    }
    Ok(changes)
}

/// The driver that it then has.
fn give_back(
    kernel: &dyn Kernel,
    places: &Places,
    state: &Path,
    address: PciAddress,
) -> Result<Option<String>, BindError> {
    let former = Former::read(state, address).and_then(|former| former.driver);
    let steps = Steps {
        kernel,
        places,
        address,
    };
    // Several drivers may want it, vfio-pci among them: only the former is to have it.
    steps.set_override(former.as_deref().unwrap_or(""))?;
    let returned = steps.give_to(former.as_deref());
    steps.set_override("")?;
    returned?;
    Former::forget(state, address)?;
    Ok(steps.driver())
}

/// What is done to one function.
struct Steps<'a> {
    kernel: &'a dyn Kernel,
    places: &'a Places,
    address: PciAddress,
}

impl Steps<'_> {
    fn write(&self, path: &Path, text: &str, what: &'static str) -> Result<(), BindError> {
        self.kernel
            .write(path, text)
            .map_err(|source| BindError::Write {
                address: self.address,
                what,
                source,
            })
    }

    /// The only driver that may have it; any if empty. (An empty line takes the override away.)
    fn set_override(&self, driver: &str) -> Result<(), BindError> {
        let path = self.directory().join("driver_override");
        self.write(&path, &format!("{driver}\n"), "set the driver_override")
    }

    fn unbind(&self) -> Result<(), BindError> {
        let path = self.directory().join("driver/unbind");
        self.write(&path, &self.address.to_string(), "unbind the driver")
    }

    fn probe(&self) -> Result<(), BindError> {
        let path = self.places.sys.join("bus/pci/drivers_probe");
        self.write(&path, &self.address.to_string(), "probe drivers")
    }

    fn bind_to(&self, driver: &str) -> Result<(), BindError> {
        let path = self.places.driver(driver).join("bind");
        self.write(
            &path,
            &self.address.to_string(),
            "restore the former driver",
        )
    }

    /// Takes it from vfio-pci, and offers it to other drivers; to the one that is wanted, if any is.
    fn give_to(&self, wanted: Option<&str>) -> Result<(), BindError> {
        if self.driver().as_deref() == Some(VFIO_PCI) {
            self.unbind()?;
        }
        if self.driver().is_none() {
            self.probe()?;
        }
        let Some(wanted) = wanted else {
            return match self.driver().as_deref() {
                Some(VFIO_PCI) => self.expect(None),
                _ => Ok(()),
            };
        };
        if self.driver().is_none() {
            // Its module may have been unloaded meanwhile; it is what it is bound to that counts.
            let _ = self.kernel.load(wanted);
            self.bind_to(wanted)?;
        }
        self.expect(Some(wanted))
    }

    fn driver(&self) -> Option<String> {
        super::places::target(&self.directory().join("driver"))
    }

    fn expect(&self, wanted: Option<&str>) -> Result<(), BindError> {
        let has = self.driver();
        if has.as_deref() == wanted {
            return Ok(());
        }
        let none = || "none".to_owned();
        Err(BindError::NotTaken {
            address: self.address,
            wanted: wanted.map_or_else(none, str::to_owned),
            has: has.unwrap_or_else(none),
        })
    }

    fn directory(&self) -> std::path::PathBuf {
        self.places.functions().join(self.address.to_string())
    }
}
