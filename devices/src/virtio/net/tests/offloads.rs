use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};

use super::super::*;
use super::rig::*;

#[test]
fn the_tap_gives_what_the_driver_takes_and_never_what_makes_no_sense() {
    let (csum, tso4) = (feature::GUEST_CSUM, feature::GUEST_TSO4);
    for (features, expected) in [
        (0, 0),
        (csum, TUN_F_CSUM),
        (csum | tso4, TUN_F_CSUM | TUN_F_TSO4),
        (
            csum | feature::GUEST_TSO6 | feature::GUEST_ECN,
            TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN,
        ),
        (
            csum | feature::GUEST_USO4 | feature::GUEST_USO6,
            TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6,
        ),
        // One kind of UDP alone is more than the kernel can do; segments without checksums, ECN without segments.
        (csum | feature::GUEST_USO4, TUN_F_CSUM),
        (tso4 | feature::GUEST_USO4 | feature::GUEST_USO6, 0),
        (csum | feature::GUEST_ECN, TUN_F_CSUM),
        // What the guest may send is no business of the tap.
        (feature::CSUM | feature::HOST_TSO4 | feature::HOST_USO, 0),
    ] {
        assert_eq!(offload::tap_offloads(features), expected, "{features:x}");
    }
}

#[test]
fn each_driver_says_anew_what_it_takes() {
    let mut rig = Rig::started(MERGED);
    assert_eq!(rig.net.tap.asked(), [TUN_F_CSUM | TUN_F_TSO4]);
    // A pause changes nothing, so nothing that waits in the tap is lost.
    let queues = rig.net.suspend();
    rig.activate_with(queues);
    assert_eq!(rig.net.tap.asked().len(), 1);
    drop(rig.net.suspend());
    rig.net.reset();
    rig.features = feature::MRG_RXBUF;
    rig.activate();
    assert_eq!(rig.net.tap.asked(), [TUN_F_CSUM | TUN_F_TSO4, 0]);
}

#[test]
fn features_and_configuration_are_those_of_the_tap_and_the_description() {
    let offered = |config: NetConfig| Rig::with(0, config, true).net.features();
    let none = NetConfig {
        mac: None,
        ..config()
    };
    assert_eq!(offered(none.clone()), feature::ALWAYS | feature::UDP);
    assert_eq!(offered(config()), offered(none) | feature::MAC);
    let mtu = NetConfig {
        mtu: Some(9000),
        ..config()
    };
    assert_eq!(offered(mtu.clone()), offered(config()) | feature::MTU);
    let rig = Rig::with(0, mtu.clone(), true);
    let mut bytes = [0xFF; 16];
    rig.net.read_config(0, &mut bytes);
    assert_eq!(
        bytes,
        [2, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0x28, 0x23, 0, 0, 0, 0]
    );
    let mut bytes = [0xFF; 4];
    rig.net.read_config(10, &mut bytes);
    assert_eq!(bytes, [0x28, 0x23, 0, 0]);
    for offset in [12, 4095, u64::MAX] {
        rig.net.read_config(offset, &mut bytes);
        assert_eq!(bytes, [0; 4]);
    }
    // An old kernel, and an impossible MTU.
    let tap = || Tap::socket(socket_pair().0, false);
    let net = Net::new(tap(), config()).unwrap();
    assert_eq!(net.features(), feature::ALWAYS | feature::MAC);
    let small = NetConfig {
        mtu: Some(67),
        ..config()
    };
    assert!(matches!(Net::new(tap(), small), Err(NetError::Mtu(67))));
    assert!(matches!(
        Tap::new(socket_pair().0),
        Err(TapError::NotTap(_))
    ));
}
