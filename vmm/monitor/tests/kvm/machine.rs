//! Whole machines.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use fief_vmm::config::{
    BootConfig, CpuConfig, MemoryBacking, MemoryConfig, OnReboot, SerialConfig, VmConfig,
};
use fief_vmm::machine::files::Files;
use fief_vmm::machine::{Event, ExitReason, Machine};

use crate::payload::Payload;

/// A payload that hangs fails its test after this long instead of stopping the whole run.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(directory: &Path, payload: &Payload, vcpus: u64) -> VmConfig {
    let kernel = directory.join("payload");
    fs::write(&kernel, payload.elf()).unwrap();
    VmConfig {
        cpus: CpuConfig::new(vcpus, false).unwrap(),
        memory: MemoryConfig {
            size_mib: 8,
            backing: MemoryBacking::Anonymous { huge: true },
        },
        boot: BootConfig {
            kernel,
            initrd: None,
            args: "some args".into(),
        },
        drives: Vec::new(),
        interfaces: Vec::new(),
        vsock: None,
        entropy: None,
        balloon: None,
        passthrough: Vec::new(),
        serial: SerialConfig::File(directory.join("serial")),
        on_reboot: OnReboot::Exit,
    }
}

fn build(config: &VmConfig) -> (Machine, Receiver<Event>) {
    let (sender, receiver) = channel();
    // A test that failed has dropped its receiver when its machine ends.
    let on_event = Box::new(move |event| drop(sender.send(event)));
    let machine = Machine::build(config, &Files::new(), on_event).unwrap_or_else(|e| panic!("{e}"));
    (machine, receiver)
}

/// Waits for the next thing that happens to the machine.
fn next(events: &Receiver<Event>) -> Event {
    events.recv_timeout(PATIENCE).expect("the payload hangs")
}

/// Waits for the end of the machine, whatever happens before.
fn end(events: &Receiver<Event>) -> ExitReason {
    loop {
        if let Event::Ended(reason) = next(events) {
            return reason;
        }
    }
}

/// Runs `payload` to its end: why it ended, and what it printed.
fn run(payload: &Payload, vcpus: u64) -> (ExitReason, String) {
    let directory = tempfile::tempdir().unwrap();
    run_in(&config(directory.path(), payload, vcpus))
}

/// Runs the machine to its end: why it ended, and what it printed.
fn run_in(config: &VmConfig) -> (ExitReason, String) {
    let SerialConfig::File(serial) = &config.serial else {
        panic!("the serial port goes to a file")
    };
    // It is appended to.
    let _ = fs::remove_file(serial);
    let (machine, events) = build(config);
    machine.resume().unwrap();
    let Event::Ended(reason) = next(&events) else {
        panic!("the machine restarted");
    };
    machine.stop();
    (reason, fs::read_to_string(serial).unwrap())
}

#[test]
fn a_payload_prints_and_powers_off() {
    let (reason, printed) = run(&Payload::new().print("hello").power_off(), 1);
    assert_eq!((reason, printed.as_str()), (ExitReason::PowerOff, "hello"));
}

#[test]
fn the_entry_state_is_that_of_linux() {
    let payload = Payload::new()
        // cmp rsi, 0x1000: the zero page
        .raw(&[0x48, 0x81, 0xFE, 0x00, 0x10, 0x00, 0x00])
        .jne_fail()
        // cmp dword [rsi + 0x202], "HdrS"
        .raw(&[0x81, 0xBE, 0x02, 0x02, 0x00, 0x00])
        .raw(b"HdrS")
        .jne_fail()
        // mov ebx, [rsi + 0x228]; mov eax, [rbx]: the command line
        .raw(&[0x8B, 0x9E, 0x28, 0x02, 0x00, 0x00])
        .load_eax()
        .expect_eax(u32::from_le_bytes(*b"some"))
        // mov rbx, [rsi + 0x70]; mov eax, [rbx]: the RSDP
        .raw(&[0x48, 0x8B, 0x5E, 0x70])
        .load_eax()
        .expect_eax(u32::from_le_bytes(*b"RSD "))
        // mov eax, cs; then mov eax, ss
        .raw(&[0x8C, 0xC8])
        .expect_eax(0x10)
        .raw(&[0x8C, 0xD0])
        .expect_eax(0x18)
        .print("ok")
        .power_off();
    assert_eq!(run(&payload, 1), (ExitReason::PowerOff, "ok".into()));
}

