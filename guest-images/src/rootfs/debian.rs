//! Debian by mmdebstrap, from the sources that this machine's apt has.

use std::fs::{self, File};

use super::{Error, pack};
use crate::progress::{Progress, Unit};
use crate::space;
use crate::store::{Properties, Work};
use crate::tool::Tool;
use crate::tree::{Content, IMAGE_TIME, Meta, Tree, tarball};

/// Raise it when this file changes what is in an image.
const REVISION: u32 = 5;

const MMDEBSTRAP: Tool = Tool {
    program: "mmdebstrap",
    package: "mmdebstrap",
};
const APT_GET: Tool = Tool {
    program: "apt-get",
    package: "apt",
};

/// On top of Debian's smallest set (essential packages and apt).
const TENANT_PACKAGES: &[&str] = &[
    "sudo",
    "ca-certificates",
    "iproute2",
    "iputils-ping",
    "procps",
    "kmod",
    "less",
    "nftables",
    "netbase",
    // Whatever the tenant is called, sudo finds its name.
    "libnss-myhostname",
    "systemd-sysv",
    "dbus",
    "openssh-server",
];
/// On top of a tenant's: what `fief bench` runs in each.
const BENCH_PACKAGES: &[&str] = &["fio", "gcc", "iperf3", "libc6-dev", "make", "sysbench"];
/// What the emulated host runs: networks of tenants and tests of them, containers, disks, modules.
const HOST_PACKAGES: &[&str] = &[
    "ca-certificates",
    "crun",
    "e2fsprogs",
    "iperf3",
    "iproute2",
    "iputils-ping",
    "kmod",
    "nftables",
    "openssh-client",
    "procps",
    "runc",
    "strace",
    "sudo",
    "tcpdump",
    "busybox-static",
];

/// Package files, the root before packing, the tar and the image.
const SPACE: u64 = 1500 << 20;
/// Account files are small.
const TEXT_MAX: u64 = 1 << 20;
const USER: &str = "user";
const USER_ID: u32 = 1000;
/// Subordinate ids for containers inside a tenant, as useradd gives them.
const SUBIDS: &str = "user:100000:65536\n";
const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

pub fn tenant_request() -> String {
    format!(
        "{REVISION} {TENANT_PACKAGES:?} {}",
        release().unwrap_or_default()
    )
}

pub fn bench_request() -> String {
    format!("{} {BENCH_PACKAGES:?}", tenant_request())
}

pub fn host_request() -> String {
    format!(
        "{REVISION} {HOST_PACKAGES:?} {}",
        release().unwrap_or_default()
    )
}

pub fn make_tenant(work: &Work, progress: &dyn Progress) -> Result<Properties, Error> {
    make_tenant_of(TENANT_PACKAGES, work, progress)
}

pub fn make_bench(work: &Work, progress: &dyn Progress) -> Result<Properties, Error> {
    make_tenant_of(&[TENANT_PACKAGES, BENCH_PACKAGES].concat(), work, progress)
}

fn make_tenant_of(
    packages: &[&str],
    work: &Work,
    progress: &dyn Progress,
) -> Result<Properties, Error> {
    let mut tree = bootstrap(work, packages, progress)?;
    settle(&mut tree)?;
    settle_systemd(&mut tree)?;
    settle_sshd(&mut tree)?;
    add_user(&mut tree)?;
    pack(work, &mut tree, Default::default(), progress)
}

pub fn make_host(work: &Work, progress: &dyn Progress) -> Result<Properties, Error> {
    let mut tree = bootstrap(work, HOST_PACKAGES, progress)?;
    settle(&mut tree)?;
    pack(work, &mut tree, Default::default(), progress)
}

fn bootstrap(work: &Work, packages: &[&str], progress: &dyn Progress) -> Result<Tree, Error> {
    space::require(&work.scratch, "a Debian image", SPACE)?;
    let release = release().ok_or(Error::NoRelease)?;
    let sources = sources(&release)?;
    let tar = work.scratch.join("root.tar");
    progress.begin("installing Debian", Unit::Items, None);
    let mut lines = 0;
    MMDEBSTRAP.run(
        |command| {
            command
                .env("SOURCE_DATE_EPOCH", IMAGE_TIME.to_string())
                .env("TMPDIR", &work.scratch);
            command.args(["--variant=minbase", "--mode=auto", "--format=tar"]);
            command.arg(format!("--include={}", packages.join(",")));
            // Manuals and translations are a third of the size.
            for path in [
                "/usr/share/man/*",
                "/usr/share/locale/*",
                "/usr/share/doc/*",
                "/usr/share/info/*",
            ] {
                command.arg(format!("--dpkgopt=path-exclude={path}"));
            }
            command.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
            command.arg("--dpkgopt=path-include=/usr/share/locale/locale.alias");
            command.arg(&release).arg(&tar).args(&sources);
        },
        |_| {
            lines += 1;
            progress.done(lines);
        },
    )?;
    progress.end();
    let file = File::open(&tar).map_err(|source| Error::Io {
        what: "opening",
        path: tar.clone(),
        source,
    })?;
    Ok(tarball::read(file, &tar)?.0)
}

