//! The little that has to be known of a function before VFIO is asked: its group, and who else is in it.

use std::path::{Path, PathBuf};

use super::error::{KernelError, Member};

/// Where the kernel shows PCI functions.
pub const SYSFS: &str = "/sys/bus/pci/devices";

/// Drivers that do not keep a group from being given away (drivers/vfio/vfio_main.c): of bridges, which do no DMA of their
/// own, and stubs.
const HARMLESS: [&str; 2] = ["pcieport", "pci-stub"];

/// The number of the IOMMU group of the function at `address`.
///
/// # Errors
/// There is no such function, or it is in no group.
pub fn group_of(devices: &Path, address: &str) -> Result<u32, KernelError> {
    check(address)?;
    let directory = devices.join(address);
    if !directory.exists() {
        return Err(KernelError::Absent(address.to_owned()));
    }
    let number = std::fs::read_link(directory.join("iommu_group"))
        .ok()
        .and_then(|link| link.file_name()?.to_str()?.parse().ok());
    number.ok_or_else(|| KernelError::NoGroup(address.to_owned()))
}

/// Members of the group of `address` that have drivers which keep it from being given away.
pub fn hindering(devices: &Path, address: &str) -> Vec<Member> {
    let directory = devices.join(address).join("iommu_group/devices");
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut members: Vec<Member> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|member| {
            let path: PathBuf = devices.join(&member);
            let driver = std::fs::read_link(path.join("driver")).ok()?;
            let driver = driver.file_name()?.to_str()?.to_owned();
            let for_vfio = path.join("vfio-dev").exists() || driver.starts_with("vfio");
            let hinders = !for_vfio && !HARMLESS.contains(&driver.as_str());
            hinders.then_some(Member {
                address: member,
                driver,
            })
        })
        .collect();
    members.sort_by(|a, b| a.address.cmp(&b.address));
    members
}

/// `dddd:bb:dd.f`: nothing that could be another path.
fn check(address: &str) -> Result<(), KernelError> {
    let parts = || {
        let (domain, rest) = address.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let hex = |text: &str, length: std::ops::RangeInclusive<usize>| {
            length.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
        };
        let fine =
            hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2) && hex(function, 1..=1);
        fine.then_some(())
    };
    parts().ok_or_else(|| KernelError::Address(address.chars().take(64).collect()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_group_is_found_with_those_who_hinder_it() {
        let root = tempfile::tempdir().unwrap();
        let devices = root.path().join("devices");
        let group = root.path().join("groups/7");
        std::fs::create_dir_all(group.join("devices")).unwrap();
        for (address, driver) in [
            ("0000:01:00.0", Some("vfio-pci")),
            ("0000:01:00.1", Some("snd_hda_intel")),
            ("0000:00:01.0", Some("pcieport")),
            ("0000:01:00.2", None),
            ("0000:01:00.3", Some("nvidia")),
        ] {
            let directory = devices.join(address);
            std::fs::create_dir_all(&directory).unwrap();
            symlink(&group, directory.join("iommu_group")).unwrap();
            symlink(&directory, group.join("devices").join(address)).unwrap();
            if let Some(driver) = driver {
                symlink(
                    Path::new("../drivers").join(driver),
                    directory.join("driver"),
                )
                .unwrap();
            }
        }
        // A virtual GPU stays with its vendor's driver.
        std::fs::create_dir(devices.join("0000:01:00.3/vfio-dev")).unwrap();
        assert_eq!(group_of(&devices, "0000:01:00.0").unwrap(), 7);
        let members = hindering(&devices, "0000:01:00.0");
        let expected = Member {
            address: "0000:01:00.1".into(),
            driver: "snd_hda_intel".into(),
        };
        assert_eq!(members, [expected]);
        let error = KernelError::NotViable {
            group: 7,
            others: members,
        };
        assert!(
            error
                .to_string()
                .contains("snd_hda_intel has 0000:01:00.1 too"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_address_is_no_path_either() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("0000:02:00.0")).unwrap();
        for bad in [
            "",
            "..",
            "../x",
            "0000:01:00",
            "0000:01:00.0/..",
            "g000:01:00.0",
            "0:1:0.0",
        ] {
            let error = group_of(root.path(), bad).unwrap_err();
            assert!(matches!(error, KernelError::Address(_)), "{bad}: {error}");
        }
        let absent = group_of(root.path(), "0000:01:00.0").unwrap_err();
        assert!(matches!(absent, KernelError::Absent(_)));
        let none = group_of(root.path(), "0000:02:00.0").unwrap_err();
        assert!(matches!(none, KernelError::NoGroup(_)));
    }
}
