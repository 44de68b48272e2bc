//! The bus that functions come to and go from while the guest runs, for Linux's acpiphp.
//!
//! Linux makes an object of each slot when it reads the tables, at 180,000 instructions a slot, and only of those that
//! stand there when it meets the bus. A guest whose disks never change is not to pay for that. So the slots are on a bus
//! of their own, in a table that the event device's method loads at the first event: the guest then finds a host bridge
//! that it did not know, scans its bus, and from there on is told of single slots.
//!
//! A slot needs no `_STA` (configuration space tells), `_SUN` (Linux numbers them itself) or `_INI`.
//!
//! What there is of each slot is written out byte by byte: made of `acpi_tables`' objects, 32 slots cost every start 350,000
//! instructions.

use acpi_tables::aml::{
    Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule,
    If, Local, Method, MethodCall, Name, Notify, ONE, OpRegion, OpRegionSpace, Path, Scope, Store,
    ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use fief_devices::pci::{SLOTS, hotplug};

use super::{InterruptRouting, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Windows, port_number};
use crate::boot::layout::{self, PciWindow64};

/// The bus's number.
const BUS: u8 = 1;

/// Notifications of a device object (ACPI 6.5 table 5.152).
const BUS_CHECK: u8 = 0;
const DEVICE_CHECK: u8 = 1;
const EJECTION_REQUEST: u8 = 3;

/// LoadOp (ACPI 6.5 §20.2.5.4), which `acpi_tables` does not have: of a region, into Local1.
const LOAD: [u8; 2] = [0x5B, 0x20];
const LOCAL_0: u8 = 0x60;
const LOCAL_1: u8 = 0x61;

/// To be put into the event device: where the table is, and that it is not loaded.
pub struct Unloaded {
    pub address: u64,
    pub length: usize,
}

impl Aml for Unloaded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (address, length) = (self.address, self.length as u64);
        let space = OpRegionSpace::SystemMemory;
        OpRegion::new("HPTB".into(), space, &address, &length).to_aml_bytes(sink);
        Name::new("HPLD".into(), &ZERO).to_aml_bytes(sink);
    }
}

/// To be put into the event device's method: something happened to a slot.
pub struct News;

impl Aml for News {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (loaded, bridge) = (Path::new("HPLD"), Path::new("\\_SB_.PCI0"));
        let (done, look) = (Store::new(&loaded, &ONE), Notify::new(&bridge, &BUS_CHECK));
        let unknown = Equal::new(&loaded, &ZERO);
        If::new(&unknown, vec![&Load, &done, &look]).to_aml_bytes(sink);
        MethodCall::new("\\_SB_.PCI0.PCI1.SCAN".into(), vec![]).to_aml_bytes(sink);
    }
}

struct Load;

impl Aml for Load {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&LOAD);
        Path::new("HPTB").to_aml_bytes(sink);
        sink.byte(LOCAL_1);
    }
}

