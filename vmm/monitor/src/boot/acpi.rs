//! ACPI tables: what Linux needs to find CPUs, interrupts, the PCI bus, the serial port, power and panic devices.
//!
//! The platform is "hardware-reduced" (ACPI 6.5 §4.1): no PM timer, no SCI, no 8259 and no PIT that a guest would probe
//! and calibrate at every start. Power-off and the power button go through the sleep registers and the generic event
//! device instead.

use std::ops::Range;

use acpi_tables::aml::{
    self, AddressSpace, AddressSpaceCacheable, Device, EISAName, Field, FieldAccessType,
    FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Method, Name, Notify,
    OpRegion, OpRegionSpace, Package, Path, ResourceTemplate, Return, Store,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use fief_devices::legacy::{
    POWER_GSI, PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT, SERIAL_PORT_COUNT, power,
};
use fief_devices::pci::SLOTS;

use super::layout::{self, PciWindow64};

mod hot_plug;

const OEM_ID: [u8; 6] = *b"FIEF  ";
const OEM_TABLE_ID: [u8; 8] = *b"FIEFVM  ";
const OEM_REVISION: u32 = 1;

/// IAPC_BOOT_ARCH (ACPI 6.5 table 5.11): no VGA, no PCIe ASPM, no CMOS clock; bit 1 (8042) is clear, so that no guest
/// waits for a keyboard.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 4 | 1 << 5;

/// What the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct Platform {
    pub vcpus: u8,
    pub pci_window_64: Option<PciWindow64>,
    /// A function on bus 0 has a wired interrupt.
    pub wired_interrupts: bool,
}

/// Makes all tables as one block, to be placed at [`layout::ACPI_START`], where it begins with the RSDP.
pub fn tables(platform: Platform) -> Vec<u8> {
    let mut block = Block {
        bytes: vec![0; Rsdp::len().next_multiple_of(ALIGN)],
    };
    // No table lists it: the guest loads it when it is needed.
    let slots = hot_plug::table(platform.pci_window_64.map(|window| window.halves().1));
    let slots = (block.add(&slots), slots.len());
    let dsdt = block.add(&dsdt(platform, slots));
    let entries = [
        block.add(&fadt(dsdt)),
        block.add(&madt(platform.vcpus)),
        block.add(&mcfg()),
    ];
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for entry in entries {
        xsdt.add_entry(entry);
    }
    let xsdt = block.add(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    for (place, byte) in block.bytes.iter_mut().zip(rsdp) {
        *place = byte;
    }
    block.bytes
}

/// Tables start at multiples of this.
const ALIGN: usize = 16;

struct Block {
    bytes: Vec<u8>,
}

impl Block {
    /// Adds a table and returns its guest-physical address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = layout::ACPI_START.saturating_add(self.bytes.len() as u64);
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn port(address: u64) -> GAS {
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

/// A port number as AML wants it.
fn port_number(port: u64) -> u16 {
    u16::try_from(port).unwrap_or(u16::MAX)
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let apics = LocalInterruptController::Address(layout::LOCAL_APIC_START);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, apics);
    for index in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(
            index,
            index,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, layout::IO_APIC_START, 0));
    madt
}

/// Bus 1 too, though it costs every start 130,000 instructions: Linux looks for functions in every slot of each bus that
/// stands here, and finds a disk that came before its hot-plug was ready in no other way.
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM_START, 0, 0, 1);
    mcfg
}

/// `slots` is where the table of hot-plug slots is, and its length.
fn dsdt(platform: Platform, slots: (u64, usize)) -> Sdt {
    let mut code = Vec::new();
    let mut devices = Vec::new();
    pci_host_bridge(platform, &mut devices);
    serial_port(&mut devices);
    event_device(slots, &mut devices);
    panic_device(&mut devices);
    code.extend_from_slice(&aml::Scope::raw("_SB_".into(), devices));
    let off = power::SLEEP_TYPE_S5;
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&off, &aml::ZERO, &aml::ZERO, &aml::ZERO]),
    )
    .to_aml_bytes(&mut code);
    // Revision 2: integers have 64 bits (ACPI 6.5 §5.2.11.1).
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// PCIe host bridge of bus 0. Without functions that have wired interrupts there is no `_PRT`: virtio uses MSI-X.
fn pci_host_bridge(platform: Platform, sink: &mut Vec<u8>) {
    let config_ports = IO::new(0xCF8, 0xCF8, 1, 8);
    let windows = Windows {
        bus: 0,
        ports: layout::PCI_IO_WINDOW,
        memory_32: layout::PCI_WINDOW_32,
        memory_64: platform.pci_window_64.map(|window| window.halves().0),
    };
    let resources = windows.resources(Some(&config_ports));
    let (hardware, compatible) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let names = [
        Name::new("_HID".into(), &hardware),
        Name::new("_CID".into(), &compatible),
        Name::new("_UID".into(), &aml::ZERO),
        Name::new("_BBN".into(), &aml::ZERO),
        Name::new("_SEG".into(), &aml::ZERO),
        Name::new("_CRS".into(), &resources),
    ];
    let mut children: Vec<&dyn Aml> = names.iter().map(|name| name as &dyn Aml).collect();
    if platform.wired_interrupts {
        children.push(&InterruptRouting);
    }
    Device::new("PCI0".into(), children).to_aml_bytes(sink);
}

