//! Names, accounts and keys, written by a real agent into a directory that stands for a tenant's root.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use common::Agent;
use fief_agent_proto::{Error, Login, Provide};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOPXvqWUhSzi20nt9hklbnyJagezvteBUtraBr9+Tcc8 one";
const OTHER: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOPXvqWUhSzi20nt9hklbnyJagezvteBUtraBr9+Tcc8 two";

/// A root as Debian's image has it.
struct Root {
    dir: tempfile::TempDir,
    agent: Agent,
}

impl Root {
    fn new(files: &[(&str, &str)]) -> Root {
        let dir = tempfile::tempdir().unwrap();
        // The users of the tenant come here too.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let agent = Agent::start_below(dir.path());
        let root = Root { dir, agent };
        for (path, text) in files {
            root.write(path, text);
        }
        root
    }

    fn debian() -> Root {
        let root = Root::new(&[
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:d:/usr/sbin:/usr/sbin/nologin\nuser:x:1000:1000::/home/user:/bin/bash\n",
            ),
            ("etc/shadow", "root:*:1::::::\nuser:*:1::::::\n"),
            ("etc/group", "root:x:0:\nstaff:x:50:\nuser:x:1000:\n"),
            ("etc/gshadow", "root:*::\n"),
            ("etc/subuid", "user:100000:65536\n"),
            ("etc/hosts", "127.0.0.1\tlocalhost\n"),
            ("etc/skel/.bashrc", "# rc\n"),
            ("bin/bash", ""),
        ]);
        for path in ["etc/shadow", "etc/gshadow"] {
            fs::set_permissions(root.path(path), Permissions::from_mode(0o640)).unwrap();
        }
        fs::create_dir_all(root.path("home/user")).unwrap();
        if is_root() {
            std::os::unix::fs::chown(root.path("home/user"), Some(1000), Some(1000)).unwrap();
        }
        root.with_sshd()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[track_caller]
    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[track_caller]
    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.path(path)).unwrap().mode() & 0o7777
    }

    /// An sshd that nobody runs: a program is no init.
    fn with_sshd(self) -> Root {
        self.write("usr/sbin/sshd", "");
        fs::set_permissions(self.path("usr/sbin/sshd"), Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn provide(&self, request: &Provide) -> Result<(), Error> {
        let connection = self.agent.connect();
        let result = connection.provide(request);
        // Whatever came of it, the agent goes on and has no child left.
        connection.ping().unwrap();
        assert_eq!(self.agent.children(), Vec::<String>::new());
        result
    }

    #[track_caller]
    fn refuses(&self, request: &Provide) -> String {
        self.provide(request).unwrap_err().to_string()
    }

    /// Every file with its text, mode and owner.
    fn everything(&self) -> Vec<String> {
        let (mut all, mut open) = (Vec::new(), vec![self.dir.path().to_owned()]);
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let found = path.symlink_metadata().unwrap();
                let text = fs::read_to_string(&path).unwrap_or_default();
                let (mode, ids) = (found.mode(), (found.uid(), found.gid(), found.ino()));
                all.push(format!("{} {mode:o} {ids:?} {text}", path.display()));
                if found.is_dir() {
                    open.push(path);
                }
            }
        }
        all.sort();
        all
    }
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

fn login(name: &str, keys: &[&str]) -> Provide {
    Provide {
        login: Some(Login {
            name: name.into(),
            keys: keys.iter().map(|&key| key.into()).collect(),
        }),
        ..Provide::default()
    }
}

fn names(all: &[(&str, &str)]) -> Provide {
    Provide {
        names: all
            .iter()
            .map(|(address, name)| (address.parse().unwrap(), (*name).to_owned()))
            .collect(),
        login: None,
    }
}