#[test]
fn a_kernel_with_a_pvh_note_is_entered_in_the_state_that_pvh_promises() {
    let payload = Payload::new()
        // mov eax, [ebx + at]: magic and version of the start info
        .raw(&[0x8B, 0x43, 0x00])
        .expect_eax(0x336E_C578)
        .raw(&[0x8B, 0x43, 0x04])
        .expect_eax(1)
        // mov eax, [ebx + at]; mov eax, [eax]: the command line, the RSDP
        .raw(&[0x8B, 0x43, 0x18, 0x8B, 0x00])
        .expect_eax(u32::from_le_bytes(*b"some"))
        .raw(&[0x8B, 0x43, 0x20, 0x8B, 0x00])
        .expect_eax(u32::from_le_bytes(*b"RSD "))
        // mov eax, [ebx + 0x28]; mov eax, [eax + 16]: the memory map begins with RAM
        .raw(&[0x8B, 0x43, 0x28, 0x8B, 0x40, 0x10])
        .expect_eax(1)
        // mov eax, cr0; and eax, PG | PE: protected mode without paging
        .raw(&[0x0F, 0x20, 0xC0, 0x25, 0x01, 0x00, 0x00, 0x80])
        .expect_eax(1)
        // xor eax, eax; inc eax (in 64-bit code 0x40 would be a prefix of the nop); nop
        .raw(&[0x31, 0xC0, 0x40, 0x90])
        .expect_eax(1)
        .print("ok")
        .power_off();
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), &payload, 1);
    fs::write(&config.boot.kernel, payload.pvh_elf()).unwrap();
    assert_eq!(run_in(&config), (ExitReason::PowerOff, "ok".into()));
}

#[test]
fn pci_is_reached_by_ports_and_by_ecam() {
    let host_bridge = 0x0008_1B36;
    let payload = Payload::new()
        .out32(0xCF8, 0x8000_0000)
        .in32(0xCFC)
        .expect_eax(host_bridge)
        // Only the last of several addresses counts, and a slot without function reads as ones.
        .out32(0xCF8, 0x8000_0000)
        .out32(0xCF8, 0x8000_F800)
        .in32(0xCFC)
        .expect_eax(u32::MAX)
        .out32(0xCF8, 0x8000_0000)
        .in32(0xCF8)
        .expect_eax(0x8000_0000)
        .rbx(0xEC00_0000)
        .load_eax()
        .expect_eax(host_bridge)
        .print("ok")
        .power_off();
    assert_eq!(run(&payload, 1), (ExitReason::PowerOff, "ok".into()));
}

#[test]
fn more_addresses_than_kvm_keeps_in_its_ring_lose_none() {
    // mov ecx, 1000; L: out dx, eax; dec ecx; jnz L
    let payload = Payload::new()
        .raw(&[0xB9, 0xE8, 0x03, 0x00, 0x00, 0x66, 0xBA, 0xF8, 0x0C])
        .raw(&[0xB8, 0x00, 0xF8, 0x00, 0x80, 0xEF, 0xFF, 0xC9, 0x75, 0xFB])
        .out32(0xCF8, 0x8000_0000)
        .in32(0xCFC)
        .expect_eax(0x0008_1B36)
        .power_off();
    assert_eq!(run(&payload, 1).0, ExitReason::PowerOff);
}

#[test]
fn accesses_where_nothing_is_read_as_ones_and_go_nowhere() {
    let payload = Payload::new()
        .out32(0x80, 7)
        .in32(0x80)
        .expect_eax(u32::MAX)
        .rbx(0xE000_0000)
        .store32(7)
        .load_eax()
        .expect_eax(u32::MAX)
        .power_off();
    assert_eq!(run(&payload, 1).0, ExitReason::PowerOff);
}

#[test]
fn every_way_of_asking_for_a_reset_ends_the_machine_as_reboot() {
    for (port, value) in [(0x64, 0xFE), (0x602, 1)] {
        let payload = Payload::new().out8(port, value).halt();
        assert_eq!(run(&payload, 1).0, ExitReason::Reboot, "port {port:#x}");
    }
}

#[test]
fn a_panic_is_reported() {
    let payload = Payload::new().print("oops").out8(0x505, 1).halt();
    assert_eq!(run(&payload, 1), (ExitReason::Panic, "oops".into()));
}