/// The running release's code name.
fn release() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// The lines of a sources.list with what this machine's apt has for its own release: the release itself, updates,
/// security. Sources of other makers stay out.
fn sources(release: &str) -> Result<Vec<String>, Error> {
    let format = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)";
    let text = APT_GET.output(["indextargets", "--format", format, "Created-By: Packages"])?;
    let lines = parse_sources(&text, release);
    if lines.is_empty() {
        Err(Error::NoSources(release.to_owned()))
    } else {
        Ok(lines)
    }
}

fn parse_sources(text: &str, release: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let mut fields = line.split('|');
        let (Some(uri), Some(suite), Some(component), Some(origin)) =
            (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let ours = suite == release
            || suite
                .strip_prefix(release)
                .is_some_and(|rest| rest.starts_with('-'));
        // The origin is known once the lists were fetched; until then the field comes back as it was asked for.
        let known = origin.is_empty() || origin.starts_with("$(") || origin == "Debian";
        let entry = format!("deb {uri} {suite} {component}");
        if ours && known && !lines.contains(&entry) {
            lines.push(entry);
        }
    }
    lines
}

/// What every Debian image has, whatever the machine that made it.
fn settle(tree: &mut Tree) -> Result<(), Error> {
    tree.file("etc/hostname", 0o644, *b"localhost\n")?;
    tree.file("etc/hosts", 0o644, HOSTS.as_bytes())?;
    tree.file("etc/default/locale", 0o644, *b"LANG=C.UTF-8\n")?;
    // Empty: systemd makes a new one at the first boot, and no two tenants share one.
    tree.file("etc/machine-id", 0o444, *b"")?;
    tree.remove("var/lib/dbus/machine-id")?;
    tree.file("etc/resolv.conf", 0o644, *b"")?;
    tree.directory("lib/modules", 0o755)
        .or_else(|_| tree.directory("usr/lib/modules", 0o755))?;
    for path in [
        "var/log/apt",
        "var/log/dpkg.log",
        "var/log/alternatives.log",
        "var/cache/ldconfig/aux-cache",
    ] {
        tree.remove(path)?;
    }
    tree.directory("var/log/apt", 0o755)?;
    Ok(())
}

/// systemd as init of a tenant: no login prompts, which nobody sees and which wait for a device that only udev would
/// announce; and no graphics.
fn settle_systemd(tree: &mut Tree) -> Result<(), Error> {
    tree.symlink(
        "etc/systemd/system-generators/systemd-getty-generator",
        "/dev/null",
    )?;
    tree.remove("etc/systemd/system/getty.target.wants")?;
    tree.symlink(
        "etc/systemd/system/default.target",
        "/lib/systemd/system/multi-user.target",
    )?;
    Ok(())
}

/// sshd of a tenant: every tenant makes host keys of its own when it first needs them, and its unit waits for them.
fn settle_sshd(tree: &mut Tree) -> Result<(), Error> {
    for kind in ["rsa", "dsa", "ecdsa", "ed25519"] {
        for suffix in ["", ".pub"] {
            tree.remove(&format!("etc/ssh/ssh_host_{kind}_key{suffix}"))?;
        }
    }
    tree.file(
        "etc/systemd/system/ssh.service.d/fief.conf",
        0o644,
        *b"# A tenant that nobody gave a key to has no host keys either, and needs no sshd.\n\
           [Unit]\nConditionPathExistsGlob=/etc/ssh/ssh_host_*_key\n",
    )?;
    Ok(())
}

