//! What is allowed when, and what is said otherwise.

use fief_api::{
    ActionType, Balloon, ClientError, Drive, Entropy, InstanceState, Lifecycle, Logger,
    MachineConfiguration, MachineConfigurationUpdate, NetworkInterface, PartialDrive,
    PartialNetworkInterface, Serial, Vsock,
};

use super::rig::Rig;
use crate::boot::BootError;
use crate::boot::cmdline::CmdlineError;
use crate::machine::MachineError;

fn message(result: Result<(), ClientError>) -> String {
    match result.unwrap_err() {
        ClientError::Refused {
            status: 400,
            fault_message,
            ..
        } => fault_message,
        other => panic!("{other}"),
    }
}

fn request(rig: &Rig, request: &str, body: &str) -> String {
    rig.raw(
        format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .as_bytes(),
    )
}

#[test]
fn a_new_monitor_has_the_defaults() {
    let rig = Rig::new();
    let client = rig.client();
    let info = client.describe_instance().unwrap();
    assert_eq!(
        (info.id.as_str(), info.state),
        ("test", InstanceState::NotStarted)
    );
    assert_eq!(info.app_name, "fief-vmm");
    assert_eq!(client.version().unwrap().firecracker_version, "1.17.0");
    assert_eq!(
        client.machine_config().unwrap(),
        MachineConfiguration::default()
    );
    let whole = client.vm_config().unwrap();
    assert_eq!(whole.machine_config, Some(MachineConfiguration::default()));
    assert!(whole.boot_source.is_none() && whole.drives.is_empty());
}

#[test]
fn what_is_put_is_what_is_built_and_shown() {
    let rig = Rig::new();
    let client = rig.client();
    let machine = MachineConfiguration {
        vcpu_count: 2,
        mem_size_mib: 512,
        ..MachineConfiguration::default()
    };
    client.put_machine_config(&machine).unwrap();
    client.put_boot_source(&rig.boot_source()).unwrap();
    let drive = Drive {
        is_root_device: true,
        num_queues: 2,
        ..Drive::new("root", rig.file("disk"))
    };
    client.put_drive(&drive).unwrap();
    client.put_entropy(&Entropy::default()).unwrap();
    let whole = client.vm_config().unwrap();
    assert_eq!(whole.machine_config, Some(machine));
    assert_eq!(whole.boot_source, Some(rig.boot_source()));
    assert_eq!(whole.drives, [drive]);
    client.start().unwrap();
    let config = rig.notes.config.lock().unwrap().clone().unwrap();
    assert_eq!((config.cpus.count(), config.memory.size_mib), (2, 512));
    assert_eq!(config.drives[0].queues, 2);
    assert!(config.entropy.is_some() && config.vsock.is_none());
    assert_eq!(rig.notes.done(), ["resume"]);
    assert_eq!(client.vm_config().unwrap(), whole);
}

#[test]
fn nothing_of_the_description_changes_after_the_start() {
    let rig = Rig::new();
    rig.start();
    let client = rig.client();
    assert_eq!(
        client.describe_instance().unwrap().state,
        InstanceState::Running
    );
    let before = client.vm_config().unwrap();
    let vsock = Vsock {
        guest_cid: 3,
        uds_path: rig.path("v"),
        vsock_id: None,
    };
    let update = MachineConfigurationUpdate {
        vcpu_count: Some(2),
        ..MachineConfigurationUpdate::default()
    };
    for result in [
        client.put_boot_source(&rig.boot_source()),
        client.put_machine_config(&MachineConfiguration::default()),
        client.patch_machine_config(&update),
        client.put_network_interface(&NetworkInterface::new("a", "tap0")),
        client.put_vsock(&vsock),
        client.put_entropy(&Entropy::default()),
        client.put_serial(&Serial::default()),
        client.put_balloon(&Balloon::default()),
        client.put_logger(&Logger::default()),
        client.put_lifecycle(&Lifecycle::default()),
        client.start(),
    ] {
        let message = message(result);
        assert!(
            message.contains("not supported after starting the microVM"),
            "{message}"
        );
    }
    assert_eq!(client.vm_config().unwrap(), before);
}

#[test]
fn what_needs_a_running_machine_is_refused_before_the_start() {
    let rig = Rig::new();
    let client = rig.client();
    let drive = PartialDrive {
        drive_id: "a".to_owned(),
        path_on_host: None,
        rate_limiter: None,
    };
    let interface = PartialNetworkInterface {
        iface_id: "a".to_owned(),
        rx_rate_limiter: None,
        tx_rate_limiter: None,
    };
    for result in [
        client.pause(),
        client.resume(),
        client.press_power_button(),
        client.action(ActionType::FlushMetrics),
        client.patch_drive(&drive),
        client.patch_network_interface(&interface),
    ] {
        let message = message(result);
        assert!(
            message.contains("not supported before starting the microVM"),
            "{message}"
        );
    }
    rig.start();
    assert!(message(client.patch_drive(&drive)).contains("names no field"));
    let refused = message(client.patch_network_interface(&interface));
    assert!(refused.contains("no interface a"), "{refused}");
    client.action(ActionType::FlushMetrics).unwrap();
}