#[test]
fn names_come_and_go_and_leave_the_rest_of_the_file_alone() {
    let root = Root::debian();
    root.provide(&names(&[
        ("10.99.0.3", "bob.fief"),
        ("fd00::3", "bob.fief"),
    ]))
    .unwrap();
    let hosts = root.read("etc/hosts");
    assert!(hosts.starts_with("127.0.0.1\tlocalhost\n"), "{hosts}");
    assert!(
        hosts.contains("\n10.99.0.3\tbob.fief\nfd00::3\tbob.fief\n"),
        "{hosts}"
    );
    root.provide(&names(&[("10.99.0.4", "eve.fief")])).unwrap();
    let hosts = root.read("etc/hosts");
    assert!(
        hosts.contains("eve.fief") && !hosts.contains("bob.fief"),
        "{hosts}"
    );
    root.provide(&Provide::default()).unwrap();
    assert_eq!(root.read("etc/hosts"), "127.0.0.1\tlocalhost\n");
    assert_eq!(root.mode("etc/hosts"), 0o644);
}

#[test]
fn an_account_is_complete_and_its_users_own() {
    let root = Root::debian();
    root.provide(&login("alice", &[KEY, OTHER])).unwrap();
    let last = |path| root.read(path).lines().last().unwrap().to_owned();
    assert_eq!(
        last("etc/passwd"),
        "alice:x:1001:1001:alice:/home/alice:/bin/bash"
    );
    assert_eq!(last("etc/group"), "alice:x:1001:");
    assert_eq!(last("etc/gshadow"), "alice:!::");
    assert_eq!(last("etc/shadow"), "alice:*:20000:0:99999:7:::");
    assert_eq!(root.mode("etc/shadow"), 0o640);
    // Taken already by the image's user.
    assert_eq!(root.read("etc/subuid"), "user:100000:65536\n");
    let keys = root.read("home/alice/.ssh/authorized_keys");
    assert!(keys.contains(&format!("\n{KEY}\n{OTHER}\n")), "{keys}");
    assert_eq!(root.read("home/alice/.bashrc"), "# rc\n");
    for (path, mode) in [
        ("home/alice", 0o755),
        ("home/alice/.ssh", 0o700),
        ("home/alice/.ssh/authorized_keys", 0o600),
        ("etc/sudoers.d", 0o750),
        ("etc/sudoers.d/fief", 0o440),
    ] {
        assert_eq!(root.mode(path), mode, "{path}");
        let found = fs::metadata(root.path(path)).unwrap();
        let wanted = if path.starts_with("home") { 1001 } else { 0 };
        assert!(
            !is_root() || (found.uid(), found.gid()) == (wanted, wanted),
            "{path}"
        );
    }
    assert!(
        root.read("etc/sudoers.d/fief")
            .ends_with("\nalice ALL=(ALL:ALL) NOPASSWD: ALL\n")
    );
}

#[test]
fn a_second_request_changes_nothing_and_a_third_only_the_keys() {
    let root = Root::debian();
    root.provide(&login("alice", &[KEY])).unwrap();
    let before = root.everything();
    root.provide(&login("alice", &[KEY])).unwrap();
    assert_eq!(root.everything(), before);
    let keys = "home/alice/.ssh/authorized_keys";
    fs::write(root.path(keys), format!("# mine\n{}", root.read(keys))).unwrap();
    root.provide(&login("alice", &[OTHER])).unwrap();
    let text = root.read(keys);
    assert!(
        text.starts_with("# mine\n") && text.contains(OTHER) && !text.contains(KEY),
        "{text}"
    );
}

#[test]
fn an_account_that_is_there_is_used_and_one_of_the_systems_is_not() {
    let root = Root::debian();
    let before = root.read("etc/passwd");
    root.provide(&login("user", &[KEY])).unwrap();
    assert_eq!(root.read("etc/passwd"), before);
    assert!(root.read("home/user/.ssh/authorized_keys").contains(KEY));
    let error = root.refuses(&login("daemon", &[KEY]));
    assert!(
        error.contains("'daemon'") && error.contains("nologin"),
        "{error}"
    );
    // A group of that name is no account, and lends its number.
    root.provide(&login("staff", &[KEY])).unwrap();
    assert!(root.read("etc/passwd").contains("\nstaff:x:1001:50:staff:"));
}