/// The table that is loaded: the second host bridge, inside the first, whose notification makes Linux find it.
pub fn table(window: Option<PciWindow64>) -> Sdt {
    let mut bridge = Vec::new();
    host_bridge(window, &mut bridge);
    let code = Scope::raw("\\_SB_.PCI0".into(), bridge);
    let mut table = Sdt::new(*b"SSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&code);
    table
}

fn host_bridge(window: Option<PciWindow64>, sink: &mut Vec<u8>) {
    let windows = Windows {
        bus: BUS,
        ports: layout::HOT_PLUG_IO_WINDOW,
        memory_32: layout::HOT_PLUG_WINDOW,
        memory_64: window,
    };
    let slots: Vec<Slot> = (0..SLOTS).map(Slot).collect();
    let (hardware, compatible) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let hardware = Name::new("_HID".into(), &hardware);
    let compatible = Name::new("_CID".into(), &compatible);
    let unique = Name::new("_UID".into(), &ONE);
    let base = Name::new("_BBN".into(), &BUS);
    let segment = Name::new("_SEG".into(), &ZERO);
    let resources = windows.resources(None);
    let resources = Name::new("_CRS".into(), &resources);
    let mut children: Vec<&dyn Aml> = vec![
        &hardware,
        &compatible,
        &unique,
        &base,
        &segment,
        &resources,
        &InterruptRouting,
        &Registers,
    ];
    children.extend(slots.iter().map(|slot| slot as &dyn Aml));
    children.push(&Scan);
    Device::new("PCI1".into(), children).to_aml_bytes(sink);
}

/// The registers of the controller.
struct Registers;

impl Aml for Registers {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let start = port_number(hotplug::HOT_PLUG_PORT);
        let length = port_number(hotplug::HOT_PLUG_PORT_COUNT);
        OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &start, &length).to_aml_bytes(sink);
        // In the order of their ports.
        let registers = [*b"UP__", *b"DOWN", *b"EJCT"];
        Field::new(
            "HPRG".into(),
            FieldAccessType::DWord,
            FieldLockRule::NoLock,
            FieldUpdateRule::WriteAsZeroes,
            registers.map(|name| FieldEntry::Named(name, 32)).to_vec(),
        )
        .to_aml_bytes(sink);
    }
}

/// A slot of the bus.
#[derive(Clone, Copy)]
struct Slot(u8);

impl Slot {
    /// Length of a slot's Device and of the Method in it, as a PkgLength counts them: with itself (ACPI 6.5 §20.2.4).
    const DEVICE: u8 = 32;
    const EJECT: u8 = 16;
    /// Length of the If of a notification.
    const NOTIFICATION: u8 = 16;

    /// `SL00` to `SL31`.
    fn name(self) -> [u8; 4] {
        [b'S', b'L', b'0' + self.0 / 10, b'0' + self.0 % 10]
    }

    /// Its bit in the registers.
    fn bit(self) -> u32 {
        1_u32.checked_shl(u32::from(self.0)).unwrap_or(0)
    }

    /// Notifies it of `event` if its bit in `slots` is set: If (And (slots, bit)) {Notify (name, event)}.
    fn notify(self, slots: u8, event: u8, sink: &mut dyn AmlSink) {
        sink.vec(&[0xA0, Self::NOTIFICATION, 0x7B, slots, 0x0C]);
        sink.dword(self.bit());
        sink.vec(&[0, 0x86]);
        sink.vec(&self.name());
        sink.vec(&[0x0A, event]);
    }
}

impl Aml for Slot {
    /// Device (name) {Name (_ADR, address), Method (_EJ0, 1, Serialized) {Store (bit, EJCT)}}.
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&[0x5B, 0x82, Self::DEVICE]);
        sink.vec(&self.name());
        sink.vec(b"\x08_ADR\x0C");
        // Device number in the upper half, function number in the lower (ACPI 6.5 §6.1.1).
        sink.dword(u32::from(self.0) << 16);
        sink.vec(&[0x14, Self::EJECT]);
        sink.vec(b"_EJ0\x09\x70\x0C");
        sink.dword(self.bit());
        sink.vec(b"EJCT");
    }
}

/// The method that notifies the slots with news.
struct Scan;

impl Aml for Scan {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (up, down) = (Path::new("UP__"), Path::new("DOWN"));
        // Reading them tells what happened and forgets it.
        let came = Store::new(&Local(0), &up);
        let leaves = Store::new(&Local(1), &down);
        Method::new("SCAN".into(), 0, true, vec![&came, &leaves, &Notifications])
            .to_aml_bytes(sink);
    }
}

/// Notifies the slots whose bits are in Local0 and Local1.
struct Notifications;

impl Aml for Notifications {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        for slot in (0..SLOTS).map(Slot) {
            slot.notify(LOCAL_0, DEVICE_CHECK, sink);
            slot.notify(LOCAL_1, EJECTION_REQUEST, sink);
        }
    }
}