/// What is behind a host bridge.
struct Windows {
    bus: u8,
    ports: Range<u16>,
    memory_32: Range<u64>,
    memory_64: Option<PciWindow64>,
}

impl Windows {
    /// Its resources, `first` before those of memory.
    fn resources(&self, first: Option<&dyn Aml>) -> ResourceBytes {
        let mut bytes = Vec::new();
        let (bus, ports) = (u16::from(self.bus), &self.ports);
        AddressSpace::new_bus_number(bus, bus).to_aml_bytes(&mut bytes);
        if let Some(first) = first {
            first.to_aml_bytes(&mut bytes);
        }
        AddressSpace::new_io(ports.start, ports.end.saturating_sub(1), None)
            .to_aml_bytes(&mut bytes);
        AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            u32::try_from(self.memory_32.start).unwrap_or(0),
            u32::try_from(self.memory_32.end.saturating_sub(1)).unwrap_or(u32::MAX),
            None,
        )
        .to_aml_bytes(&mut bytes);
        if let Some(window) = self.memory_64 {
            AddressSpace::new_memory(
                AddressSpaceCacheable::Cacheable,
                true,
                window.start,
                window.end.saturating_sub(1),
                None,
            )
            .to_aml_bytes(&mut bytes);
        }
        ResourceBytes(bytes)
    }
}

/// Resources that were written out already.
struct ResourceBytes(Vec<u8>);

impl Aml for ResourceBytes {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let raw = RawBytes(&self.0);
        ResourceTemplate::new(vec![&raw]).to_aml_bytes(sink);
    }
}

struct RawBytes<'a>(&'a [u8]);

impl Aml for RawBytes<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

/// Which wired interrupt each slot's pin A leads to (ACPI 6.5 §6.2.13), pin by pin without a link device. A method: the guest
/// makes the packages when it asks for them.
struct InterruptRouting;

impl Aml for InterruptRouting {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let routes: Vec<Route> = (0..SLOTS).map(Route).collect();
        let routes = Package::new(routes.iter().map(|route| route as &dyn Aml).collect());
        let answer = Return::new(&routes);
        Method::new("_PRT".into(), 0, false, vec![&answer]).to_aml_bytes(sink);
    }
}

struct Route(u8);

impl Aml for Route {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        // Every function of the slot (0xFFFF), pin A, no link device, the interrupt's number.
        let place = u32::from(self.0) << 16 | 0xFFFF;
        let gsi = layout::slot_gsi(self.0);
        Package::new(vec![&place, &aml::ZERO, &aml::ZERO, &gsi]).to_aml_bytes(sink);
    }
}

fn serial_port(sink: &mut Vec<u8>) {
    let port = port_number(SERIAL_PORT);
    let count = u8::try_from(SERIAL_PORT_COUNT).unwrap_or(u8::MAX);
    let ports = IO::new(port, port, 1, count);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_GSI);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &interrupt]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// The power button, and the generic event device that reports it and hot-plug (ACPI 6.5 §5.6.9).
fn event_device(slots: (u64, usize), sink: &mut Vec<u8>) {
    Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C"))],
    )
    .to_aml_bytes(sink);
    // Level-triggered, active high, exclusive.
    let interrupt = Interrupt::new(true, false, false, false, POWER_GSI);
    let event_port = port_number(power::EVENT);
    let region = OpRegion::new(
        "EVTR".into(),
        OpRegionSpace::SystemIO,
        &event_port,
        &aml::ONE,
    );
    let field = Field::new(
        "EVTR".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"EVTS", 8)],
    );
    let event = Path::new("EVTS");
    let button = Path::new("PWRB");
    // Reading the register tells what happened and forgets it.
    let read = Store::new(&Local(0), &event);
    let pressed = aml::And::new(&aml::ZERO, &Local(0), &power::EVENT_POWER_BUTTON);
    let notify = Notify::new(&button, &0x80_u8);
    let report = If::new(&pressed, vec![&notify]);
    let plugged = aml::And::new(&aml::ZERO, &Local(0), &power::EVENT_PCI_HOT_PLUG);
    let news = hot_plug::News;
    let look = If::new(&plugged, vec![&news]);
    let method = Method::new("_EVT".into(), 1, true, vec![&read, &report, &look]);
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &aml::ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &region,
            &field,
            &hot_plug::Unloaded {
                address: slots.0,
                length: slots.1,
            },
            &method,
        ],
    )
    .to_aml_bytes(sink);
}

/// pvpanic; Linux's driver binds to this id (drivers/misc/pvpanic/pvpanic-mmio.c).
fn panic_device(sink: &mut Vec<u8>) {
    let port = port_number(PVPANIC_PORT);
    let ports = IO::new(port, port, 1, 1);
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports])),
        ],
    )
    .to_aml_bytes(sink);
}

#[cfg(test)]
mod tests;
