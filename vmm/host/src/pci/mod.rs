//! The host's side of PCI passthrough: which functions there are, which of them a tenant can have and why not, and
//! binding them to vfio-pci, which lends them to a monitor.
//!
//! All is read from sysfs and procfs at one moment ([`Pci::read`]). What changes them is in [`bind`].

mod bar;
pub mod bind;
mod function;
mod holders;
mod names;
mod obstacle;
mod places;
#[cfg(test)]
mod tests;
mod usage;

use std::cell::OnceCell;
use std::collections::BTreeMap;

use fief_api::PciAddress;
use serde::Serialize;

pub use bar::{Bar, BarKind};
pub use function::{Function, Kind};
pub use obstacle::{Mate, Obstacle};
pub use places::Places;

use holders::Holders;
use names::Names;
use places::{entries, lines, text};

/// The driver that lends functions to user space.
pub const VFIO_PCI: &str = "vfio-pci";
/// What a driverless function may be parked at without making its group unusable (drivers/pci/pci-stub.c).
const PCI_STUB: &str = "pci-stub";

/// No such function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no PCI function {0} on this machine; `fief gpu list --all` shows those there are"
)]
pub struct NoFunction(PciAddress);

/// Whether a function can be given to a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Passable {
    /// As it is now.
    Ready,
    /// Once it, or its group, is bound.
    AfterBinding,
    No,
}

/// Whether this machine's kernel has vfio-pci.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Vfio {
    Loaded,
    /// `modprobe vfio-pci` loads it.
    Loadable,
    Missing,
}

/// The PCI functions of this machine at one moment.
#[derive(Debug)]
pub struct Pci {
    places: Places,
    functions: BTreeMap<PciAddress, Function>,
    /// Read when it is first asked for: it takes a look at every process and disk.
    holders: OnceCell<Holders>,
    /// The IOMMU checks which interrupts devices send, or the administrator does without.
    interrupts_are_safe: bool,
    vfio: Vfio,
}

impl Pci {
    /// Looks at the machine. What cannot be read is not there: a machine without PCI has no functions.
    pub fn read(places: &Places) -> Self {
        let names = Names::read(places);
        let functions = entries(&places.functions())
            .iter()
            .filter_map(|directory| Function::read(directory, &places.dev, &names))
            .map(|function| (function.address, function))
            .collect();
        Self {
            functions,
            holders: OnceCell::new(),
            interrupts_are_safe: interrupts_are_safe(places),
            vfio: vfio(places),
            places: places.clone(),
        }
    }

    fn holders(&self) -> &Holders {
        self.holders.get_or_init(|| Holders::read(&self.places))
    }

    /// All functions, in the order of their addresses.
    pub fn functions(&self) -> impl Iterator<Item = &Function> {
        self.functions.values()
    }

    /// The function at an address.
    ///
    /// # Errors
    /// [`NoFunction`].
    pub fn function(&self, address: PciAddress) -> Result<&Function, NoFunction> {
        self.functions.get(&address).ok_or(NoFunction(address))
    }

    /// Whether any function is in an IOMMU group.
    pub fn has_iommu(&self) -> bool {
        self.functions().any(|function| function.group.is_some())
    }

    /// Whether a device cannot send interrupts that are not its own, or the administrator chose to do without.
    pub fn interrupts_are_safe(&self) -> bool {
        self.interrupts_are_safe
    }

    /// Whether there is vfio-pci.
    pub fn vfio(&self) -> Vfio {
        self.vfio
    }

    /// The others of a function's IOMMU group: what no IOMMU keeps apart from it.
    pub fn mates<'a>(&'a self, of: &'a Function) -> impl Iterator<Item = &'a Function> {
        self.functions().filter(move |function| {
            of.group.is_some() && function.group == of.group && function.address != of.address
        })
    }