#[test]
fn a_triple_fault_is_reported() {
    // ud2, and no IDT
    let payload = Payload::new().raw(&[0x0F, 0x0B]).halt();
    assert_eq!(run(&payload, 1).0, ExitReason::TripleFault);
}

/// Every backing of guest RAM but hugetlbfs, which the host must have pages for (tests/tests/payload.rs).
fn backings(directory: &Path) -> [MemoryBacking; 4] {
    let file = directory.join("ram");
    // Larger than the guest's RAM, and full of marks.
    fs::write(&file, vec![0x5A; 9 << 20]).unwrap();
    [
        MemoryBacking::Anonymous { huge: true },
        MemoryBacking::Anonymous { huge: false },
        MemoryBacking::Memfd,
        MemoryBacking::File(file),
    ]
}

#[test]
fn a_guest_runs_on_ram_of_every_backing_and_finds_in_it_what_it_should() {
    let directory = tempfile::tempdir().unwrap();
    for backing in backings(directory.path()) {
        let found = match backing {
            MemoryBacking::File(_) => 0x5A5A_5A5A,
            _ => 0,
        };
        let payload = Payload::new()
            .rbx(0x60_0000)
            .load_eax()
            .expect_eax(found)
            .store32(0x1234_5678)
            .load_eax()
            .expect_eax(0x1234_5678)
            .print("ok")
            .power_off();
        let mut config = config(directory.path(), &payload, 1);
        config.memory.backing = backing.clone();
        let ended = run_in(&config);
        assert_eq!(ended, (ExitReason::PowerOff, "ok".into()), "{backing:?}");
    }
    let file = fs::read(directory.path().join("ram")).unwrap();
    assert!(
        file.iter().all(|byte| *byte == 0x5A),
        "the guest's writes reached the file"
    );
}

#[test]
fn a_restart_in_place_starts_over_with_clean_memory_of_every_backing() {
    let directory = tempfile::tempdir().unwrap();
    for backing in backings(directory.path()) {
        // What lies in a file is there in the first run only: a reset makes RAM zero.
        let before = match backing {
            MemoryBacking::File(_) => 0x5A5A_5A5A,
            _ => 0,
        };
        restart_with(backing, before);
    }
}

/// Memory that a first run has dirtied must read as zero in the next.
#[track_caller]
fn restart_with(backing: MemoryBacking, before: u32) {
    let directory = tempfile::tempdir().unwrap();
    let payload = Payload::new()
        .rbx(0x40_0000)
        .load_eax()
        // cmp eax, before; je over the next check; cmp eax, 0; jne fail
        .raw(&[0x3D])
        .raw(&before.to_le_bytes())
        .raw(&[0x74, 11])
        .expect_eax(0)
        .store32(0x55)
        .print("x")
        .out8(0x64, 0xFE)
        .halt();
    let mut config = config(directory.path(), &payload, 2);
    config.memory.backing = backing;
    config.on_reboot = OnReboot::Restart;
    let fifo = directory.path().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(status.unwrap().success());
    config.serial = SerialConfig::File(fifo.clone());
    let (machine, events) = build(&config);
    let mut reader = fs::File::open(&fifo).unwrap();
    machine.resume().unwrap();
    let mut printed = [0; 5];
    reader.read_exact(&mut printed).unwrap();
    assert_eq!(&printed, b"xxxxx");
    for _ in 1..printed.len() {
        assert_eq!(events.try_recv(), Ok(Event::Restarted));
    }
    machine.stop();
    assert_eq!(end(&events), ExitReason::Stopped);
}

