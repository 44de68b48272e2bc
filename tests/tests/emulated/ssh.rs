//! Logging in by ssh: from the world through a published port, and through `fief exec`, which needs no network at all.

use std::fs;

use fief_tests::waiting::until;
use fief_tests::{Said, in_host, run};

use super::backend::Backend;
use super::{Tenant, network};

/// How ssh gets to a tenant's sshd: what it runs in, and its last words.
struct Way {
    within: &'static str,
    to: String,
}

/// From the world, to a port of the host's.
fn from_outside(port: u16) -> Way {
    network::world();
    Way {
        within: "ip netns exec outside",
        to: format!("-p {port} {}", network::HOST),
    }
}

/// Without a network: this end of it is `fief exec`.
fn through_exec(tenant: &str) -> Way {
    let inside = "exec 3<>/dev/tcp/127.0.0.1/22; cat <&3 & exec cat >&3";
    Way {
        within: "",
        to: format!("-o \"ProxyCommand=fief exec -i {tenant} -- bash -c '{inside}'\" {tenant}"),
    }
}

/// Key pairs, made in the emulated host, where ssh runs.
struct Keys {
    directory: String,
    public: tempfile::NamedTempFile,
}

impl Keys {
    /// `right` and `wrong`; the former's public half is a file of this side too.
    #[track_caller]
    fn make(test: &str) -> Self {
        let directory = format!("/tmp/ssh-{test}");
        let make = |name: &str| format!("ssh-keygen -q -t ed25519 -N '' -f {directory}/{name}");
        let script = format!(
            "rm -rf {directory} && mkdir {directory} && {} && {} && cat {directory}/right.pub",
            make("right"),
            make("wrong")
        );
        let public = tempfile::NamedTempFile::new().unwrap();
        fs::write(public.path(), in_host(&script).ok() + "\n").unwrap();
        Self { directory, public }
    }

    /// One attempt to log in with a key: `login`, and how to get there. The host key of the first attempt that gets one
    /// is that of all others.
    fn ssh(&self, key: &str, login: &str, way: &Way, command: &str) -> Said {
        let directory = &self.directory;
        let Way { within, to } = way;
        in_host(&format!(
            "{within} ssh -F none -i {directory}/{key} -l {login} -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none \
             -o StrictHostKeyChecking=accept-new -o UserKnownHostsFile={directory}/known {to} '{command}'"
        ))
    }

    /// Waits until sshd answers, then logs in. What is tried before has no sshd at the other end: nobody is refused.
    #[track_caller]
    fn log_in(&self, login: &str, way: &Way, command: &str) -> String {
        until("sshd answers", || {
            let said = self.ssh("right", login, way, command);
            let refused = said.err.contains("Permission denied") || said.err.contains("changed");
            assert!(!refused, "{said:?}");
            (said.code != Some(255)).then(|| said.ok())
        })
    }

    /// The other key is refused, at the very moment when the right one is not.
    #[track_caller]
    fn wrong_is_refused(&self, login: &str, way: &Way) {
        let error = self.ssh("wrong", login, way, "true").fails(255);
        assert!(error.contains("Permission denied (publickey"), "{error}");
        self.ssh("right", login, way, "true").ok();
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        in_host(&format!("rm -rf {}", self.directory));
    }
}

const WHO: &str = "id -un; sudo id -un; hostname; echo $HOME";

#[track_caller]
fn a_key_opens_the_account(backend: Backend, name: &str, options: &str, way: &Way, reboot: &str) {
    let keys = Keys::make(name);
    let key = keys.public.path().display().to_string();
    let tenant = backend.start(name, &format!("--ssh-key {key} {options}"));
    let who = format!("{name}\nroot\n{name}\n/home/{name}");
    assert_eq!(keys.log_in(name, way, WHO), who);
    keys.wrong_is_refused(name, way);
    // Nobody else was let in by it.
    let error = keys.ssh("right", "user", way, "true").fails(255);
    assert!(error.contains("Permission denied (publickey"), "{error}");
    // The same host keys and files after a restart, and after a reboot that no fief waits for.
    let ours = tenant.sh(&format!(
        "echo '# mine' >> /home/{name}/.ssh/authorized_keys; sync"
    ));
    ours.ok();
    run(&format!("stop {name}")).ok();
    run(&format!("start {name}")).ok();
    assert_eq!(keys.log_in(name, way, WHO), who);
    let boot = tenant.boot();
    tenant.sh(reboot);
    until("it is up again", || {
        tenant.boot().filter(|again| Some(again) != boot.as_ref())
    });
    assert_eq!(keys.log_in(name, way, WHO), who);
    let kept =
        format!("grep -c mine /home/{name}/.ssh/authorized_keys; grep -c {name}: /etc/passwd");
    assert_eq!(tenant.sh(&kept).ok(), "1\n1");
}

both!(a_key_opens_the_tenants_account_from_the_world_and_no_other);
fn a_key_opens_the_tenants_account_from_the_world_and_no_other(backend: Backend) {
    let options = "-p 0.0.0.0:4122:22";
    a_key_opens_the_account(
        backend,
        "opened",
        options,
        &from_outside(4122),
        "kill -INT 1",
    );
}

both!(a_key_opens_the_account_from_the_world_where_systemd_is_the_init);
fn a_key_opens_the_account_from_the_world_where_systemd_is_the_init(backend: Backend) {
    let options = "--init image -p 0.0.0.0:4123:22";
    a_key_opens_the_account(
        backend,
        "unit-opened",
        options,
        &from_outside(4123),
        "reboot",
    );
}

