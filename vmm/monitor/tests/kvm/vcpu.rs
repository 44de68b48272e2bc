//! The KVM layer below the machine: doorbells and interrupts.

use std::path::Path;
use std::sync::Mutex;

use fief_devices::doorbell::Doorbells;
use fief_devices::irq::MsiMessage;
use fief_vmm::boot::layout;
use fief_vmm::boot::params::write_page_tables;
use fief_vmm::config::{CpuConfig, MemoryBacking, MemoryConfig};
use fief_vmm::kvm::cpuid::{self, Timing, Topology};
use fief_vmm::kvm::doorbell::IoEventDoorbells;
use fief_vmm::kvm::irq::GsiTable;
use fief_vmm::kvm::irqchip;
use fief_vmm::kvm::memory::GuestMemory;
use fief_vmm::kvm::vcpu::{Buses, Entry, Exit, Vcpu, gdt};
use fief_vmm::kvm::{Host, KVM_DEVICE, Vm};
use fief_vmm::machine::files::Files;
use kvm_bindings::kvm_irqchip;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::payload::{Payload, START};

/// A port that ends a run.
const DONE: u16 = 0x10;

#[derive(Default)]
struct Recorder {
    ports: Mutex<Vec<(u16, Vec<u8>)>>,
    memory: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Recorder {
    fn done(&self) -> bool {
        self.ports
            .lock()
            .unwrap()
            .iter()
            .any(|(port, _)| *port == DONE)
    }
}

impl Buses for Recorder {
    fn port_in(&self, _: u16, data: &mut [u8]) {
        data.fill(0x5A);
    }
    fn port_out(&self, port: u16, data: &[u8]) {
        self.ports.lock().unwrap().push((port, data.to_vec()));
    }
    fn memory_read(&self, _: u64, data: &mut [u8]) {
        data.fill(0xA5);
    }
    fn memory_write(&self, address: u64, data: &[u8]) {
        self.memory.lock().unwrap().push((address, data.to_vec()));
    }
}

struct Guest {
    vm: Vm,
    vcpu: Vcpu,
    memory: GuestMemory,
    buses: Recorder,
}

impl Guest {
    fn new(payload: &Payload) -> Self {
        let files = Files::new();
        let host = Host::open(&files, Path::new(KVM_DEVICE)).unwrap_or_else(|e| panic!("{e}"));
        let config = MemoryConfig {
            size_mib: 4,
            backing: MemoryBacking::Anonymous { huge: false },
        };
        let memory = GuestMemory::new(&config, &files).unwrap();
        let vm = host.create_vm(&memory, 1).unwrap();
        let vcpu = Vcpu::new(&vm, 0).unwrap();
        let timing = Timing {
            tsc_khz: vcpu.tsc_khz(),
            tsc_deadline: host.tsc_deadline(),
        };
        let topology = Topology::new(CpuConfig::new(1, false).unwrap());
        vcpu.prepare(&cpuid::for_vcpu(
            host.supported_cpuid(),
            topology,
            timing,
            0,
        ))
        .unwrap();
        write_page_tables(memory.ram()).unwrap();
        for (index, descriptor) in gdt(true).into_iter().enumerate() {
            let at = GuestAddress(layout::GDT_START + index as u64 * 8);
            memory.ram().write_obj(descriptor, at).unwrap();
        }
        memory
            .ram()
            .write_slice(payload.code(), GuestAddress(START))
            .unwrap();
        vcpu.set_entry(Entry::Linux64 {
            rip: START,
            boot_params: 0,
        })
        .unwrap();
        Self {
            vm,
            vcpu,
            memory,
            buses: Recorder::default(),
        }
    }

