//! Who may use fief: root, and a group that root lets in. With real users, in the emulated host.

use fief_tests::in_host;

use super::backend::Backend;

/// Undoes what the test did to the emulated host.
struct Users;

impl Users {
    fn new() -> Self {
        let users = Self;
        users.remove();
        in_host("set -e; groupadd fiefers; useradd -m -G fiefers member; useradd -m stranger").ok();
        users
    }

    fn remove(&self) {
        in_host(
            "userdel -r member; userdel -r stranger; groupdel fiefers; chgrp root /var/lib/fief
             rm -f /etc/sudoers.d/fief; exit 0",
        );
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.remove();
    }
}

both!(root_and_the_group_that_root_lets_in_may_use_fief_and_nobody_else);
fn root_and_the_group_that_root_lets_in_may_use_fief_and_nobody_else(backend: Backend) {
    // Makes the state directory, and the images present inside.
    fief_tests::run("run --rm --name warm-access --kernel micro --image busybox -- true").ok();
    let _users = Users::new();
    let run_as = |user: &str, line: &str| in_host(&format!("cd /; runuser -u {user} -- {line}"));
    let refused = |user: &str, word: &str| {
        let said = run_as(user, "fief ps").fails(125);
        assert!(
            said.lines().count() == 1 && said.contains("root's") && said.contains(word),
            "{said}"
        );
    };
    refused("member", "fief setup --group");
    assert!(
        in_host("fief setup --group no-such-group")
            .fails(125)
            .contains("groupadd no-such-group")
    );
    assert!(
        in_host("fief setup --group root")
            .fails(125)
            .contains("take another")
    );
    let said = run_as("stranger", "fief setup --group fiefers").fails(125);
    assert!(said.contains("root"), "{said}");
    let said = in_host("fief setup --group fiefers").ok();
    assert!(said.contains("as mighty as root"), "{said}");
    let line = format!(
        "fief run --rm {backend} --name members --kernel micro --image busybox -- echo it runs"
    );
    assert_eq!(run_as("member", &line).ok(), "it runs");
    refused("stranger", "fiefers");
    // The files are root's alone for both.
    for user in ["member", "stranger"] {
        assert_ne!(run_as(user, "ls /var/lib/fief").code, Some(0), "{user}");
    }
    let mode = in_host("stat -c %a:%U:%G /var/lib/fief; stat -c %a:%U:%G /etc/sudoers.d/fief");
    assert_eq!(mode.ok(), "700:root:fiefers\n440:root:root");
}