both!(every_tenant_has_host_keys_of_its_own_and_one_without_a_key_to_it_has_none);
fn every_tenant_has_host_keys_of_its_own_and_one_without_a_key_to_it_has_none(backend: Backend) {
    let keys = Keys::make("hosts");
    let key = keys.public.path().display();
    let name = "a.tenant-with.a-name-that-is-no-unix-account";
    // Neither needs a network.
    let options = format!("--net none --ssh-key {key}");
    let first = backend.start("keyed", &options);
    let second = backend.start(name, &options);
    let without = backend.start("keyless", "");
    let inspected = super::json(&run(&format!("inspect {name}")).ok());
    let login = inspected["login"].as_str().unwrap();
    assert_eq!(login, "a-tenant-with-a-name-that-is-no-");
    assert_eq!(keys.log_in(login, &through_exec(name), "id -un"), login);
    keys.log_in("keyed", &through_exec("keyed"), "true");
    let fingerprint = "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub | cut -d ' ' -f 2";
    assert_ne!(first.sh(fingerprint).ok(), second.sh(fingerprint).ok());
    let modes = first.sh("stat -c %a:%U /etc/ssh/ssh_host_*_key").ok();
    assert_eq!(modes, "600:root\n600:root");
    let sshd = "pidof sshd >/dev/null && echo runs; ls /etc/ssh/ | grep -c ssh_host";
    assert_eq!(first.sh(sshd).out.trim(), "runs\n4");
    assert_eq!(without.sh(sshd).out.trim(), "0");
    assert!(super::json(&run("inspect keyless").ok())["login"].is_null());
}

both!(a_tenant_outlives_its_sshd_and_no_zombie_stays);
fn a_tenant_outlives_its_sshd_and_no_zombie_stays(backend: Backend) {
    let keys = Keys::make("outlived");
    let key = keys.public.path().display();
    let tenant = backend.start("outlived", &format!("--net none --ssh-key {key}"));
    keys.log_in("outlived", &through_exec("outlived"), "true");
    tenant.sh("pkill -x sshd").ok();
    until("sshd is gone, and reaped", || {
        (tenant.sh("pgrep -x sshd").code == Some(1)).then_some(())
    });
    assert_eq!(tenant.sh("ps -eo stat= | grep -c ^Z").out.trim(), "0");
}

both!(a_tenant_without_an_sshd_says_so_and_runs);
fn a_tenant_without_an_sshd_says_so_and_runs(backend: Backend) {
    let keys = Keys::make("without");
    let key = keys.public.path().display();
    let tenant = Tenant::named("without");
    let options = format!("{backend} --kernel micro --image busybox --net none --ssh-key {key}");
    let said = run(&format!("run -d --name without {options}"));
    assert!(
        said.err.contains("warning") && said.err.contains("openssh-server"),
        "{said:?}"
    );
    said.ok();
    let id = fief_tests::run_with("exec --user without without -- sh -c", "id -u; pwd");
    assert_eq!(id.ok(), "1001\n/home/without");
    drop(tenant);
}

both!(keys_are_given_and_taken_at_once_and_while_the_tenant_is_stopped);
fn keys_are_given_and_taken_at_once_and_while_the_tenant_is_stopped(backend: Backend) {
    let keys = Keys::make("rekeyed");
    let right = keys.public.path().display();
    // Not a file of this side: the key itself.
    let wrong = in_host(&format!("cat {}/wrong.pub", keys.directory)).ok();
    let tenant = backend.start("rekeyed", "--net none");
    let way = through_exec("rekeyed");
    let logs_in = |key| keys.ssh(key, "rekeyed", &way, "id -un");
    let is_refused = |key| {
        let error = logs_in(key).fails(255);
        assert!(error.contains("Permission denied (publickey"), "{error}");
    };
    let set = |flag: &str, key: &str| {
        let said = fief_tests::run_with(&format!("set rekeyed {flag}"), key);
        assert_eq!(said.err, "");
        said.ok();
    };
    // The first makes the account and starts sshd.
    set("--ssh-key", &right.to_string());
    assert_eq!(keys.log_in("rekeyed", &way, "id -un"), "rekeyed");
    keys.wrong_is_refused("rekeyed", &way);
    set("--ssh-key", &wrong);
    assert_eq!(logs_in("wrong").ok(), "rekeyed");
    set("--remove-ssh-key", &right.to_string());
    is_refused("right");
    logs_in("wrong").ok();

    run("stop rekeyed").ok();
    let said = fief_tests::run_with(
        &format!("set rekeyed --ssh-key {right} --remove-ssh-key"),
        &wrong,
    );
    said.ok();
    run("start rekeyed").ok();
    keys.log_in("rekeyed", &way, "true");
    keys.wrong_is_refused("rekeyed", &way);

    // The last one, too; and what is not there is told.
    set("--remove-ssh-key", &right.to_string());
    is_refused("right");
    let error = run(&format!("set rekeyed --remove-ssh-key {right}")).fails(125);
    assert!(
        error.contains("no such key") && error.contains("fief inspect"),
        "{error}"
    );
    set("--ssh-key", &right.to_string());
    logs_in("right").ok();
    drop(tenant);
}

#[test]
fn a_private_key_is_refused_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("id");
    // Its first line is enough to know it by.
    fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n").unwrap();
    let path = path.display().to_string();
    for (key, words) in [
        (path.as_str(), ["private key", ".pub"]),
        ("/no/such/key.pub", ["/no/such/key.pub", "No such file"]),
        ("/etc/hostname", ["/etc/hostname", "no public key"]),
    ] {
        let error = run(&format!("create careless --ssh-key {key}")).fails(125);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(!error.contains("c2Vj"), "{error}");
        assert!(!run("ps -a").ok().contains("careless"));
    }
}
