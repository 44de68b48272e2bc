//! A serial port: registers behind a BAR of ports, and a wired interrupt.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::tenant::{Tenant, bind, unbind};
use super::{SERIAL, driver, line};

/// Longer than some hundred bytes take.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn bytes_go_both_ways_through_a_serial_port() {
    bind(&[SERIAL]);
    let tenant = Tenant::start("liner", &format!("--device {SERIAL}"));
    let address = tenant.address("1b36:0002");
    let functions = format!("/sys/bus/pci/devices/{address}");
    let port = tenant
        .sh(&format!("basename $(find {functions}/ -name 'ttyS*')"))
        .ok();
    let mut socket = UnixStream::connect(line()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent: String = (0..100).map(|n| format!("line {n:03}\n")).collect();
    let script = format!(
        "stty -F /dev/{port} raw -echo && exec 3<>/dev/{port} && echo ready >&3 && timeout --foreground {} head -c {} <&3 && \
         awk -v irq=$(cat {functions}/irq): '$1 == irq {{print $2}}' /proc/interrupts >&2",
        PATIENCE.as_secs(),
        sent.len()
    );
    let received = std::thread::scope(|scope| {
        let reader = scope.spawn(|| tenant.sh(&script));
        let mut ready = [0; 6];
        socket.read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        socket.write_all(sent.as_bytes()).unwrap();
        reader.join().unwrap()
    });
    // The kernel has them in its table only while somebody has the port open.
    let interrupts: u64 = received.err.trim().parse().unwrap();
    assert!(interrupts > 0);
    assert_eq!(received.ok(), sent.trim_end());
    drop(tenant);
    unbind(&[SERIAL]);
    assert_eq!(driver(SERIAL), "serial");
}
