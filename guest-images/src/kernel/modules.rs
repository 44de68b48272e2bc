//! Kernel modules: which to load, what they depend on, and where they are in the modules image.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What a tenant's kernel needs to reach its root, talk to fief, report its panic and see the power button.
pub const TENANT: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    // What erofs needs of it is asked for by an algorithm's name, which no dependency tells of; built into cloud kernels.
    "crc32c_generic",
    "erofs",
    "ext4",
    "overlay",
    "vmw_vsock_virtio_transport",
    "pvpanic_mmio",
    "button",
    "evdev",
];

/// What a tenant's first command need not wait for: drivers of devices that nobody misses for a moment, if they are there
/// at all. Everything else is loaded on demand from the modules image. The network's driver comes first: where there is a
/// network, commands do wait for it, and for what stands before it.
pub const TENANT_LATER: &[&str] = &[
    "virtio_net",
    "virtio_rng",
    "virtio_console",
    "virtio_balloon",
    "fuse",
];

/// What the emulated host needs: both makers' KVM (the one that does not fit fails to load, which is fine), devices of
/// its own, VFIO, and tenants' networks.
pub const HOST: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "erofs",
    // ext4 takes it for its checksums if it is there first. Elsewhere udev loads it, as the processor has it.
    "crc32c_intel",
    "ext4",
    "overlay",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "virtiofs",
    "loop",
    "nvme",
    "button",
    "kvm",
    "kvm_amd",
    "kvm_intel",
    "tun",
    "veth",
    "sch_ingress",
    "cls_matchall",
    "act_mirred",
    "bridge",
    "br_netfilter",
    "dummy",
    "nf_tables",
    "nf_conntrack",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_reject_inet",
    "nft_meta_bridge",
    "nft_reject_bridge",
    "vfio",
    "vfio_iommu_type1",
    "vfio_pci",
    "vhost_net",
    "vhost_vsock",
    "fuse",
];

/// Largest module that is believed.
const MODULE_MAX: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this kernel has no module `{0}`, neither as a file nor built in")]
    Unknown(String),
    #[error("modules.dep of this kernel makes no sense at `{0}`")]
    Dependencies(String),
    #[error("the module {path} cannot be read")]
    Read { path: String, source: io::Error },
}

/// One module file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// Below `/lib/modules/<release>`, with the compression's suffix.
    pub path: String,
    /// Names of the modules that must be there before it.
    pub depends: Vec<String>,
    /// Where its bytes are in the modules image.
    pub offset: u64,
    pub size: u64,
}

/// All modules of one kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// By name.
    pub modules: BTreeMap<String, Module>,
    pub built_in: BTreeSet<String>,
    /// A kernel made here with everything built in: no module is missing from it.
    pub monolithic: bool,
}

impl Index {
    /// From the texts of `modules.dep` and `modules.builtin`; `place` tells where a file is in the modules image.
    pub fn parse(
        dep: &str,
        builtin: &str,
        place: impl Fn(&str) -> Option<(u64, u64)>,
    ) -> Result<Self, Error> {
        let mut index = Self::default();
        for line in dep.lines().filter(|line| !line.trim().is_empty()) {
            let (path, depends) = line
                .split_once(':')
                .ok_or_else(|| Error::Dependencies(line.to_owned()))?;
            let (offset, size) = place(path).ok_or_else(|| Error::Dependencies(path.to_owned()))?;
            let depends = depends.split_whitespace().map(name_of).collect();
            index.modules.insert(
                name_of(path),
                Module {
                    path: path.to_owned(),
                    depends,
                    offset,
                    size,
                },
            );
        }
        index.built_in = builtin
            .lines()
            .filter(|line| !line.is_empty())
            .map(name_of)
            .collect();
        Ok(index)
    }

