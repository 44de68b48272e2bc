//! DMA of a device that a tenant programs, and its interrupts: they reach the tenant, and nothing else.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use fief_tests::{Said, fief, waiting};

use super::tenant::{Tenant, bind, put_driver, unbind};
use super::{EDU_WIDE, in_host, state};

const TEACHER: &str = "1234:11e8";
/// Memory of the tenant in bytes: what lies above is none of its addresses.
const MEMORY: u64 = 256 << 20;

/// A tenant with the device, and its address there. Tenants of other tests had it, and it cannot be reset.
#[track_caller]
fn with_teacher(name: &str) -> (Tenant, String) {
    bind(&[EDU_WIDE]);
    let options = format!("--device {EDU_WIDE} --allow-no-reset");
    let tenant = Tenant::start(name, &options).with_driver();
    let address = tenant.address(TEACHER);
    (tenant, address)
}

/// A page that nobody should write to, where `fief WORDS` runs commands.
struct Canary {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
    /// Its physical address.
    physical: u64,
}

impl Canary {
    #[track_caller]
    fn start(words: &[&str]) -> Self {
        let mut command = fief([words, &["--", "driver", "canary"]].concat());
        command.env("FIEF_STATE_DIR", state()).stdin(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let digits = line.trim().strip_prefix("0x").unwrap();
        let physical = u64::from_str_radix(digits, 16).unwrap();
        Self {
            process,
            output,
            physical,
        }
    }

    /// Ends it; what became of the page.
    #[track_caller]
    fn end(mut self) -> String {
        drop(self.process.stdin.take());
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        Said::from(waiting::end_of(self.process, "the canary")).ok();
        line.trim().to_owned()
    }
}

#[test]
fn a_device_reads_and_writes_memory_of_its_tenant() {
    let (tenant, address) = with_teacher("copier");
    assert_eq!(
        tenant.sh(&format!("driver edu-copy {address}")).ok(),
        "copied"
    );
    drop(tenant);
    unbind(&[EDU_WIDE]);
}

#[test]
fn a_device_does_not_reach_memory_of_the_host_and_the_host_logs_the_attempt() {
    let (tenant, address) = with_teacher("escaper");
    put_driver(&["host", "exec", "-i"]);
    let store = |physical: u64| {
        let said = tenant.sh(&format!("driver edu-store {address} {physical:#x}"));
        assert_eq!(said.ok(), "stored");
    };
    // An address of its own memory: the attempt is one that works.
    let own = Canary::start(&["exec", "-i", "escaper"]);
    assert!(own.physical < MEMORY, "{:#x}", own.physical);
    store(own.physical);
    assert_eq!(own.end(), "2048 changed");

    // Pages that have an address of the tenant's in the host stay occupied, until there is one that has not.
    let mut below = Vec::new();
    let canary = loop {
        let canary = Canary::start(&["host", "exec", "-i"]);
        if canary.physical > MEMORY {
            break canary;
        }
        below.push(canary);
        assert!(below.len() < 20);
    };
    let physical = canary.physical;
    in_host("dmesg -C").ok();
    store(physical);
    assert_eq!(canary.end(), "0 changed");
    for canary in below {
        assert_eq!(canary.end(), "0 changed");
    }
    let logged = in_host("dmesg").ok();
    let device = format!("[{}]", EDU_WIDE.trim_start_matches("0000:"));
    let fault = |line: &&str| {
        line.contains("DMA Write")
            && line.contains(&device)
            && line.contains(&format!("fault addr {physical:#x}"))
    };
    assert!(logged.lines().any(|line| fault(&line)), "{logged}");
    // Nor does the attempt end the device's work for its tenant.
    assert_eq!(
        tenant.sh(&format!("driver edu-copy {address}")).ok(),
        "copied"
    );
    drop(tenant);
    unbind(&[EDU_WIDE]);
}

#[test]
fn interrupts_of_a_device_reach_its_tenant_by_wire_and_by_message() {
    let (tenant, address) = with_teacher("interrupted");
    // Register 0x60 raises an interrupt, 0x64 acknowledges it.
    let raise = format!("driver write {address} 0 0x60 1");
    let wired = format!(
        "driver write {address} 0 0x64 0xffffffff; modprobe uio_pci_generic
         echo 1234 11e8 > /sys/bus/pci/drivers/uio_pci_generic/new_id; until test -c /dev/uio0; do sleep 0.1; done
         (sleep 1; {raise}) & timeout 60 head -c 4 /dev/uio0 | od -An -tu4; grep uio /proc/interrupts | awk '{{print $2}}'; driver write {address} 0 0x64 1"
    );
    let counts: Vec<String> = tenant
        .sh(&wired)
        .ok()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(counts, ["1", "1"], "the driver's and the kernel's");
    // A vector that nobody has taken: the kernel tells that it came.
    let message = format!("dmesg -C; driver msi {address} 0xc7 && {raise}; dmesg");
    let told = tenant.sh(&message).ok();
    let expected = "No irq handler for 0.199";
    assert!(told.contains(expected), "{told}");
    drop(tenant);
    unbind(&[EDU_WIDE]);
}
