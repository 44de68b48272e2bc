use super::*;

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["etc", "run"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn resolve(&self, names: &[&str]) -> Result<Devices, CdiError> {
        let gpus: Vec<Gpu> = names.iter().map(|name| name.parse().unwrap()).collect();
        let [etc, run] = ["etc", "run"].map(|name| self.directory.path().join(name));
        resolve_in(&gpus, &[&etc, &run])
    }

    /// What is wrong with a device whose edits are these (JSON).
    fn refused(&self, edits: &str) -> String {
        let text = format!(
            r#"{{"cdiVersion": "0.6.0", "kind": "a.com/gpu", "devices": [{{"name": "0", "containerEdits": {edits}}}]}}"#
        );
        self.put("etc/a.json", &text);
        let error = self.resolve(&["a.com/gpu=0"]).unwrap_err().to_string();
        assert!(error.contains("etc/a.json"), "{error}");
        error
    }
}

const NVIDIA_LIKE: &str = r#"
cdiVersion: 0.5.0
kind: nvidia.com/gpu
annotations: {generated: "by hand"}
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
  - path: /dev/ctl
    hostPath: /dev/full
  mounts:
  - containerPath: /usr/lib/libdriver.so.1
    hostPath: /proc/version
    options: [ro, nosuid, nodev, bind]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/zero
      major: 1
      minor: 5
      fileMode: 438
      permissions: rw
      gid: 44
    additionalGids: [44]
- name: "1"
  containerEdits:
    deviceNodes:
    - path: /dev/null
"#;

