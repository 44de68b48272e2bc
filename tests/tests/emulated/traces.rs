//! What a command could leave behind: tenants, half-made or half-removed ones, processes, images.

use fief_tests::{in_host, run, state_directory};

use super::backend::Backend;

/// Everything that bears a name beginning with `name`, and everything that bears none: the same before and after a
/// command that fails. What other tests do at the same time bears other names.
pub fn traces(name: &str) -> Vec<String> {
    // The first command of all makes the state directory.
    run("ps").ok();
    // In brackets, so that grep's own argument is none that it looks for.
    let (first, rest) = name.split_at(1);
    let script = format!(
        "cd /var/lib/fief && ls -A | grep -v '^inbox$'
         ls -d tenants/{name}* tenants/.gone-{name}* 2>/dev/null
         grep -l '\"hostname\": *\"{name}' tenants/.new-*/spec.json 2>/dev/null
         ls -A images/tmp
         grep -z -l -x '\\(fief.hostname=\\)\\?[{first}]{rest}.*' /proc/[0-9]*/cmdline 2>/dev/null
         true"
    );
    let mut all: Vec<String> = in_host(&script).ok().lines().map(str::to_owned).collect();
    let images: serde_json::Value = serde_json::from_str(&run("images --json").ok()).unwrap();
    // An initramfs is made whenever a kernel is first used with an agent, and kept.
    let images = images.as_array().unwrap().iter();
    all.extend(
        images
            .filter(|image| image["kind"] != "initramfs")
            .map(|image| image.to_string()),
    );
    for entry in std::fs::read_dir(state_directory().join("images/tmp")).unwrap() {
        all.push(entry.unwrap().path().display().to_string());
    }
    all
}

both!(a_tenant_and_its_processes_are_seen_and_are_gone_when_it_is);
fn a_tenant_and_its_processes_are_seen_and_are_gone_when_it_is(backend: Backend) {
    let before = traces("seen");
    let tenant = backend.start("seen", "--kernel micro --image busybox");
    let during = traces("seen");
    let count = |word: &str| during.iter().filter(|line| line.contains(word)).count();
    assert_eq!(count("tenants/seen"), 1, "{during:?}");
    assert_eq!(
        count("/cmdline"),
        2,
        "shim and monitor, or agent: {during:?}"
    );
    drop(tenant);
    assert_eq!(traces("seen"), before);
}
