//! What functions are called: `pci.ids` of the machine, which its package manager keeps up to date. Without it they are
//! called by number and class. (The crate `pci-ids` fetches over the network while it is built; and a list that came with
//! fief would not know the GPUs that came after it.)

use super::places::{Places, lines};

/// Base classes in plain words (PCI Code and ID Assignment 1.15 §1).
const CLASSES: [(u32, &str); 16] = [
    (0x01, "storage controller"),
    (0x02, "network controller"),
    (0x03, "display controller"),
    (0x04, "multimedia controller"),
    (0x05, "memory controller"),
    (0x06, "bridge"),
    (0x07, "communication controller"),
    (0x08, "system peripheral"),
    (0x09, "input device"),
    (0x0b, "processor"),
    (0x0c, "serial bus controller"),
    (0x0d, "wireless controller"),
    (0x0f, "satellite controller"),
    (0x10, "encryption controller"),
    (0x11, "signal processor"),
    (0x12, "accelerator"),
];

/// Names of vendors and devices.
#[derive(Debug, Default)]
pub(super) struct Names {
    text: String,
}

impl Names {
    pub(super) fn read(places: &Places) -> Self {
        let text = places.ids.iter().map(|path| lines(path));
        Self {
            text: text
                .into_iter()
                .find(|text| !text.is_empty())
                .unwrap_or_default(),
        }
    }

    /// Vendor and device, as far as they are known.
    pub(super) fn find(&self, vendor: u16, device: u16) -> (Option<String>, Option<String>) {
        let vendor = format!("{vendor:04x}");
        let device = format!("{device:04x}");
        let mut all = self.text.lines();
        let Some(name) = all.find_map(|line| entry(line, &vendor)) else {
            return (None, None);
        };
        // Until the next vendor; two tabs are subsystems.
        let mut own = all.take_while(|line| line.starts_with('\t') || is_empty(line));
        let device = own.find_map(|line| entry(line.strip_prefix('\t')?, &device));
        (Some(name), device)
    }
}

fn is_empty(line: &str) -> bool {
    line.is_empty() || line.starts_with('#')
}

/// The name in `ID  NAME`. Control characters have no place on a terminal.
fn entry(line: &str, id: &str) -> Option<String> {
    let name = line.strip_prefix(id)?.strip_prefix("  ")?.trim();
    Some(
        name.chars()
            .filter(|character| !character.is_control())
            .collect(),
    )
}

/// A class (24 bits: base class, subclass, programming interface) in plain words.
pub(super) fn class(class: u32) -> &'static str {
    let base = class >> 16;
    CLASSES
        .iter()
        .find(|(number, _)| *number == base)
        .map_or("device", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names {
            text: "# comment\n\n10de  NVIDIA Corporation\n\t1eb8  TU104GL [Tesla T4]\n\t\t10de 12a2  Tesla T4 board\n\
                   # between\n\n\t2204  GA102 \u{1b}[31m[GeForce RTX 3090]\n1af4  Red Hat, Inc.\n\t1041  Virtio network device\n\
                   C 03  Display controller\n\t00  VGA\n"
                .to_owned(),
        }
    }

    #[test]
    fn vendors_and_devices_are_found_by_number() {
        let some = |text: &str| Some(text.to_owned());
        let nvidia = some("NVIDIA Corporation");
        let names = names();
        assert_eq!(
            names.find(0x10de, 0x1eb8),
            (nvidia.clone(), some("TU104GL [Tesla T4]"))
        );
        assert_eq!(
            names.find(0x10de, 0x2204),
            (nvidia.clone(), some("GA102 [31m[GeForce RTX 3090]"))
        );
        // Another vendor's number, and a subsystem's.
        assert_eq!(names.find(0x10de, 0x1041), (nvidia.clone(), None));
        assert_eq!(names.find(0x10de, 0x10de), (nvidia, None));
        assert_eq!(names.find(0x1234, 0x1eb8), (None, None));
        assert_eq!(Names::default().find(0x10de, 0x1eb8), (None, None));
    }

    #[test]
    fn classes_have_plain_words() {
        assert_eq!(class(0x03_80_00), "display controller");
        assert_eq!(class(0xff_00_00), "device");
    }
}
