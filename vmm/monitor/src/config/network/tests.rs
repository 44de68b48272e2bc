use super::*;

fn interface(id: &str, tap: &str) -> InterfaceConfig {
    InterfaceConfig {
        id: id.to_owned(),
        tap: tap.to_owned(),
        mac: None,
        mtu: None,
        rx_limits: Limits::default(),
        tx_limits: Limits::default(),
    }
}

#[test]
fn a_mac_is_six_bytes_of_one_interface() {
    let read = InterfaceConfig::mac;
    assert_eq!(read("02:0a:FF:00:00:01"), Ok([2, 10, 255, 0, 0, 1]));
    for wrong in [
        "",
        "02",
        "02:00:00:00:00",
        "02:00:00:00:00:01:02",
        "02:00:00:00:00:01:",
        "2:00:00:00:00:01",
        "02-00-00-00-00-01",
        "02:00:00:00:00:0g",
        "+2:00:00:00:00:01",
        "02:00:00:00:00: 1",
        // Of a group, of everybody, of nobody.
        "01:00:00:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
    ] {
        assert_eq!(read(wrong), Err(ConfigError::Mac(wrong.to_owned())));
    }
}

#[test]
fn an_mtu_is_what_ipv4_and_the_device_can_do() {
    for mtu in [68, 1500, 65_535] {
        assert_eq!(InterfaceConfig::mtu(mtu).map(u64::from), Ok(mtu));
    }
    for wrong in [0, 67, 65_536, 65_536 + 1500, u64::MAX] {
        assert_eq!(InterfaceConfig::mtu(wrong), Err(ConfigError::Mtu(wrong)));
    }
}

#[test]
fn ids_and_names_are_checked() {
    assert_eq!(interface("eth_0", "tap0").check(), Ok(()));
    assert_eq!(interface("a", "tap-0.1@x").check(), Ok(()));
    for id in ["", "a/b", "a b", "a-b", &"x".repeat(65)] {
        let refused = interface(id, "tap0").check();
        assert!(matches!(refused, Err(ConfigError::InterfaceId(_))), "{id}");
    }
    for tap in [
        "",
        "a/b",
        "a b",
        "a:b",
        ".",
        "..",
        "a\0",
        "ä",
        "sixteen_letters_",
    ] {
        let refused = interface("a", tap).check();
        assert!(matches!(refused, Err(ConfigError::TapName(_))), "{tap}");
    }
}

#[test]
fn an_interface_replaces_the_one_with_its_id_and_shares_nothing_with_others() {
    let with_mac = |id: &str, tap: &str, last| InterfaceConfig {
        mac: Some([2, 0, 0, 0, 0, last]),
        ..interface(id, tap)
    };
    let mut interfaces = Vec::new();
    let mut insert = |interface| insert_interface(&mut interfaces, interface);
    assert_eq!(insert(with_mac("a", "tap0", 1)), Ok(()));
    assert_eq!(insert(with_mac("b", "tap1", 2)), Ok(()));
    for (refused, what) in [
        (with_mac("c", "tap0", 3), "host_dev_name"),
        (with_mac("c", "tap2", 2), "guest_mac"),
        (with_mac("a", "tap1", 3), "host_dev_name"),
    ] {
        let error = insert(refused).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    // Itself is no other; two without an address have none in common.
    assert_eq!(insert(with_mac("a", "tap0", 1)), Ok(()));
    assert_eq!(insert(interface("b", "tap1")), Ok(()));
    assert_eq!(insert(interface("c", "tap2")), Ok(()));
    let ids: Vec<&str> = interfaces.iter().map(|i| i.id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    assert_eq!(interfaces[1].mac, None);
    for number in interfaces.len()..MAX_INTERFACES {
        let another = interface(&format!("x{number}"), &format!("tap{number}"));
        insert_interface(&mut interfaces, another).unwrap();
    }
    let one_more = insert_interface(&mut interfaces, interface("y", "tapy"));
    assert_eq!(one_more, Err(ConfigError::TooManyInterfaces));
    assert_eq!(
        insert_interface(&mut interfaces, interface("a", "tapz")),
        Ok(())
    );
}