#[test]
fn a_device_is_given_with_what_its_file_says_of_all() {
    let files = Files::new();
    files.put("etc/nvidia.yaml", NVIDIA_LIKE);
    files.put("etc/notes.txt", "no description");
    assert_eq!(files.resolve(&[]).unwrap(), Devices::default());
    let devices = files
        .resolve(&["nvidia.com/gpu=0", "nvidia.com/gpu=1"])
        .unwrap();
    let nodes: Vec<_> = devices
        .nodes
        .iter()
        .map(|node| (node.path.as_str(), node.major, node.minor, node.gid))
        .collect();
    // What is common once, then each device's own.
    let expected = [
        ("/dev/ctl", 1, 7, 0),
        ("/dev/zero", 1, 5, 44),
        ("/dev/null", 1, 3, 0),
    ];
    assert_eq!(nodes, expected);
    assert_eq!(devices.nodes[1].mode, 0o666);
    let mount = Mount {
        source: PathBuf::from("/proc/version"),
        destination: "/usr/lib/libdriver.so.1".to_owned(),
        options: ["bind", "nosuid", "nodev", "ro"]
            .map(str::to_owned)
            .to_vec(),
    };
    assert_eq!(devices.mounts, [mount]);
    let variable = ("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned());
    assert_eq!(devices.variables, [variable]);
}

#[test]
fn what_was_made_at_run_time_counts_more_and_two_of_a_kind_are_told() {
    let files = Files::new();
    let of = |path: &str| {
        format!(
            r#"{{"cdiVersion": "1.0.0", "kind": "a.com/gpu", "devices": [{{"name": "0", "containerEdits": {{"deviceNodes": [{{"path": "{path}"}}]}}}}]}}"#
        )
    };
    files.put("etc/a.json", &of("/dev/zero"));
    files.put("run/a.json", &of("/dev/full"));
    let devices = files.resolve(&["a.com/gpu=0"]).unwrap();
    assert_eq!(devices.nodes[0].path, "/dev/full");
    files.put("run/b.json", &of("/dev/null"));
    let error = files.resolve(&["a.com/gpu=0"]).unwrap_err();
    assert!(matches!(error, CdiError::Twice { .. }), "{error}");
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    let files = Files::new();
    let error = files.resolve(&["nvidia.com/gpu=0"]).unwrap_err();
    assert!(error.to_string().contains("nvidia-ctk"), "{error}");
    files.put("etc/nvidia.yaml", NVIDIA_LIKE);
    let error = files.resolve(&["nvidia.com/gpu=7"]).unwrap_err();
    let words = "(there are nvidia.com/gpu=0, nvidia.com/gpu=1)";
    assert!(error.to_string().contains(words), "{error}");
    // What cannot be read matters where the device is not in another file.
    files.put("etc/a.json", "{");
    files.resolve(&["nvidia.com/gpu=0"]).unwrap();
    let error = files.resolve(&["a.com/gpu=0"]).unwrap_err();
    assert!(matches!(error, CdiError::Damaged { .. }), "{error}");
}

#[test]
fn hooks_and_what_a_container_cannot_have_are_refused_by_name() {
    let files = Files::new();
    let hook = files.refused(
        r#"{"hooks": [{"hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook", "args": ["x"]}]}"#,
    );
    assert!(hook.contains("/usr/bin/nvidia-cdi-hook") && hook.contains("--disable-hooks"));
    for (edits, word) in [
        (
            r#"{"mounts": [{"hostPath": "/proc", "containerPath": "/run"}]}"#,
            "/run",
        ),
        (
            r#"{"mounts": [{"hostPath": "/proc", "containerPath": "/x", "options": ["rbind"]}]}"#,
            "rbind",
        ),
        (r#"{"intelRdt": {}}"#, "caches"),
        (
            r#"{"netDevices": [{"hostInterfaceName": "eth0", "name": "eth0"}]}"#,
            "network",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/zero", "type": "b"}]}"#,
            "no character device",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/x", "hostPath": "/proc/version"}]}"#,
            "no character device",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/zero", "major": 1, "minor": 3}]}"#,
            "1:5",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/zero", "uid": 65536}]}"#,
            "owner",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/no-such-gpu"}]}"#,
            "no such device",
        ),
        (r#"{"deviceNodes": [{"path": "dev/zero"}]}"#, "dev/zero"),
        (
            r#"{"mounts": [{"hostPath": "/no/such", "containerPath": "/x"}]}"#,
            "no such file",
        ),
        (
            r#"{"mounts": [{"hostPath": "/proc", "containerPath": "/"}]}"#,
            "\"/\"",
        ),
        (
            r#"{"mounts": [{"hostPath": "/proc", "containerPath": "/x/../proc"}]}"#,
            "/x/../proc",
        ),
        (
            r#"{"mounts": [{"hostPath": "/proc", "containerPath": "/proc/x"}]}"#,
            "/proc/x",
        ),
        (
            r#"{"mounts": [{"hostPath": "/proc", "containerPath": "/run/fief/agent"}]}"#,
            "/run/fief",
        ),
        (
            r#"{"mounts": [{"hostPath": "/proc", "containerPath": "/x", "type": "tmpfs"}]}"#,
            "file system",
        ),
        (
            r#"{"mounts": [{"hostPath": "/proc", "containerPath": "/x", "options": ["suid"]}]}"#,
            "suid",
        ),
        (r#"{"env": ["NOTHING"]}"#, "NOTHING"),
        (r#"{"somethingNew": true}"#, "somethingNew"),
    ] {
        let error = files.refused(edits);
        assert!(error.contains(word), "{edits}: {error}");
    }
}

#[test]
fn files_of_other_versions_and_without_end_are_told() {
    let files = Files::new();
    for version in ["0.2.0", "1.2.0", "2.0.0", "new"] {
        files.put(
            "etc/a.json",
            &format!(r#"{{"cdiVersion": "{version}", "kind": "a.com/gpu", "devices": []}}"#),
        );
        let error = files.resolve(&["a.com/gpu=0"]).unwrap_err();
        assert!(error.to_string().contains(version), "{error}");
    }
    let large = 1 + usize::try_from(LARGEST).unwrap();
    files.put("etc/a.json", &" ".repeat(large));
    let error = files.resolve(&["a.com/gpu=0"]).unwrap_err();
    assert!(error.to_string().contains("1 MiB"), "{error}");
}