#[test]
fn a_start_without_a_kernel_or_with_too_many_queues_says_so() {
    let rig = Rig::new();
    let client = rig.client();
    assert!(message(client.start()).contains("boot-source"));
    client.put_boot_source(&rig.boot_source()).unwrap();
    let drive = Drive {
        num_queues: 2,
        ..Drive::new("a", rig.file("disk"))
    };
    client.put_drive(&drive).unwrap();
    assert!(message(client.start()).contains("1 vCPUs"));
    assert!(rig.notes.done().is_empty());
}

#[test]
fn a_start_that_fails_can_be_tried_again() {
    let rig = Rig::new();
    let client = rig.client();
    client.put_boot_source(&rig.boot_source()).unwrap();
    let error = MachineError::Boot(BootError::from(CmdlineError::TooLong { got: 5000 }));
    *rig.notes.build_error.lock().unwrap() = Some(error);
    let message = message(client.start());
    assert!(
        message.contains("5000") && !message.contains('\n'),
        "{message}"
    );
    assert_eq!(
        client.describe_instance().unwrap().state,
        InstanceState::NotStarted
    );
    client.put_entropy(&Entropy::default()).unwrap();
    client.start().unwrap();
    assert_eq!(
        client.describe_instance().unwrap().state,
        InstanceState::Running
    );
}

#[test]
fn pausing_and_resuming_change_the_state_once_each() {
    let rig = Rig::new();
    rig.start();
    let client = rig.client();
    client.resume().unwrap();
    client.pause().unwrap();
    client.pause().unwrap();
    assert_eq!(
        client.describe_instance().unwrap().state,
        InstanceState::Paused
    );
    client.resume().unwrap();
    client.press_power_button().unwrap();
    assert_eq!(
        rig.notes.done(),
        ["resume", "pause", "resume", "power button"]
    );
}

#[test]
fn every_refusal_is_json_with_a_message() {
    let rig = Rig::new();
    for (line, body, expected) in [
        ("GET /", "{}", "takes no body"),
        ("DELETE /drives/a", "{}", "takes no body"),
        ("DELETE /drives/a", "", "no drive a"),
        ("DELETE /drives", "", "/drives/ID"),
        ("DELETE /vsock", "", "does not take DELETE"),
        ("PUT /vsock", "", "empty"),
        ("PATCH /machine-config", "{}", "names no field"),
        ("PUT /vsock", "{", "EOF"),
        ("PUT /vsock", "[]", "struct Vsock"),
        ("PUT /vsock", "{\"cid\":3}", "`cid`"),
        ("PUT /actions", "{\"action_type\":\"Fly\"}", "`Fly`"),
        (
            "PUT /drives/a",
            "{\"drive_id\":\"b\",\"is_root_device\":false}",
            "must be the same",
        ),
        ("PUT /drives", "{}", "/drives/ID"),
        ("PUT /network-interfaces", "{}", "/network-interfaces/ID"),
        ("PUT /nowhere", "{}", "/nowhere"),
        ("POST /actions", "{}", "does not take POST"),
        ("OPTIONS *", "", "*"),
        ("PUT /metrics", "{}", "Firecracker"),
        ("PATCH /balloon/hinting/start", "{}", "does not offer"),
        ("PUT /balloon", "{}", "amount_mib"),
        ("PUT /vsock?x=1", "\u{1}", "line 1"),
    ] {
        let answer = request(&rig, line, body);
        assert!(answer.starts_with("HTTP/1.1 400"), "{line}: {answer}");
        let (head, json) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("application/json"), "{line}: {head}");
        let fault: fief_api::Fault = serde_json::from_str(json).unwrap();
        assert!(
            fault.fault_message.contains(expected),
            "{line}: {}",
            fault.fault_message
        );
    }
}

#[test]
fn json_that_nests_too_deep_is_refused() {
    let rig = Rig::new();
    let deep = "[".repeat(900);
    let body = format!("{{\"state\":{deep}");
    assert!(request(&rig, "PUT /vsock", &body).starts_with("HTTP/1.1 400"));
    let body = format!("{{\"rate_limiter\":{{\"bandwidth\":{deep}");
    assert!(request(&rig, "PUT /entropy", &body).starts_with("HTTP/1.1 400"));
    rig.client().describe_instance().unwrap();
}