    /// The modules to load for `names`, each after those it depends on, none twice.
    pub fn load_order<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<&Module>, Error> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        if self.monolithic {
            return Ok(order);
        }
        for name in names {
            self.visit(&name_of(name.as_ref()), &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit<'a>(
        &'a self,
        name: &str,
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a Module>,
    ) -> Result<(), Error> {
        let Some((name, module)) = self.modules.get_key_value(name) else {
            let known = self.built_in.contains(name);
            return if known {
                Ok(())
            } else {
                Err(Error::Unknown(name.to_owned()))
            };
        };
        // Marked on the way in: a cycle ends here, and a file that has one is loaded in some order.
        if seen.insert(name) {
            for dependency in &module.depends {
                self.visit(dependency, seen, order)?;
            }
            order.push(module);
        }
        Ok(())
    }
}

/// The module's bytes as the kernel wants them: uncompressed.
pub fn read(image: &Path, module: &Module) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read {
        path: module.path.clone(),
        source,
    };
    let size = usize::try_from(module.size.min(MODULE_MAX)).unwrap_or(0);
    let mut packed = vec![0; size];
    File::open(image)
        .and_then(|file| file.read_exact_at(&mut packed, module.offset))
        .map_err(failed)?;
    let mut bytes = Vec::new();
    let suffix = module.path.rsplit('.').next().unwrap_or_default();
    match suffix {
        "xz" => lzma_rs::xz_decompress(&mut &packed[..], &mut bytes)
            .map_err(|e| failed(io::Error::other(e)))?,
        "zst" => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(&packed[..]);
            let decoder = decoder.map_err(|e| failed(io::Error::other(e)))?;
            decoder
                .take(MODULE_MAX)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
        }
        "gz" => {
            flate2::read::GzDecoder::new(&packed[..])
                .take(MODULE_MAX)
                .read_to_end(&mut bytes)
                .map_err(failed)?;
        }
        _ => bytes = packed,
    }
    if bytes.starts_with(b"\x7fELF") {
        Ok(bytes)
    } else {
        Err(failed(io::Error::other("it is no ELF file")))
    }
}

/// The path without the compression's suffix.
pub fn uncompressed_path(path: &str) -> &str {
    [".xz", ".zst", ".gz"]
        .iter()
        .find_map(|suffix| path.strip_suffix(suffix))
        .unwrap_or(path)
}

/// A module's name: that of its file, with `_` for `-`, as the kernel shows it.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let name = uncompressed_path(file);
    name.strip_suffix(".ko").unwrap_or(name).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/net/vsock.ko.xz:
kernel/net/common.ko.xz: kernel/net/vsock.ko.xz
kernel/net/virtio-transport.ko.xz: kernel/net/common.ko.xz kernel/net/vsock.ko.xz
kernel/fs/overlay.ko.xz:
kernel/x/a.ko: kernel/x/b.ko
kernel/x/b.ko: kernel/x/a.ko
";

    fn index() -> Index {
        Index::parse(DEP, "kernel/fs/ext4/ext4.ko\n", |_| Some((0, 1))).unwrap()
    }

    fn order(names: &[&str]) -> Vec<String> {
        index()
            .load_order(names)
            .unwrap()
            .iter()
            .map(|module| name_of(&module.path))
            .collect()
    }

    #[test]
    fn a_module_comes_after_all_it_depends_on_and_none_comes_twice() {
        assert_eq!(
            order(&["virtio-transport", "overlay", "common"]),
            ["vsock", "common", "virtio_transport", "overlay"]
        );
    }

    #[test]
    fn what_is_built_in_needs_no_file_and_what_is_nowhere_is_an_error() {
        assert!(order(&["ext4"]).is_empty());
        let error = index().load_order(&["nonsense"]).unwrap_err().to_string();
        assert!(error.contains("`nonsense`"), "{error}");
    }

    #[test]
    fn a_circle_of_dependencies_ends() {
        assert_eq!(order(&["a"]), ["b", "a"]);
    }

    #[test]
    fn a_line_without_a_colon_or_a_file_that_is_not_there_is_an_error() {
        assert!(Index::parse("kernel/a.ko\n", "", |_| Some((0, 0))).is_err());
        assert!(Index::parse("kernel/a.ko:\n", "", |_| None).is_err());
    }

    #[test]
    fn a_compressed_module_is_read_from_its_place_in_the_image() {
        let elf = [b"\x7fELF".as_slice(), &[3; 5000]].concat();
        let mut packed = Vec::new();
        lzma_rs::xz_compress(&mut &elf[..], &mut packed).unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().write_all_at(&packed, 8192).unwrap();
        let mut module = Module {
            path: "a.ko.xz".into(),
            depends: vec![],
            offset: 8192,
            size: packed.len() as u64,
        };
        assert_eq!(read(image.path(), &module).unwrap(), elf);
        module.size -= 20;
        assert!(read(image.path(), &module).is_err());
    }
}