#[test]
fn an_image_with_next_to_nothing_gets_an_account_too() {
    let root = Root::new(&[("etc/passwd", "root::0:0:root:/:/bin/sh")]);
    let error = root.refuses(&login("alice", &[KEY]));
    assert!(
        error.contains("no sshd") && error.contains("openssh-server"),
        "{error}"
    );
    let passwd = root.read("etc/passwd");
    assert_eq!(
        passwd,
        "root::0:0:root:/:/bin/sh\nalice:*:1000:1000:alice:/home/alice:/bin/sh\n"
    );
    assert!(!root.path("etc/shadow").exists());
    assert!(root.read("home/alice/.ssh/authorized_keys").contains(KEY));
    root.with_sshd().provide(&login("alice", &[KEY])).unwrap();
}

#[test]
fn what_a_user_planted_in_the_home_reaches_nothing_outside_it() {
    let root = Root::debian();
    root.provide(&login("alice", &[KEY])).unwrap();
    let own = |path: &Path| {
        if is_root() {
            std::os::unix::fs::lchown(path, Some(1001), Some(1001)).unwrap();
        }
    };
    let (ssh, keys) = (
        root.path("home/alice/.ssh"),
        root.path("home/alice/.ssh/authorized_keys"),
    );
    // Links to a file of root's, a pipe that nobody writes, a directory.
    fs::remove_file(&keys).unwrap();
    symlink("../../../etc/shadow", &keys).unwrap();
    own(&keys);
    let shadow = root.read("etc/shadow");
    let error = root.refuses(&login("alice", &[OTHER]));
    assert!(error.contains("authorized_keys"), "{error}");
    fs::remove_file(&keys).unwrap();
    nix::unistd::mkfifo(&keys, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    own(&keys);
    let error = root.refuses(&login("alice", &[OTHER]));
    assert!(error.contains("no regular file"), "{error}");
    fs::remove_dir_all(&ssh).unwrap();
    if is_root() {
        // A directory of root's with a file of the right name; and one of root's in the home itself.
        root.write("etc/ssh/authorized_keys", "root's\n");
        symlink("../../etc/ssh", &ssh).unwrap();
        own(&ssh);
        let error = root.refuses(&login("alice", &[OTHER]));
        assert!(error.contains("Permission denied"), "{error}");
        assert_eq!(root.read("etc/ssh/authorized_keys"), "root's\n");
        fs::remove_file(&ssh).unwrap();
        fs::create_dir(&ssh).unwrap();
        let error = root.refuses(&login("alice", &[OTHER]));
        assert!(error.contains("Permission denied"), "{error}");
        assert_eq!(fs::metadata(&ssh).unwrap().uid(), 0);
        fs::remove_dir(&ssh).unwrap();
    }
    assert_eq!(root.read("etc/shadow"), shadow);
    // Without all that it works.
    root.provide(&login("alice", &[OTHER])).unwrap();
    assert!(root.read("home/alice/.ssh/authorized_keys").contains(OTHER));
}

#[test]
fn a_request_out_of_bounds_changes_nothing() {
    let root = Root::debian();
    let before = root.everything();
    for bad in [
        login("a:b", &[KEY]),
        login("alice", &["ssh-ed25519 x\nroot"]),
        names(&[("10.0.0.1", "a\n10.0.0.2 b")]),
    ] {
        let Err(Error::Remote(_)) = root.provide(&bad) else {
            panic!("{bad:?}")
        };
    }
    assert_eq!(root.everything(), before);
}

#[test]
fn a_program_without_a_tenants_root_gives_nothing() {
    let agent = Agent::start();
    let error = agent
        .connect()
        .provide(&login("alice", &[KEY]))
        .unwrap_err();
    assert!(error.to_string().contains("ordinary program"), "{error}");
}