    /// What is bound with a function: the functions of its device that are in its group. (Those that an IOMMU keeps
    /// apart, such as the other port of a network card and SR-IOV's, are devices of their own.)
    pub fn device<'a>(&'a self, of: &'a Function) -> impl Iterator<Item = &'a Function> {
        self.functions().filter(move |function| {
            function.address == of.address
                || (function.address.is_beside(of.address)
                    && of.group.is_some()
                    && function.group == of.group
                    && function.kind != Kind::Bridge)
        })
    }

    /// Whether a tenant can have it.
    pub fn passable(&self, function: &Function) -> Passable {
        let obstacles = self.obstacles(function);
        if !obstacles.iter().all(Obstacle::is_cured_by_binding) {
            Passable::No
        } else if function.is_bound() && obstacles.is_empty() {
            Passable::Ready
        } else {
            Passable::AfterBinding
        }
    }

    /// All that is in the way of giving it to a tenant, but that it is not bound yet.
    pub fn obstacles(&self, function: &Function) -> Vec<Obstacle> {
        let mut all = self.machine_obstacles(function);
        if function.kind == Kind::Bridge {
            all.push(Obstacle::Bridge);
            return all;
        }
        // What a driver of VFIO's has, the host does not use any more, but a machine may.
        if function.is_bound() {
            let processes = self.holders().of(&holders::vfio(function));
            if !processes.is_empty() {
                all.push(Obstacle::Open { processes });
            }
        } else {
            all.extend(usage::of(function, &self.places, self.holders()));
        }
        all.extend(self.group_obstacle(function));
        all
    }

    /// What of the machine is in the way.
    fn machine_obstacles(&self, function: &Function) -> Vec<Obstacle> {
        let mut all = Vec::new();
        if function.group.is_none() {
            all.push(Obstacle::NoIommu);
        } else if !self.interrupts_are_safe {
            all.push(Obstacle::NoInterruptRemapping);
        }
        if self.vfio == Vfio::Missing && !function.is_bound() {
            all.push(Obstacle::NoVfio);
        }
        all
    }

    /// Others of the group that a driver of the host has. Bridges to PCI, what has no driver, and what is parked do not
    /// count: the kernel takes such a group as unused (`iommu_group_claim_dma_owner`).
    fn group_obstacle(&self, function: &Function) -> Option<Obstacle> {
        let device: Vec<_> = self.device(function).map(|one| one.address).collect();
        // Functions of one device are bound together, so those are in nobody's way.
        let mates: Vec<Mate> = self
            .mates(function)
            .filter(|mate| !device.contains(&mate.address) || function.is_bound())
            .filter_map(hindering)
            .collect();
        if mates.is_empty() {
            return None;
        }
        let mut together: Vec<_> = mates.iter().map(|mate| mate.address).collect();
        together.push(function.address);
        together.sort();
        Some(Obstacle::GroupShared {
            group: function.group?,
            mates,
            together,
        })
    }
}

/// A member of a group that makes it unusable for VFIO.
fn hindering(mate: &Function) -> Option<Mate> {
    let driver = mate.driver.clone()?;
    let bridge = mate.header_type.is_some_and(|header| header != 0);
    let harmless = mate.is_bound() || driver == PCI_STUB || bridge;
    (!harmless).then(|| Mate {
        address: mate.address,
        name: mate.name(),
        driver,
    })
}

/// Names of interrupt controllers begin with `IR-` where the IOMMU checks what comes to them, Intel's and AMD's.
fn interrupts_are_safe(places: &Places) -> bool {
    let remapped = lines(&places.proc.join("interrupts"))
        .split_ascii_whitespace()
        .any(|word| word.starts_with("IR-"));
    let parameter = "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    remapped || text(&places.sys.join(parameter)).as_deref() == Some("Y")
}

fn vfio(places: &Places) -> Vfio {
    if places.driver(VFIO_PCI).exists() {
        return Vfio::Loaded;
    }
    let known = ["modules.dep", "modules.builtin"]
        .iter()
        .any(|file| crate::doctor::is_known(&lines(&places.modules.join(file)), VFIO_PCI));
    if known { Vfio::Loadable } else { Vfio::Missing }
}