#[test]
fn a_restart_in_place_finds_every_device_as_after_power_on() {
    /// Configuration space of the first virtio function, and the I/O APIC's index and data registers.
    const FUNCTION: u64 = 0xEC00_8000;
    const IO_APIC: u64 = 0xFEC0_0000;
    /// Low half of the redirection entry of input 4.
    const ENTRY_4: u32 = 0x18;
    let expect_al = |payload: Payload, port, value| {
        payload.in8(port).raw(&[0x3C, value]).jne_fail() // cmp al, value
    };
    // Serial port: line control, interrupts, modem control, scratch. Interrupt controllers: masks.
    let ports = [0x3FB, 0x3F9, 0x3FC, 0x3FF, 0x21, 0xA1];
    let fresh = ports
        .into_iter()
        .fold(Payload::new(), |payload, port| expect_al(payload, port, 0))
        .in32(0xCF8)
        .expect_eax(0)
        .rbx(FUNCTION)
        .load_eax()
        .expect_eax(0x1044_1AF4)
        .rbx(FUNCTION + 4)
        .load_eax()
        .raw(&[0x25, 0xFF, 0xFF, 0, 0]) // and eax, 0xFFFF: the command register
        .expect_eax(0)
        .rbx(IO_APIC)
        .store32(ENTRY_4)
        .rbx(IO_APIC + 0x10)
        .load_eax()
        .expect_eax(1 << 16);
    // Then all of it is changed, and seen to be.
    let used = expect_al(fresh.out8(0x3FB, 3).out8(0x3F9, 0xF), 0x3F9, 0xF);
    let used = expect_al(used.out8(0x3FC, 0xB).out8(0x3FF, 0x55), 0x3FF, 0x55);
    let used = expect_al(used.out8(0x21, 0xFB).out8(0xA1, 0xFF), 0x21, 0xFB)
        .out32(0xCF8, 0x8000_0804)
        .in32(0xCF8)
        .expect_eax(0x8000_0804)
        .rbx(FUNCTION + 4)
        .store32(7)
        .load_eax()
        .raw(&[0x25, 0x07, 0, 0, 0])
        .expect_eax(6)
        .rbx(IO_APIC)
        .store32(ENTRY_4)
        .rbx(IO_APIC + 0x10)
        .store32(0x34)
        .load_eax()
        .expect_eax(0x34)
        .out8(0x602, 1)
        .halt();
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), &used, 2);
    config.on_reboot = OnReboot::Restart;
    config.entropy = Some(fief_devices::limiter::Limits::default());
    let (machine, events) = build(&config);
    machine.resume().unwrap();
    for _ in 0..3 {
        assert_eq!(next(&events), Event::Restarted);
    }
    machine.stop();
    assert_eq!(end(&events), ExitReason::Stopped);
}

#[test]
fn a_restart_in_place_lets_the_second_vcpu_be_started_again() {
    // The second vCPU does not stop by itself: mov byte [0x7800], 1 (DS is 0); jmp back to it.
    let payload = start_second_vcpu(&[0xC6, 0x06, 0x00, 0x78, 0x01, 0xEB, 0xF9, 0xF4])
        // mov rbx, 0x7800; L: cmp byte [rbx], 1; jne L
        .rbx(0x7800)
        .raw(&[0x80, 0x3B, 0x01, 0x75, 0xFB])
        .out8(0x602, 1)
        .halt();
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), &payload, 2);
    config.on_reboot = OnReboot::Restart;
    let (machine, events) = build(&config);
    machine.resume().unwrap();
    for _ in 0..3 {
        assert_eq!(next(&events), Event::Restarted);
    }
    machine.stop();
    assert_eq!(end(&events), ExitReason::Stopped);
}

#[test]
fn a_jump_to_the_bios_resets_the_machine() {
    // Real-mode code for the second vCPU: jmp 0xF000:0xFFF0.
    let payload = start_second_vcpu(&[0xEA, 0xF0, 0xFF, 0x00, 0xF0, 0xF4, 0xF4, 0xF4]);
    assert_eq!(run(&payload.halt(), 2).0, ExitReason::Reboot);
}

#[test]
fn pausing_stands_still_and_resuming_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    // Prints for ever.
    let payload = Payload::new().raw(&[0x66, 0xBA, 0xF8, 0x03, 0xB0, b'y', 0xEE, 0xEB, 0xFD]);
    let mut config = config(directory.path(), &payload, 2);
    let fifo = directory.path().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(status.unwrap().success());
    config.serial = SerialConfig::File(fifo.clone());
    let (machine, events) = build(&config);
    let mut reader = fs::File::open(&fifo).unwrap();
    machine.resume().unwrap();
    for _ in 0..3 {
        let mut printed = [0; 100];
        reader.read_exact(&mut printed).unwrap();
        machine.pause().unwrap();
        machine.pause().unwrap();
        machine.resume().unwrap();
    }
    machine.stop();
    assert_eq!(end(&events), ExitReason::Stopped);
}

#[test]
fn a_machine_that_has_ended_neither_pauses_nor_resumes() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), &Payload::new().power_off(), 1);
    let (machine, events) = build(&config);
    machine.resume().unwrap();
    assert_eq!(end(&events), ExitReason::PowerOff);
    assert!(machine.resume().is_err());
    assert!(machine.pause().is_err());
}