/// The user who may become root without a password.
fn add_user(tree: &mut Tree) -> Result<(), Error> {
    let home = format!("/home/{USER}");
    append(
        tree,
        "etc/passwd",
        &format!("{USER}:x:{USER_ID}:{USER_ID}:{USER}:{home}:/bin/bash\n"),
    )?;
    append(tree, "etc/group", &format!("{USER}:x:{USER_ID}:\n"))?;
    // `*`: no password opens it. 0 days since 1970 would mean "must change".
    append(
        tree,
        "etc/shadow",
        &format!("{USER}:*:20000:0:99999:7:::\n"),
    )?;
    append(tree, "etc/gshadow", &format!("{USER}:!::\n"))?;
    for path in ["etc/subuid", "etc/subgid"] {
        append(tree, path, SUBIDS)?;
    }
    tree.file(
        "etc/sudoers.d/user",
        0o440,
        format!("{USER} ALL=(ALL:ALL) NOPASSWD: ALL\n").into_bytes(),
    )?;
    let own = |mode| Meta {
        uid: USER_ID,
        gid: USER_ID,
        ..Meta::root(mode)
    };
    tree.insert(
        home.as_bytes(),
        own(0o755),
        Content::Directory(Default::default()),
    )?;
    let skeleton: Vec<(Vec<u8>, Content)> = match tree.index("etc/skel") {
        Some(index) => tree
            .children(index)
            .map(|(name, child)| (name.to_vec(), tree.nodes()[child].content.clone()))
            .collect(),
        None => Vec::new(),
    };
    for (name, content) in skeleton {
        if matches!(content, Content::File(_)) {
            tree.insert(
                &[home.as_bytes(), b"/", &name].concat(),
                own(0o644),
                content,
            )?;
        }
    }
    Ok(())
}

/// Adds to a text file and keeps its owner and mode.
fn append(tree: &mut Tree, path: &str, text: &str) -> Result<(), Error> {
    let mut bytes = tree.contents(path, TEXT_MAX).unwrap_or_default();
    bytes.extend(text.as_bytes());
    let meta = tree
        .find(path)
        .map_or_else(|| Meta::root(0o644), |node| node.meta.clone());
    tree.insert(
        path.as_bytes(),
        meta,
        Content::File(crate::tree::Data::Bytes(bytes.into())),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_releases_own_sources_are_taken_each_once() {
        let text = "\
http://mirror.example/debian/|bookworm|main|Debian
http://mirror.example/debian/|bookworm|main|Debian
http://mirror.example/debian/|bookworm-updates|main|Debian
http://sec.example/|bookworm-security|main|$(ORIGIN)
http://other.example/|bookworm|main|Somebody
http://other.example/|bookwormish|main|Debian
http://other.example/|trixie|main|Debian
nonsense
";
        assert_eq!(
            parse_sources(text, "bookworm"),
            [
                "deb http://mirror.example/debian/ bookworm main",
                "deb http://mirror.example/debian/ bookworm-updates main",
                "deb http://sec.example/ bookworm-security main",
            ]
        );
    }

    #[test]
    fn no_host_key_is_in_an_image_and_sshd_waits_for_one() {
        let mut tree = Tree::default();
        let keys = ["rsa_key", "ecdsa_key.pub", "ed25519_key"];
        let path = |key| format!("etc/ssh/ssh_host_{key}");
        for key in keys {
            tree.file(&path(key), 0o600, *b"secret").unwrap();
        }
        tree.file("etc/ssh/sshd_config", 0o644, *b"UsePAM yes\n")
            .unwrap();
        settle_sshd(&mut tree).unwrap();
        assert!(keys.iter().all(|key| tree.find(&path(key)).is_none()));
        assert!(tree.find("etc/ssh/sshd_config").is_some());
        let unit = tree
            .contents("etc/systemd/system/ssh.service.d/fief.conf", TEXT_MAX)
            .unwrap();
        assert!(String::from_utf8(unit).unwrap().contains("\n[Unit]\n"));
    }

    #[test]
    fn the_user_is_in_every_account_file_and_owns_a_home_with_the_skeleton() {
        let mut tree = Tree::default();
        tree.file("etc/passwd", 0o644, *b"root:x:0:0::/root:/bin/bash\n")
            .unwrap();
        tree.insert(
            b"etc/shadow",
            Meta {
                gid: 42,
                ..Meta::root(0o640)
            },
            Content::File(crate::tree::Data::Bytes((*b"root:*:1:::::\n").into())),
        )
        .unwrap();
        tree.file("etc/skel/.bashrc", 0o644, *b"# rc").unwrap();
        add_user(&mut tree).unwrap();
        let text = |path: &str| String::from_utf8(tree.contents(path, TEXT_MAX).unwrap()).unwrap();
        assert_eq!(
            text("etc/passwd"),
            "root:x:0:0::/root:/bin/bash\nuser:x:1000:1000:user:/home/user:/bin/bash\n"
        );
        assert!(text("etc/shadow").starts_with("root:*:1:::::\nuser:*:"));
        let shadow = &tree.find("etc/shadow").unwrap().meta;
        assert_eq!((shadow.mode, shadow.gid), (0o640, 42));
        assert_eq!(tree.find("etc/sudoers.d/user").unwrap().meta.mode, 0o440);
        let rc = tree.find("home/user/.bashrc").unwrap();
        assert_eq!((rc.meta.uid, rc.meta.gid), (1000, 1000));
        assert_eq!(text("home/user/.bashrc"), "# rc");
    }
}
