//! Tenants start, stop, restart, are removed, and keep their data.

use fief_tests::waiting::until;
use fief_tests::{Said, in_host, run};

use super::Tenant;

#[test]
fn files_survive_a_stop_and_a_start() {
    let tenant = Tenant::start("keeps", "--image busybox");
    tenant.sh("echo precious > /root/file && sync").ok();
    run("stop keeps").ok();
    assert_eq!(tenant.listed()["status"], "stopped");
    run("start keeps").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "precious");
}

#[test]
fn a_poweroff_from_inside_is_reported_as_such() {
    let tenant = Tenant::start("off", "--image busybox");
    tenant.sh("poweroff; sleep 60");
    assert_eq!(tenant.ended(), "poweroff");
}

#[test]
fn a_reboot_from_inside_starts_the_tenant_again_with_its_data() {
    let tenant = Tenant::start("again", "--image busybox");
    let line = tenant.sh("cat /proc/cmdline").ok();
    assert!(
        !line.contains("reboot="),
        "Linux is to find the way: {line}"
    );
    let before = tenant
        .sh("cat /proc/sys/kernel/random/boot_id; touch /root/mark; sync")
        .ok();
    tenant.sh("reboot; sleep 60");
    let mut after = tenant.sh("cat /proc/sys/kernel/random/boot_id; ls /root/mark");
    // The agent of the new boot answers once it is up; until then the command cannot run.
    while after.code == Some(125) || after.out.starts_with(&before) {
        assert_eq!(tenant.listed()["status"], "running", "{after:?}");
        after = tenant.sh("cat /proc/sys/kernel/random/boot_id; ls /root/mark");
    }
    assert!(after.ok().ends_with("/root/mark"));
    let shown: serde_json::Value = serde_json::from_str(&run("inspect again").ok()).unwrap();
    assert_eq!(shown["reboots"], 1, "{shown}");
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

#[test]
fn a_name_is_free_again_after_rm_and_taken_until_then() {
    let _tenant = Tenant::start("named", "--image busybox");
    let said = run("run -d --name named --image busybox").fails(125);
    assert!(said.contains("named"), "{said}");
    let refused = run("rm named");
    assert_ne!(
        refused.code,
        Some(0),
        "a running tenant is only removed with -f"
    );
    run("rm -f named").ok();
    run("run -d --name named --image busybox").ok();
}

#[test]
fn an_image_with_systemd_runs_it_as_its_init() {
    let tenant = Tenant::start("sysd", "--image debian --init image --memory 768M");
    assert!(tenant.sh("readlink /proc/1/exe").ok().ends_with("/systemd"));
    // In emulation systemd takes a while until it can be asked; from then on it is waited for.
    until("systemd has started everything", || {
        (tenant.sh("systemctl is-system-running --wait").code == Some(0)).then_some(())
    });
    assert_eq!(tenant.sh("systemctl --failed --no-legend").ok(), "");
    run("stop -t 300 sysd").ok();
    assert_eq!(tenant.listed()["exit"]["reason"], "poweroff");
}
