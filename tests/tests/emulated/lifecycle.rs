//! Tenants start, stop, restart, are removed, and keep their data.

use fief_tests::waiting::until;
use fief_tests::{Said, in_host, run};

use super::backend::Backend;

both!(files_survive_a_stop_and_a_start);
fn files_survive_a_stop_and_a_start(backend: Backend) {
    let tenant = backend.start("keeps", "--image busybox");
    tenant.sh("echo precious > /root/file && sync").ok();
    run("stop keeps").ok();
    assert_eq!(tenant.listed()["status"], "stopped");
    run("start keeps").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "precious");
}

both!(a_poweroff_from_inside_is_reported_as_such);
fn a_poweroff_from_inside_is_reported_as_such(backend: Backend) {
    let tenant = backend.start("off", "--image busybox");
    tenant.sh("poweroff; sleep 60");
    assert_eq!(tenant.ended(), "poweroff");
}

both!(a_reboot_from_inside_starts_the_tenant_again_with_its_data);
fn a_reboot_from_inside_starts_the_tenant_again_with_its_data(backend: Backend) {
    let tenant = backend.start("again", "--image busybox");
    if backend == Backend::Machine {
        let line = tenant.sh("cat /proc/cmdline").ok();
        assert!(
            !line.contains("reboot="),
            "Linux is to find the way: {line}"
        );
    }
    tenant.sh("touch /root/mark; sync").ok();
    let before = tenant.boot().unwrap();
    tenant.sh("reboot; sleep 60");
    // The agent of the new boot answers once it is up; until then no command can run.
    until("it is up again", || {
        assert_eq!(tenant.listed()["status"], "running");
        tenant.boot().filter(|after| *after != before)
    });
    assert_eq!(tenant.sh("ls /root/mark").ok(), "/root/mark");
    let shown: serde_json::Value = serde_json::from_str(&run("inspect again").ok()).unwrap();
    // It is none of its policy's.
    assert_eq!(
        (&shown["reboots"], &shown["restarts"]),
        (&1.into(), &0.into())
    );
}

#[test]
fn a_machine_with_firecrackers_behaviour_ends_with_0_when_linux_resets_it() {
    // These copy the kernels and the image into the emulated host.
    run("run --rm --name d --kernel debian --image busybox -- true").ok();
    run("run --rm --name m --kernel micro --image busybox -- true").ok();
    // Debian's panics without a root, and resets from there; it tells nobody before, as pvpanic's driver is a module.
    let debian = bare_monitor("debian", "panic=-1");
    let micro = bare_monitor("micro", "root=/dev/vda ro init=/bin/busybox -- reboot -f");
    for said in [debian, micro] {
        assert_eq!(said.code, Some(0), "{said:?}");
        let last = said.out.lines().last().unwrap();
        assert_eq!(
            last, r#"{"event":"exit","exit_code":0,"reason":"reboot"}"#,
            "{said:?}"
        );
    }
}

/// Runs a kernel in a monitor without `fief`, the busybox image as its disk; its output ends with the monitor's events.
fn bare_monitor(kernel: &str, arguments: &str) -> Said {
    in_host(&format!(
        r#"
        store=/var/lib/fief/images
        file() {{
            id=$(sed -n 's/.*"artifact": *"\([0-9a-f]*\)".*/\1/p' $store/refs/$1.json)
            echo $store/artifacts/$id/$2
        }}
        directory=$(mktemp -d)
        cat > $directory/config <<END
        {{
            "boot-source": {{
                "kernel_image_path": "$(file kernel/{kernel} vmlinux)", "boot_args": "console=ttyS0 {arguments}"
            }},
            "machine-config": {{ "vcpu_count": 1, "mem_size_mib": 128 }},
            "drives": [{{
                "drive_id": "root", "path_on_host": "$(file rootfs/busybox root.img)", "is_read_only": true,
                "is_root_device": false
            }}]
        }}
END
        fief-vmm --no-api --config-file $directory/config --event-path $directory/events
        code=$?
        echo
        cat $directory/events
        rm -r $directory
        exit $code
        "#
    ))
}

both!(a_name_is_free_again_after_rm_and_taken_until_then);
fn a_name_is_free_again_after_rm_and_taken_until_then(backend: Backend) {
    let _tenant = backend.start("named", "--image busybox");
    let said = run(&format!("run -d {backend} --name named --image busybox")).fails(125);
    assert!(said.contains("named"), "{said}");
    let refused = run("rm named");
    assert_ne!(
        refused.code,
        Some(0),
        "a running tenant is only removed with -f"
    );
    run("rm -f named").ok();
    run(&format!("run -d {backend} --name named --image busybox")).ok();
}

both!(an_image_with_systemd_runs_it_as_its_init);
fn an_image_with_systemd_runs_it_as_its_init(backend: Backend) {
    let tenant = backend.start("sysd", "--image debian --init image --memory 768M");
    assert!(tenant.sh("readlink /proc/1/exe").ok().ends_with("/systemd"));
    // In emulation systemd takes a while until it can be asked; from then on it is waited for.
    until("systemd has started everything", || {
        (tenant.sh("systemctl is-system-running --wait").code == Some(0)).then_some(())
    });
    assert_eq!(tenant.sh("systemctl --failed --no-legend").ok(), "");
    assert_eq!(run("exec --user user sysd -- sudo -n id -u").ok(), "0");
    run("stop -t 300 sysd").ok();
    assert_eq!(tenant.listed()["exit"]["reason"], "poweroff");
}