    fn run(&mut self) {
        while !self.buses.done() {
            assert_eq!(self.vcpu.run(&self.buses), Exit::Handled);
        }
    }
}

#[test]
fn port_and_memory_accesses_arrive_with_their_width() {
    let mut guest = Guest::new(
        &Payload::new()
            .out8(0x71, 1)
            .out32(0x72, 0x0403_0201)
            .in8(0x73)
            // cmp al, 0x5A
            .raw(&[0x3C, 0x5A])
            .jne_fail()
            .rbx(0xC000_0000)
            .store32(0x0807_0605)
            .load_eax()
            .expect_eax(0xA5A5_A5A5)
            .out8(DONE, 0),
    );
    guest.run();
    let ports = guest.buses.ports.lock().unwrap();
    assert_eq!(ports[..2], [(0x71, vec![1]), (0x72, vec![1, 2, 3, 4])]);
    let memory = guest.buses.memory.lock().unwrap();
    assert_eq!(*memory, [(0xC000_0000, vec![5, 6, 7, 8])]);
}

#[test]
fn a_string_of_port_writes_comes_one_by_one() {
    let mut guest = Guest::new(
        &Payload::new()
            // mov rsi, START; mov ecx, 4; mov dx, 0x71; cld; rep outsb
            .raw(&[0x48, 0xC7, 0xC6, 0x00, 0x00, 0x10, 0x00, 0xB9, 4, 0, 0, 0])
            .raw(&[0x66, 0xBA, 0x71, 0x00, 0xFC, 0xF3, 0x6E])
            .out8(DONE, 0),
    );
    guest.run();
    let ports = guest.buses.ports.lock().unwrap();
    let written: Vec<u8> = ports[..4].iter().map(|(_, data)| data[0]).collect();
    assert_eq!(written, [0xEB, 0x03, 0xF4, 0xEB]);
    assert!(
        ports[..4]
            .iter()
            .all(|(port, data)| *port == 0x71 && data.len() == 1)
    );
}

#[test]
fn a_doorbell_rings_without_an_exit_whatever_the_width() {
    let mut guest = Guest::new(
        &Payload::new()
            .rbx(0xC000_1000)
            .store32(3)
            // mov word [rbx], 3; mov byte [rbx], 3
            .raw(&[0x66, 0xC7, 0x03, 0x03, 0x00, 0xC6, 0x03, 0x03])
            .rbx(0xC000_1004)
            .store32(4)
            .out8(DONE, 0),
    );
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let doorbells = IoEventDoorbells::new(guest.vm.fd.clone());
    doorbells.connect(0xC000_1000, &event).unwrap();
    guest.run();
    assert_eq!(event.read().unwrap(), 3);
    let memory = guest.buses.memory.lock().unwrap();
    assert_eq!(
        *memory,
        [(0xC000_1004, vec![4, 0, 0, 0])],
        "only the other address exits"
    );
    doorbells.disconnect(0xC000_1000, &event).unwrap();
    assert!(doorbells.disconnect(0xC000_1000, &event).is_err());
}

/// Writes a gate for vector 0x40 that leads to `handler` into an IDT at 0x6000 (Intel SDM 3A §6.14.1), and its descriptor
/// for `lidt` at 0x5F00.
fn interrupt_table(guest: &Guest, handler: u64) {
    let ram = guest.memory.ram();
    let low = handler & 0xFFFF | 0x10 << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48;
    ram.write_obj(low, GuestAddress(0x6000 + 0x40 * 16))
        .unwrap();
    ram.write_obj(handler >> 32, GuestAddress(0x6008 + 0x40 * 16))
        .unwrap();
    ram.write_obj(0xFFF_u16, GuestAddress(0x5F00)).unwrap();
    ram.write_obj(0x6000_u64, GuestAddress(0x5F02)).unwrap();
}

#[test]
fn an_msi_raised_by_a_device_reaches_the_guests_handler() {
    let payload = Payload::new()
        // lidt [0x5F00]; local APIC on; sti; hlt
        .raw(&[0x0F, 0x01, 0x1C, 0x25, 0x00, 0x5F, 0x00, 0x00])
        .rbx(0xFEE0_00F0)
        .store32(0x1FF)
        .out8(0x11, 0)
        .raw(&[0xFB])
        .halt();
    let mut guest = Guest::new(&payload);
    let handler = START + 0x1000;
    let code = Payload::new().out8(DONE, 0x77).halt();
    guest
        .memory
        .ram()
        .write_slice(code.code(), GuestAddress(handler))
        .unwrap();
    interrupt_table(&guest, handler);

    let gsis = GsiTable::new(guest.vm.fd.clone());
    let vectors = gsis.msi_allocator().allocate(2).unwrap();
    // Masked: nothing may arrive.
    vectors[1].trigger().unwrap();
    vectors[1]
        .route(Some(MsiMessage {
            address: 0xFEE0_0000,
            data: 0x40,
        }))
        .unwrap();
    vectors[1].route(None).unwrap();
    vectors[1].trigger().unwrap();
    // Until the guest is ready.
    while guest.buses.ports.lock().unwrap().is_empty() {
        assert_eq!(guest.vcpu.run(&guest.buses), Exit::Handled);
    }
    vectors[1]
        .route(Some(MsiMessage {
            address: 0xFEE0_0000,
            data: 0x40,
        }))
        .unwrap();
    vectors[1].trigger().unwrap();
    guest.run();
    let ports = guest.buses.ports.lock().unwrap();
    assert_eq!(*ports, [(0x11, vec![0]), (DONE, vec![0x77])]);
}

#[test]
fn interrupt_numbers_run_out_with_an_error() {
    let guest = Guest::new(&Payload::new());
    let allocator = GsiTable::new(guest.vm.fd.clone()).msi_allocator();
    assert!(allocator.allocate(5000).is_err());
    assert_eq!(allocator.allocate(8).unwrap().len(), 8);
}

/// What KVM shows of the two 8259s and the I/O APIC, byte by byte.
fn interrupt_controllers(vm: &Vm) -> [Vec<i8>; 3] {
    [0, 1, 2].map(|chip_id| {
        let mut chip = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        vm.fd.get_irqchip(&mut chip).unwrap();
        // SAFETY: any bytes are valid characters; `default` has set those that KVM did not.
        unsafe { chip.chip.dummy }.to_vec()
    })
}

#[test]
fn reset_interrupt_controllers_are_as_kvm_made_them() {
    let io_apic = 0xFEC0_0000;
    let payload = Payload::new()
        // The I/O APIC's id, and its inputs 4 and 23 unmasked; its index register stays at the last.
        .rbx(io_apic)
        .store32(0)
        .rbx(io_apic + 0x10)
        .store32(5 << 24)
        .rbx(io_apic)
        .store32(0x18)
        .rbx(io_apic + 0x10)
        .store32(0x34)
        .rbx(io_apic)
        .store32(0x3E)
        .rbx(io_apic + 0x10)
        .store32(0x8035)
        // Both 8259s as a PC's BIOS sets them up (Intel 8259A, ICW1 to ICW4), and one of their lines level-triggered.
        .out8(0x20, 0x11)
        .out8(0x21, 0x08)
        .out8(0x21, 0x04)
        .out8(0x21, 0x03)
        .out8(0xA0, 0x11)
        .out8(0xA1, 0x70)
        .out8(0xA1, 0x02)
        .out8(0xA1, 0x01)
        .out8(0x21, 0xB8)
        .out8(0x4D1, 0x0E)
        .out8(DONE, 0);
    let mut guest = Guest::new(&payload);
    let made = interrupt_controllers(&guest.vm);
    guest.run();
    for gsi in [4, 9, 23] {
        guest.vm.fd.set_irq_line(gsi, true).unwrap();
        guest.vm.fd.set_irq_line(gsi, false).unwrap();
    }
    for (chip, (used, made)) in interrupt_controllers(&guest.vm)
        .iter()
        .zip(&made)
        .enumerate()
    {
        assert_ne!(used, made, "chip {chip} was not used");
    }
    irqchip::reset(&guest.vm.fd).unwrap();
    assert_eq!(interrupt_controllers(&guest.vm), made);
}

#[test]
fn vectors_that_are_dropped_give_their_interrupt_numbers_back() {
    let guest = Guest::new(&Payload::new().halt());
    let gsis = GsiTable::new(guest.vm.fd.clone());
    let allocator = gsis.msi_allocator();
    let route = |data| {
        let address = 0xFEE0_0000;
        Some(MsiMessage { address, data })
    };
    let kept = allocator.allocate(1).unwrap();
    kept[0].route(route(0x40)).unwrap();
    // Together more than there are, each with an irqfd.
    for round in 0..5000 {
        let vectors = allocator.allocate(3).unwrap();
        vectors[0].route(route(0x41 + round % 8)).unwrap();
        vectors[0].trigger().unwrap();
    }
    // The one that was kept has kept its own.
    kept[0].trigger().unwrap();
    kept[0].route(route(0x42)).unwrap();
}
