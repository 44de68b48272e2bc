//! `fief run` and `fief exec`: what a command sees and what comes back.

use fief_tests::waiting::until;
use fief_tests::{run, run_with};

use super::backend::Backend;

both!(a_one_shot_tenant_passes_on_output_and_exit_code_and_is_gone);
fn a_one_shot_tenant_passes_on_output_and_exit_code_and_is_gone(backend: Backend) {
    assert_eq!(
        run_with(
            &format!("run --rm {backend} --name once --image busybox -- sh -c"),
            "echo out; echo err >&2; exit 7"
        )
        .code,
        Some(7)
    );
    let said = run_with(
        &format!("run --rm {backend} --name once --image busybox -- sh -c"),
        "echo out; echo err >&2",
    );
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "out\n"),
        "{said:?}"
    );
    assert!(said.err.contains("err"), "{said:?}");
    assert!(!run("ps -a").ok().contains("once"));
}

both!(a_tenant_has_its_own_name_and_a_machine_its_own_kernel);
fn a_tenant_has_its_own_name_and_a_machine_its_own_kernel(backend: Backend) {
    let said = run_with(
        &format!("run --rm {backend} --name own --image busybox -- sh -c"),
        "hostname; cat /proc/cmdline",
    )
    .ok();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[0], "own");
    // What the host was booted with is none of a container's business.
    let has_line = lines
        .get(1)
        .is_some_and(|line| line.contains("fief.root=image"));
    assert_eq!(has_line, backend == Backend::Machine, "{said}");
    let same = |file: &str| {
        let host = fief_tests::in_host(&format!("cat {file}")).ok();
        run(&format!(
            "run --rm {backend} --name own --image busybox -- cat {file}"
        ))
        .ok()
            == host
    };
    let boot = "/proc/sys/kernel/random/boot_id";
    assert_eq!(same(boot), backend.either(false, true));
}

both!(commands_that_cannot_run_give_the_codes_docker_gives);
fn commands_that_cannot_run_give_the_codes_docker_gives(backend: Backend) {
    let tenant = backend.start("codes", "--image busybox");
    assert_eq!(run("exec codes -- no-such-command").code, Some(127));
    assert_eq!(run("exec codes -- /etc/passwd").code, Some(126));
    assert_eq!(tenant.sh("kill -TERM $$").code, Some(128 + 15));
    assert_eq!(tenant.sh("exit 42").code, Some(42));
    assert_eq!(run("exec no-such-tenant -- true").code, Some(125));
}

both!(environment_directory_and_user_are_as_asked);
fn environment_directory_and_user_are_as_asked(backend: Backend) {
    let tenant = backend.start("asked", "--image busybox");
    assert_eq!(
        run_with(
            "exec -e COLOUR=blue -w /tmp --user user asked -- sh -c",
            "echo $COLOUR $(pwd) $(id -un)"
        )
        .ok(),
        "blue /tmp user"
    );
    assert_eq!(tenant.sh("id -u").code, Some(0));
}

both!(many_short_commands_leave_nothing_behind);
fn many_short_commands_leave_nothing_behind(backend: Backend) {
    let tenant = backend.start("hundreds", "--image busybox");
    // The agent loads some drivers in a process beside it.
    let alone = "set -- /proc/[0-9]*/comm; test $(grep -lx -e init -e agent \"$@\" 2>/dev/null | wc -l) = 1";
    until("the agent is alone", || {
        (tenant.sh(alone).code == Some(0)).then_some(())
    });
    // Programs (kernel threads, which come and go, have no memory of their own), zombies, and the agent's descriptors.
    // Those that count come after the list, so they are not in it.
    let count = "set -- /proc/[0-9]*/status; grep -l VmRSS \"$@\" 2>/dev/null | wc -l; \
                 grep -l '^State:.Z' \"$@\" 2>/dev/null | wc -l; ls /proc/1/fd | wc -l";
    let before = tenant.sh(count).ok();
    // From inside the emulated host: so many of the outer fief would only measure process starts.
    fief_tests::in_host(
        "for i in $(seq 300); do
             test \"$(fief exec hundreds -- echo $i)\" = $i && continue
             echo \"command $i failed\"; fief inspect hundreds
             fief logs --tail 20 hundreds; fief logs --monitor --tail 20 hundreds
             exit 1
         done",
    )
    .ok();
    assert_eq!(tenant.sh(count).ok(), before);
}

both!(debian_has_apt_and_a_user_who_may_sudo_without_a_password);
fn debian_has_apt_and_a_user_who_may_sudo_without_a_password(backend: Backend) {
    let tenant = backend.start("deb", "--image debian");
    assert_eq!(run("exec --user user deb -- sudo id -un").ok(), "root");
    assert!(tenant.sh("apt-get --version").ok().starts_with("apt "));
    assert!(tenant.sh(". /etc/os-release; echo $ID").ok() == "debian");
}

both!(what_a_tenant_puts_in_place_of_its_account_files_holds_up_nobody);
fn what_a_tenant_puts_in_place_of_its_account_files_holds_up_nobody(backend: Backend) {
    let tenant = backend.start("unread", "--kernel micro --image busybox");
    // The control.
    run("exec --user nobody unread -- true").ok();
    let fifos = |files: &str| format!("for f in {files}; do mv $f $f.was; mkfifo -m 644 $f; done");
    tenant.sh(&fifos("/etc/passwd /etc/group")).ok();
    assert_eq!(run("exec unread -- echo heard").ok(), "heard");
    let error = run("exec --user nobody unread -- true").fails(125);
    assert!(error.contains("no user 'nobody'"), "{error}");
    // A container's runtime reads the accounts, too (docs/containers.md); these are the agent's alone.
    let back = "for f in /etc/passwd /etc/group; do mv $f.was $f; done";
    tenant.sh(back).ok();
    let others = "/etc/hostname /etc/hosts /etc/resolv.conf";
    tenant.sh(&fifos(others)).ok();
    run("restart unread").ok();
    let kinds = tenant.sh(&format!("stat -c %F {others}; hostname")).ok();
    assert_eq!(kinds, "fifo\nfifo\nfifo\nunread");
}