#[test]
fn the_power_button_leaves_its_event_in_the_register() {
    // Waits for the event, prints, powers off. `in al, dx; test al, al; jz back` at port 0x603.
    let payload = Payload::new()
        .raw(&[0x66, 0xBA, 0x03, 0x06, 0xEC, 0x84, 0xC0, 0x74, 0xFB])
        // cmp al, 1
        .raw(&[0x3C, 0x01])
        .jne_fail()
        // Reading has forgotten it.
        .raw(&[0xEC, 0x3C, 0x00])
        .jne_fail()
        .print("pressed")
        .power_off();
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), &payload, 1);
    let (machine, events) = build(&config);
    machine.resume().unwrap();
    machine.press_power_button();
    assert_eq!(end(&events), ExitReason::PowerOff);
    machine.stop();
    let printed = fs::read_to_string(directory.path().join("serial")).unwrap();
    assert_eq!(printed, "pressed");
}

/// A payload that starts the second vCPU with this real-mode code, at 0x7000.
fn start_second_vcpu(code: &[u8]) -> Payload {
    let mut payload = Payload::new();
    for (at, bytes) in (0x7000..).step_by(4).zip(code.chunks(4)) {
        let word = u32::from_le_bytes(bytes.try_into().unwrap());
        payload = payload.rbx(at).store32(word);
    }
    payload
        // Local APIC on, then INIT and SIPI with vector 7 to APIC id 1 (Intel SDM 3A §11.6.1).
        .rbx(0xFEE0_00F0)
        .store32(0x1FF)
        .rbx(0xFEE0_0310)
        .store32(1 << 24)
        .rbx(0xFEE0_0300)
        .store32(0x4500)
        .rbx(0xFEE0_0310)
        .store32(1 << 24)
        .rbx(0xFEE0_0300)
        .store32(0x4607)
}

#[test]
fn a_second_vcpu_starts_where_its_sipi_says() {
    // mov byte [0x7800], 1 (DS is 0); hlt.
    let payload = start_second_vcpu(&[0xC6, 0x06, 0x00, 0x78, 0x01, 0xF4, 0xEB, 0xFD])
        // mov rbx, 0x7800; L: cmp byte [rbx], 1; jne L
        .rbx(0x7800)
        .raw(&[0x80, 0x3B, 0x01, 0x75, 0xFB])
        .print("two")
        .power_off();
    assert_eq!(run(&payload, 2), (ExitReason::PowerOff, "two".into()));
}

#[test]
fn machines_of_1_to_32_vcpus_can_be_built() {
    for vcpus in [1, 2, 3, 32] {
        let payload = Payload::new().print("n").power_off();
        assert_eq!(run(&payload, vcpus), (ExitReason::PowerOff, "n".into()));
    }
}

#[test]
fn a_kernel_that_is_none_ends_the_building_with_its_path_and_reports_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), &Payload::new(), 2);
    fs::write(&config.boot.kernel, b"\x7FELF").unwrap();
    let failed = Machine::build(&config, &Files::new(), Box::new(|_| panic!("nothing ran")));
    let error = failed.err().expect("no kernel").to_string();
    let path = config.boot.kernel.display().to_string();
    assert!(error.starts_with(&path), "{error}");
}

#[test]
fn the_ram_of_a_machine_goes_with_it_also_when_its_building_fails() {
    // No other test of this program has RAM of this size: it is known by that.
    const MIB: u64 = 11;
    let mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let rams = maps.lines().filter(|line| line.contains("memfd:guest-ram"));
        rams.filter(|line| {
            let (start, end) = line.split_once('-').unwrap();
            let end = end.split(' ').next().unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            number(end) - number(start) == MIB << 20
        })
        .count()
    };
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), &Payload::new().power_off(), 2);
    config.memory.size_mib = MIB;
    config.memory.backing = MemoryBacking::Memfd;
    let (machine, exit) = build(&config);
    assert_eq!(mapped(), 1);
    machine.resume().unwrap();
    assert_eq!(end(&exit), ExitReason::PowerOff);
    machine.stop();
    assert_eq!(mapped(), 0);

    fs::write(&config.boot.kernel, b"\x7FELF").unwrap();
    let failed = Machine::build(&config, &Files::new(), Box::new(|_| panic!("nothing ran")));
    assert!(failed.is_err());
    assert_eq!(mapped(), 0);
}
